package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
)

// poolTrim is what pool trim prints. Sizes are bytes; null is "not known".
type poolTrim struct {
	Nodes    int    `json:"nodes"`    // mounted ones that were trimmed
	Freed    uint64 `json:"freed"`    // what their file systems passed down
	Swept    int64  `json:"swept"`    // free blocks that were given back
	Returned *int64 `json:"returned"` // what the host has more because of them
	Kept     *int64 `json:"kept"`     // what it still keeps for free blocks
}

func (a *app) newPoolTrim() *cobra.Command {
	var discard bool
	cmd := &cobra.Command{
		Use:   "trim [NAME]",
		Short: "Give what is free back to what a pool lies on",
		Long: `Finishes removals, trims the file systems of all nodes that are mounted for writing, and gives the
blocks that no node has back to what the pool lies on: files become smaller, disks and volumes are told.
The pool stays in use meanwhile: an eighth of what is free is taken at once, 256 MiB at most, with pauses.
It can be interrupted at any time; what was given back stays so.

A pool that was made to pass no discards down keeps its free blocks, unless --discard is given. dmlayer
serve does the same for free blocks by itself where the data is a file that keeps much of them.`,
		Example:           "  dmlayer pool trim\n  dmlayer pool trim --discard fast",
		Args:              args(0, 1),
		ValidArgsFunction: a.completePools,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if a.flags.pool, err = a.poolArg(cmd, args); err != nil {
				return err
			}
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error { return a.trimPool(ctx, s, discard) })
		},
	}
	cmd.Flags().BoolVar(&discard, "discard", false, "tell the disk too where the pool was made not to")
	return records(exitCodes(cmd, 3, 5, 6, 7, 8))
}

func (a *app) trimPool(ctx context.Context, s *layer.Store, discard bool) error {
	var r poolTrim
	_, err := s.Reap(ctx, nil)
	if err == nil {
		err = s.TrimMounted(ctx, func(_ string, n uint64) { r.Nodes, r.Freed = r.Nodes+1, r.Freed+n })
	}
	if ctx.Err() != nil {
		return err
	}
	free, ferr := a.trimFree(ctx, s, discard)
	if err = errors.Join(err, ferr); ferr != nil {
		return err
	}
	r.Swept, r.Kept = free.Swept, free.After
	if free.Before != nil && free.After != nil {
		n := max(*free.Before-*free.After, 0)
		r.Returned = &n
	}
	return errors.Join(err, printRecord(a, r, a.flags.pool, false, r.fields()))
}

func (a *app) trimFree(ctx context.Context, s *layer.Store, discard bool) (layer.FreeTrim, error) {
	bar := newByteBar(a.err, a.flags.pool)
	stop := context.AfterFunc(ctx, bar.end) // what is said of an interruption needs a clean terminal
	defer stop()
	free, err := s.TrimFree(ctx, layer.TrimFreeOptions{Discard: discard, Progress: bar.show})
	bar.end()
	switch {
	case err != nil && ctx.Err() != nil:
		err = errs.WithHint(err, humanSize(free.Swept)+" were given back; the next dmlayer pool trim goes on")
	case free.Kept:
		a.note("pool %q passes no discards down: its free blocks are still allocated below; --discard gives them back all the same", a.flags.pool)
	case free.Full:
		a.note("pool %q has too little free for its free blocks to be given back", a.flags.pool)
	}
	return free, err
}

func (r poolTrim) fields() []field {
	known := func(n *int64) string {
		if n == nil {
			return "-"
		}
		return humanSize(*n)
	}
	return []field{
		{"File systems", fmt.Sprintf("%s of %d mounted", humanSize(int64(r.Freed)), r.Nodes)},
		{"Free blocks", humanSize(r.Swept)},
		{"Host has more", known(r.Returned)},
		{"Host still keeps", known(r.Kept)},
	}
}
