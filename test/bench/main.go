// Command bench measures, in one run and interleaved, what a round of prepare, mount, unmount and
// remove costs: the bare kernel operations, the library, the graph driver over its socket, and the command. As `bench images` it measures
// what loading an image costs, as `bench containerd` what containerd's snapshotters cost, and as `bench docker` what dockerds cost. It is run in a virtual machine by scripts/bench.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
)

func main() {
	ctx, err := context.Background(), error(nil)
	switch first := append(os.Args, "")[1]; first {
	case "images":
		err = runImages(ctx, os.Args[2:])
	case "containerd":
		err = runContainerd(ctx, os.Args[2:])
	case "docker":
		err = runDocker(ctx, os.Args[2:])
	case "bare":
		err = runBare(ctx, os.Args[2:])
	default:
		err = run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type config struct {
	dir     string
	fs      string
	rounds  int
	nodes   []int
	command string
	profile string
	mark    bool
	kinds   []string
}

func run(ctx context.Context) (err error) {
	var c config
	flag.StringVar(&c.dir, "dir", os.TempDir(), "folder for the pool, on the file system to measure on")
	flag.StringVar(&c.fs, "fs", "ext4", "file system of the nodes")
	flag.IntVar(&c.rounds, "rounds", 200, "rounds of each kind and size")
	flag.StringVar(&c.command, "command", "", "the dmlayer binary; none: the command is left out")
	flag.StringVar(&c.profile, "cpuprofile", "", "write a CPU profile of the library's rounds")
	flag.BoolVar(&c.mark, "mark", false, "after each step, write its name to a descriptor that is not there, for who counts system calls with strace")
	sizes := flag.String("nodes", "10,2000", "how many other nodes the pool has, ascending")
	which := flag.String("kinds", "floor,library,plugin,socket,command", "what to measure; everything is compared with the floor")
	flag.Parse()
	c.kinds = strings.Split(*which, ",")
	for _, s := range strings.Split(*sizes, ",") {
		var n int
		if _, err := fmt.Sscan(s, &n); err != nil {
			return fmt.Errorf("-nodes %q: %w", *sizes, err)
		}
		c.nodes = append(c.nodes, n)
	}
	dir, err := os.MkdirTemp(c.dir, "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{config: c, dirs: pool.Dirs{Root: filepath.Join(dir, "root"), Run: filepath.Join("/run", filepath.Base(dir))}}
	defer os.RemoveAll(b.dirs.Run)
	spec := pool.Spec{Name: "bench", FS: c.fs, DataSize: 20 << 30, MetadataSize: 64 << 20}
	if err := pool.Create(ctx, b.dirs, spec); err != nil {
		return err
	}
	defer func() {
		if derr := pool.Destroy(ctx, b.dirs, "bench"); err == nil {
			err = derr
		}
	}()
	return b.measure(ctx)
}

type bench struct {
	config
	dirs  pool.Dirs
	store *layer.Store
	made  int
}

const parent = "parent"

func (b *bench) measure(ctx context.Context) (err error) {
	b.store, err = layer.Open(ctx, layer.Config{Dirs: b.dirs, Pool: "bench"})
	if err != nil {
		return err
	}
	defer b.store.Close()
	_, err = b.store.CreateLayer(ctx, parent, layer.LayerOptions{}, func(_ context.Context, w *layer.LayerWriter) error {
		return os.WriteFile(filepath.Join(w.Root(), "file"), []byte("content"), 0o644)
	})
	if err != nil {
		return err
	}
	for _, n := range b.nodes {
		for ; b.made < n; b.made++ {
			if _, err := b.store.CreateSnapshot(ctx, fmt.Sprintf("other-%d", b.made), layer.SnapshotOptions{Parent: parent}); err != nil {
				return err
			}
		}
		if err := b.table(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// table measures each kind once in turn, so that whatever else the machine does meets all of them.
func (b *bench) table(ctx context.Context, nodes int) (err error) {
	floor, err := newFloor(ctx, b)
	if err != nil {
		return err
	}
	defer floor.close()
	graph, err := newGraph(ctx, b)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, graph.stop()) }()
	kinds := []kind{{"floor", floor.round}, {"library", b.library}, {"plugin", graph.round}, {"socket", graph.rawRound}}
	if b.command != "" {
		kinds = append(kinds, kind{"command", b.commands})
	}
	kinds = slices.DeleteFunc(kinds, func(k kind) bool { return !slices.Contains(b.kinds, k.name) })
	if b.profile != "" {
		stop, err := startProfile(b.profile)
		if err != nil {
			return err
		}
		defer stop()
	}
	times := make([]series, len(kinds))
	for i := range b.rounds + 5 {
		for k, kind := range kinds {
			if kind.name == "command" && i%10 != 0 {
				continue // starting programs is dear in the virtual machine
			}
			t := &timer{kind: kind.name, mark: b.mark}
			if err := kind.round(ctx, t); err != nil {
				return fmt.Errorf("%s: %w", kind.name, err)
			}
			if i >= 5 { // the first ones warm up
				times[k].add(t)
			}
		}
	}
	print(nodes, kinds, times)
	return nil
}

type kind struct {
	name  string
	round func(context.Context, *timer) error
}

func (b *bench) library(ctx context.Context, t *timer) error {
	t.start()
	if _, err := b.store.CreateSnapshot(ctx, "round", layer.SnapshotOptions{Parent: parent}); err != nil {
		return err
	}
	t.lap("prepare")
	if _, err := b.store.Mount(ctx, "round", "", layer.MountOptions{}); err != nil {
		return err
	}
	t.lap("mount")
	if err := b.store.Unmount(ctx, "round"); err != nil {
		return err
	}
	t.lap("unmount")
	err := b.store.Remove(ctx, "round")
	t.lap("remove")
	return err
}

func (b *bench) commands(ctx context.Context, t *timer) error {
	t.start()
	for _, step := range []struct {
		name string
		args []string
	}{
		{"prepare", []string{"snapshot", "--parent", parent, "command"}},
		{"mount", []string{"mount", "command"}},
		{"unmount", []string{"unmount", "command"}},
		{"remove", []string{"rm", "command"}},
	} {
		args := append([]string{"--root", b.dirs.Root, "--run", b.dirs.Run, "--pool", "bench"}, step.args...)
		if out, err := exec.CommandContext(ctx, b.command, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("dmlayer %s: %w: %s", strings.Join(step.args, " "), err, out)
		}
		t.lap(step.name)
	}
	return nil
}

// timer takes the times of a round's steps.
type timer struct {
	kind  string
	mark  bool
	from  time.Time
	names []string
	laps  []time.Duration
}

func (t *timer) start() {
	t.say("start")
	t.from = time.Now()
}

func (t *timer) lap(name string) {
	now := time.Now()
	t.names = append(t.names, name)
	t.laps = append(t.laps, now.Sub(t.from))
	t.say(name)
	t.from = now
}

// say leaves a mark in what strace writes.
func (t *timer) say(step string) {
	if t.mark {
		_, _ = unix.Write(-1, []byte(t.kind+" "+step))
	}
}

// series are the times of many rounds.
type series struct {
	steps  map[string][]time.Duration
	rounds []time.Duration
}

func (s *series) add(t *timer) {
	if s.steps == nil {
		s.steps = map[string][]time.Duration{}
	}
	var sum time.Duration
	for i, n := range t.names {
		s.steps[n] = append(s.steps[n], t.laps[i])
		sum += t.laps[i]
	}
	s.rounds = append(s.rounds, sum)
}

func median(d []time.Duration) time.Duration { return percentile(d, 50) }

func percentile(d []time.Duration, p int) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)*p/100]
}

var steps = []string{"prepare", "mount", "unmount", "remove"}

// print prints the medians, and what a tenth of the steps stay below: on a machine that others use too, that is nearly what they cost undisturbed.
func print(nodes int, kinds []kind, times []series) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	defer w.Flush()
	fmt.Fprintf(w, "%d nodes, medians in us\t%s\tround\tof floor\trounds\t\n", nodes, strings.Join(steps, "\t"))
	for k, kind := range kinds {
		printKind(w, kind.name, times[k], 50, median(times[k].rounds), median(times[0].rounds))
	}
	fmt.Fprintf(w, "fastest tenths\t%s\tsum\tof floor\trounds\t\n", strings.Join(steps, "\t"))
	for k, kind := range kinds {
		printKind(w, kind.name, times[k], 10, times[k].sum(10), times[0].sum(10))
	}
}

func printKind(w io.Writer, name string, s series, p int, round, floor time.Duration) {
	fmt.Fprintf(w, "%s\t", name)
	for _, step := range steps {
		fmt.Fprintf(w, "%d\t", percentile(s.steps[step], p).Microseconds())
	}
	fmt.Fprintf(w, "%d\t%.2f\t%d\t\n", round.Microseconds(), float64(round)/float64(floor), len(s.rounds))
}

// sum adds up a percentile of the steps.
func (s *series) sum(p int) (sum time.Duration) {
	for _, step := range steps {
		sum += percentile(s.steps[step], p)
	}
	return sum
}
