package torture_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/logwrites"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// record is what an actor has done: operation k began in states[k].
type record struct {
	*actor
	states     []state
	operations []operation
}

// recording is a log of writes, and what was done meanwhile.
type recording struct {
	e       *pooltest.Env
	disk    *pooltest.Disk
	records []*record
}

// ackMark tells in the log that an operation of an actor was acknowledged, and how many before.
func ackMark(actor, n int) string { return fmt.Sprintf("ack-%d-%d", actor, n) }

const beginMark = "begin"

// recordWork lets actors work, each with a Store of its own, on a pool on a disk whose writes are logged.
func recordWork(t *testing.T, seed uint64, actors, operations int) *recording {
	dirs := pooltest.Dirs(t)
	r := &recording{e: &pooltest.Env{Dirs: dirs, Name: pooltest.PoolName}, disk: pooltest.NewDisk(t, dirs.Root, 1<<30)}
	ctx := pooltest.Context(t)
	fs := fsOf(seed)
	must(t, pool.Create(ctx, dirs, pool.Spec{Name: pooltest.PoolName, FS: fs, DataSize: 512 << 20, BaseSize: baseOf(fs)}))
	t.Cleanup(func() { _ = pool.Stop(pooltest.Context(t), dirs, pooltest.PoolName) }) // of a test that failed
	archives := t.TempDir()
	for n := range actors {
		a := newActor(n, baseOf(fs), seed, archives)
		a.solo = actors == 1
		r.records = append(r.records, &record{actor: a})
	}
	r.disk.Mark(beginMark)
	fault.Set(func(point string) error {
		r.disk.Mark("at-" + point)
		return nil
	})
	defer fault.Set(nil)
	var all sync.WaitGroup
	failed := make(chan error, actors)
	for n, rec := range r.records {
		all.Go(func() {
			if err := r.work(ctx, n, rec, operations); err != nil {
				failed <- err
			}
		})
	}
	all.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
	r.end(t)
	return r
}

func (r *recording) work(ctx context.Context, n int, rec *record, operations int) error {
	s, err := layer.Open(ctx, r.e.Config())
	if err != nil {
		return err
	}
	for k := range operations {
		o := rec.next()
		rec.states, rec.operations = append(rec.states, rec.state), append(rec.operations, o)
		if err := rec.do(ctx, s, o); err != nil {
			return errors.Join(fmt.Errorf("actor %d, operation %d: %w", n, k, err), s.Close())
		}
		r.disk.Mark(ackMark(n, k))
	}
	rec.states = append(rec.states, rec.state)
	return s.Close()
}

// end unmounts what is mounted, and takes pool and disk away.
func (r *recording) end(t *testing.T) {
	ctx := pooltest.Context(t)
	s, err := layer.Open(ctx, r.e.Config())
	must(t, err)
	for _, rec := range r.records {
		for name, n := range rec.state.Nodes {
			if n.Mounted {
				must(t, s.Unmount(ctx, name))
			}
		}
	}
	must(t, s.Close())
	must(t, pool.Stop(ctx, r.e.Dirs, r.e.Name))
	must(t, r.disk.Remove())
	if t.Failed() {
		t.FailNow()
	}
}

// cut is an instant of a power cut: after the first at entries of the log, and some, maybe torn, of the ones
// up to the flush that was under way.
type cut struct {
	at   int
	more []logwrites.Part
}

// cuts chooses n instants: a quarter right after flushes, a quarter at marks, the others while a flush was under
// way. 0 is so many that every flush is among them.
func cuts(entries []logwrites.Entry, rnd *rand.Rand, n int) []cut {
	begin := slices.IndexFunc(entries, func(e logwrites.Entry) bool { return e.Mark == beginMark })
	var flushed, marks []int
	for i := begin; i < len(entries); i++ {
		switch {
		case entries[i].Mark != "":
			marks = append(marks, i+1)
		case entries[i].Flags&(logwrites.Flush|logwrites.FUA) != 0:
			flushed = append(flushed, i+1)
		}
	}
	if n == 0 {
		n = 4 * len(flushed)
	}
	var all []cut
	some := func(places []int, n int) {
		for _, k := range rnd.Perm(len(places))[:min(n, len(places))] {
			all = append(all, cut{at: places[k]})
		}
	}
	some(flushed, n/4)
	some(marks, n/4)
	for len(all) < n {
		at := begin + rnd.IntN(len(entries)-begin)
		all = append(all, cut{at, logwrites.Unflushed(entries, at, rnd)})
	}
	slices.SortFunc(all, func(a, b cut) int { return a.at - b.at })
	return all
}

