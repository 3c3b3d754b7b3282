package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"google.golang.org/grpc"
)

// table measures each kind once in turn, so that whatever else the machine does meets all of them.
func (b *snapshotsBench) table(ctx context.Context, size int, floor *floor, clients []*snapshotClient) error {
	kinds := []kind{{"floor", floor.snapshotRound}, {"empty call", b.emptyRound}}
	for _, c := range clients {
		kinds = append(kinds, kind{c.name, c.round})
	}
	times := make([]series, len(kinds))
	for i := range b.rounds + 2 {
		for k, kind := range kinds {
			t := &timer{}
			if err := kind.round(ctx, t); err != nil {
				return fmt.Errorf("%s: %w", kind.name, err)
			}
			if i >= 2 { // the first ones warm up
				times[k].add(t)
			}
		}
	}
	b.printRounds(size, kinds, times)
	return b.sums(ctx, size, clients)
}

func (b *snapshotsBench) emptyRound(ctx context.Context, t *timer) error {
	t.start()
	err := b.emptyCall(ctx)
	t.lap("call")
	return err
}

var snapshotSteps = []string{"call", "prepare+mount", "remove", "commit", "view", "usage"}

func (b *snapshotsBench) printRounds(size int, kinds []kind, times []series) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "%d snapshots, medians in ms of %d\t", size, b.rounds)
	for _, s := range snapshotSteps {
		fmt.Fprintf(w, "%s\t", s)
	}
	fmt.Fprintln(w)
	for k, kind := range kinds {
		fmt.Fprintf(w, "%s\t", kind.name)
		for _, s := range snapshotSteps {
			took := times[k].steps[s]
			if len(took) == 0 {
				fmt.Fprint(w, "\t")
				continue
			}
			fmt.Fprintf(w, "%.2f", ms(median(took)))
			if at := times[0].steps[s]; len(at) > 0 && k > 0 {
				fmt.Fprintf(w, " (%.2f)", float64(median(took))/float64(median(at)))
			}
			fmt.Fprint(w, "\t")
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush()
}

// sums prints what is measured as a whole: of dmlayer the usage of all, and of each what is done together.
func (b *snapshotsBench) sums(ctx context.Context, size int, clients []*snapshotClient) error {
	n := min(b.usages, size)
	took, err := clients[0].usages(ctx, n)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(os.Stdout, "usage of %d snapshots of dmlayer, one by one: %.0f ms, %.3f ms each\n", n, ms(took), ms(took)/float64(n)); err != nil {
		return err
	}
	if b.together == 0 {
		return nil
	}
	for _, c := range clients {
		row, together, err := c.atOnce(ctx, b.together)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		if _, err := fmt.Fprintf(os.Stdout, "%d prepares, %s: one by one %.0f ms, at once %.0f ms, %.2f of that\n", b.together, c.name,
			ms(row), ms(together), float64(together)/float64(row)); err != nil {
			return err
		}
	}
	return nil
}

// collections tells what a removal costs where containerd only notes it, and removes when it collects garbage.
func (b *snapshotsBench) collections(ctx context.Context, conn *grpc.ClientConn, clients []*snapshotClient) error {
	const n = 10
	for _, c := range clients {
		if err := c.base(ctx); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		in := c.context(ctx)
		for range n {
			key, err := c.prepared(in, &timer{}, func() error { return nil })
			if err != nil {
				return err
			}
			if err := c.sn.Remove(in, key); err != nil {
				return err
			}
		}
		from := time.Now()
		if err := collect(ctx, conn); err != nil {
			return err
		}
		full := time.Since(from)
		from = time.Now()
		if err := collect(ctx, conn); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(os.Stdout, "removal by the collector, %s: %.2f ms each of %d\n", c.name, ms(full-time.Since(from))/n, n); err != nil {
			return err
		}
	}
	return nil
}

func (b *snapshotsBench) printUnpack(kinds []loadKind, results []loadResults) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	defer w.Flush()
	fmt.Fprintf(w, "import of %s, seconds\tmedian\tleast\tmost\tpeak MiB of containerd\t\n", b.image)
	for i, k := range kinds {
		r := results[i].rounds
		fmt.Fprintf(w, "%s\t%.2f\t%.2f\t%.2f\t%d\t\n", k.name, median(r).Seconds(), slices.Min(r).Seconds(), slices.Max(r).Seconds(), results[i].peaks.peaks["import"]>>20)
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