// acked returns how many operations of each actor were acknowledged in the first n entries, and what came
// last.
func (r *recording) acked(entries []logwrites.Entry, n int) (counts []int, where string) {
	counts = make([]int, len(r.records))
	for _, e := range entries[:n] {
		if e.Mark == "" {
			continue
		}
		where = e.Mark
		if rest, ok := strings.CutPrefix(e.Mark, "ack-"); ok {
			who, k, _ := strings.Cut(rest, "-")
			i, _ := strconv.Atoi(who)
			count, _ := strconv.Atoi(k)
			counts[i] = count + 1
		}
	}
	return counts, where
}

// check opens the pool after a cut, as after a reboot, and looks whether every acknowledged operation is there,
// and nothing else but what was going on.
func (r *recording) check(ctx context.Context, e *pooltest.Env, counts []int) (err error) {
	s, err := layer.Open(ctx, e.Config())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	var casts []*cast
	for _, rec := range r.records {
		casts = append(casts, rec.cast)
	}
	have, err := look(ctx, s, casts)
	if err != nil {
		return err
	}
	err = unclaimed(have, casts)
	for n, rec := range r.records {
		err = errors.Join(err, rec.judge(have.owned(rec.cast), counts[n]))
	}
	return errors.Join(err, fsck(ctx, s, have, r.suspects(have, counts)), e.Check(ctx))
}

// judge compares what there is with what an actor had done when n operations were acknowledged.
func (r *record) judge(have state, n int) error {
	before := r.states[n].unmounted()
	if n == len(r.operations) {
		return before.differences(have, true)
	}
	if o := r.operations[n]; !o.allows(before, have) {
		return fmt.Errorf("%d operations acknowledged, going on: %s\n%w", n, o.text, before.differences(have, true))
	}
	return nil
}

// suspects are the nodes that the last operations changed, and one more. A check of each node after each cut
// would take most of the time.
func (r *recording) suspects(have state, counts []int) map[string]bool {
	names := map[string]bool{}
	for n, rec := range r.records {
		before := rec.states[max(0, counts[n]-1)]
		for name, is := range have.owned(rec.cast).Nodes {
			if was, ok := before.Nodes[name]; !ok || !is.same(was, true) {
				names[name] = true
			}
		}
	}
	for name := range have.Nodes {
		names[name] = true
		break
	}
	return names
}

// fsck checks the file systems of nodes.
func fsck(ctx context.Context, s *layer.Store, have state, names map[string]bool) error {
	var all error
	for name := range names {
		if have.Nodes[name].Raw != 0 {
			continue
		}
		f, err := s.Fsck(ctx, name, false)
		if err == nil && !f.Clean {
			err = fmt.Errorf("%s is damaged: %s", name, f.Output)
		}
		all = errors.Join(all, err)
	}
	return all
}

// TestPowerCuts cuts the power at many instants of a work of actors that the seed determines.
// DMLAYER_TORTURE_CUTS says at how many; 0 is at every flush and many others.
func TestPowerCuts(t *testing.T) {
	seed := seed(t)
	rnd := rand.New(rand.NewPCG(seed, 1<<32))
	r := recordWork(t, seed, 1+int(seed%3), setting(t, "OPERATIONS", 40))
	replay := r.disk.Replay()
	all := cuts(replay.Entries, rnd, setting(t, "CUTS", 50))
	for _, c := range all {
		counts, where := r.acked(replay.Entries, c.at)
		if n := setting(t, "AT", c.at); n != c.at {
			continue
		}
		replay.CutWith(c.at, c.more, func() {
			e := &pooltest.Env{Dirs: pool.Dirs{Root: r.e.Dirs.Root, Run: filepath.Join(t.TempDir(), "run")}, Name: r.e.Name}
			if err := r.check(pooltest.Context(t), e, counts); err != nil {
				t.Errorf("cut after %d of %d entries and %d more, %s: %v", c.at, len(replay.Entries), len(c.more), where, err)
				_ = pool.Stop(pooltest.Context(t), e.Dirs, e.Name) // which the check did not come to
			}
		})
	}
	t.Logf("%d entries, %d cuts", len(replay.Entries), len(all))
}
