package torture_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/run"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// faultyPool is a pool on a disk that can be made to fail, with some actors that work one after the other.
type faultyPool struct {
	e      *pooltest.Env
	disk   *pooltest.FaultyDisk
	actors []*actor
	// under is what each actor was doing when something failed.
	under []*operation
}

func newFaultyPool(t *testing.T, seed uint64) *faultyPool {
	dirs := pooltest.Dirs(t)
	p := &faultyPool{e: &pooltest.Env{Dirs: dirs, Name: pooltest.PoolName}, disk: pooltest.NewFaultyDisk(t, dirs.Root, 768<<20)}
	must(t, pool.Create(pooltest.Context(t), dirs, pool.Spec{Name: pooltest.PoolName, DataSize: 384 << 20, BaseSize: baseSize}))
	archives := t.TempDir()
	for n := range 4 {
		p.actors = append(p.actors, newActor(n, baseSize, seed, archives))
		p.under = append(p.under, nil)
	}
	return p
}

// work lets each actor do operations, and fails for a result that must not be.
func (p *faultyPool) work(t *testing.T, operations int) {
	t.Helper()
	ctx := pooltest.Context(t)
	s, err := layer.Open(ctx, p.e.Config())
	must(t, err)
	for _, a := range p.actors {
		for range operations {
			must(t, a.do(ctx, s, a.next()))
		}
	}
	must(t, s.Close())
}

// workOnFaulty lets each actor work until something fails, which must be said as what it is.
func (p *faultyPool) workOnFaulty(t *testing.T, operations int) (failures []error) {
	t.Helper()
	ctx := pooltest.Context(t)
	for n, a := range p.actors {
		s, err := layer.Open(ctx, p.e.Config())
		if err != nil {
			failures = append(failures, p.clean(t, "open", err))
			continue
		}
		for range operations {
			o := a.next()
			err := o.run(ctx, s)
			if err == nil && o.want == nil {
				a.state = o.done(a.state)
				continue
			}
			if err == nil {
				t.Errorf("%s succeeded, and cannot have", o.text)
				continue
			}
			if o.want != nil && errors.Is(err, o.want) {
				continue
			}
			failures = append(failures, p.clean(t, o.text, err))
			p.under[n] = &o
			break
		}
		if err := s.Close(); err != nil {
			failures = append(failures, p.clean(t, "close", err))
		}
	}
	return failures
}

// clean fails the test for an error that says what is not so, or does not say what is the matter.
func (p *faultyPool) clean(t *testing.T, what string, err error) error {
	t.Helper()
	failed := errs.Class(err) == errs.ErrDamaged
	for _, e := range []error{unix.EIO, unix.EROFS, unix.EUCLEAN, unix.ENODATA, unix.ENXIO, errTorn} {
		failed = failed || errors.Is(err, e)
	}
	var program *run.Error
	failed = failed || errors.As(err, &program) // mkfs or fsck, which says it in words
	if !failed || errs.Class(err) != nil && errs.Class(err) != errs.ErrDamaged {
		t.Errorf("%s: class %v: %v", what, errs.Class(err), err)
	}
	return fmt.Errorf("%s (%s): %w", what, fmt.Sprint(errs.Class(err)), err)
}

// restart is what a person does when the disk has been replaced: stop, check, start.
func (p *faultyPool) restart(t *testing.T) {
	t.Helper()
	ctx := pooltest.Context(t)
	mounts, err := fsutil.Mounts()
	must(t, err)
	for _, m := range mounts {
		if strings.HasPrefix(m.Dir, p.e.Dirs.Run+"/") {
			must(t, fsutil.Unmount(ctx, m.Dir, fsutil.UnmountOptions{}))
		}
	}
	p.dropClaims(t)
	if err := pool.Stop(ctx, p.e.Dirs, p.e.Name); err != nil {
		t.Fatalf("stop the pool: %v", err)
	}
	must(t, p.disk.Remount())
	must(t, pool.Start(ctx, p.e.Dirs, p.e.Name))
	st, err := pool.Inspect(ctx, p.e.Dirs, p.e.Name)
	must(t, err)
	if st.State == pool.StateNeedsCheck { // it was started for reading alone
		p.repair(t)
	}
}

// dropClaims lets go what somebody was using when the disk failed.
func (p *faultyPool) dropClaims(t *testing.T) {
	claims, err := filepath.Glob(filepath.Join(p.e.Dirs.Run, "state", "*", "claims"))
	must(t, err)
	for _, c := range claims {
		must(t, os.RemoveAll(c))
	}
}

// repair does what the hint of a pool says that needs a check: dmlayer pool check --repair. It must lose nothing, as the kernel only refused to go on.
func (p *faultyPool) repair(t *testing.T) {
	t.Helper()
	r, err := pool.RepairMetadata(pooltest.Context(t), p.e.Dirs, p.e.Name, pool.RepairOptions{})
	must(t, err)
	if len(r.Losses) > 0 {
		t.Errorf("the repair has lost %+v", r.Losses)
	}
	must(t, os.Remove(r.Old)) // the disk is small
}

// judge looks whether everything is there that was acknowledged.
func (p *faultyPool) judge(t *testing.T) {
	t.Helper()
	ctx := pooltest.Context(t)
	s, err := layer.Open(ctx, p.e.Config())
	must(t, err)
	defer s.Close()
	var casts []*cast
	for _, a := range p.actors {
		casts = append(casts, a.cast)
	}
	have, err := look(ctx, s, casts)
	must(t, err)
	must(t, unclaimed(have, casts))
	for n, a := range p.actors {
		mine := have.owned(a.cast)
		before := a.state.unmounted()
		if o := p.under[n]; o == nil {
			must(t, before.differences(mine, true))
		} else if !o.allows(before, mine) {
			t.Errorf("failed in %s\n%v", o.text, before.differences(mine, true))
		}
		a.state, p.under[n] = mine, nil
	}
	names := map[string]bool{}
	for name := range have.Nodes {
		names[name] = true
	}
	must(t, fsck(ctx, s, have, names))
	if t.Failed() {
		t.FailNow()
	}
}

// stuck returns the tasks that wait and cannot be interrupted, and go on doing so.
func stuck(ctx context.Context) []string {
	waiting := func() map[string]bool {
		all := map[string]bool{}
		files, _ := filepath.Glob("/proc/[0-9]*/task/*/stat")
		for _, f := range files {
			b, err := os.ReadFile(f)
			if _, rest, ok := strings.Cut(string(b), ") "); err == nil && ok && strings.HasPrefix(rest, "D") {
				all[f+" "+string(b)] = true
			}
		}
		return all
	}
	// What is the same after each of many looks has not moved: the line holds the time that it has run.
	left := waiting()
	for range 50 {
		now := waiting()
		for task := range left {
			if !now[task] {
				delete(left, task)
			}
		}
		if len(left) == 0 || ctx.Err() != nil {
			break
		}
	}
	var tasks []string
	for task := range left {
		tasks = append(tasks, task)
	}
	return tasks
}

// TestFaulty makes metadata, data, records or the whole disk of a pool fail in several ways while it is used.
// There must be errors that say so, and no lies: what was acknowledged is there once the disk works again.
func TestFaulty(t *testing.T) {
	seed := seed(t)
	rnd := rand.New(rand.NewPCG(seed, 1<<34))
	places := []string{"metadata", "data", "records", "everything"}
	faults := []pooltest.Fault{pooltest.Fails, pooltest.FailsWrites, pooltest.FailsSometimes, pooltest.FailsReads}
	all := rnd.Perm(len(places) * len(faults))
	for _, k := range all[:min(setting(t, "FAULTS", 8), len(all))] {
		place, fault := places[k%len(places)], faults[k/len(places)]
		t.Run(place+" "+string(fault), func(t *testing.T) {
			p := newFaultyPool(t, seed)
			p.work(t, 5)
			files := map[string][]string{
				"metadata": {p.e.Metadata()}, "data": {p.e.Data()}, "records": {p.e.Store()},
			}[place]
			p.disk.Break(fault, files...)
			failures := p.workOnFaulty(t, 6)
			p.disk.Heal()
			if tasks := stuck(pooltest.Context(t)); len(tasks) > 0 {
				t.Errorf("stuck: %q", tasks)
			}
			p.restart(t)
			p.judge(t)
			p.work(t, 3)
			p.restart(t)
			must(t, p.e.Check(pooltest.Context(t)))
			for _, err := range failures {
				t.Logf("failed: %.300s", err)
			}
		})
	}
}

// TestRecordLost makes the last write of a transaction fail, the one that makes it true. The kernel keeps in
// memory what it could not write, takes it for written, and shows it to whoever reads the records next. He must
// not act on it as long as a reboot can take it back.
func TestRecordLost(t *testing.T) {
	for name, do := range map[string]func(context.Context, *layer.Store) error{
		"remove": func(ctx context.Context, s *layer.Store) error { return s.Remove(ctx, "s") },
		"reset":  func(ctx context.Context, s *layer.Store) error { return s.Reset(ctx, "s", "") },
		"rename": func(ctx context.Context, s *layer.Store) error { return s.Rename(ctx, "s", "t") },
		"snapshot": func(ctx context.Context, s *layer.Store) error {
			_, err := s.CreateSnapshot(ctx, "t", layer.SnapshotOptions{Parent: "s"})
			return err
		},
		"move a mounted one": func(ctx context.Context, s *layer.Store) error {
			m, err := s.Mount(ctx, "s", "", layer.MountOptions{})
			if err != nil {
				return err
			}
			_, err = s.Commit(ctx, "s", "t", layer.CommitOptions{Move: true})
			return errors.Join(err, s.Unmount(ctx, m.Dir))
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newFaultyPool(t, 1)
			ctx := pooltest.Context(t)
			s, err := layer.Open(ctx, p.e.Config())
			must(t, err)
			_, err = s.CreateSnapshot(ctx, "s", layer.SnapshotOptions{})
			must(t, err)
			const headers = 2 * 4096 // what is read of them is in memory
			p.disk.BreakHead(pooltest.Fails, p.e.Store(), headers)
			if err := do(ctx, s); err == nil {
				t.Fatal("succeeded")
			} else {
				_ = p.clean(t, name, err)
			}
			p.disk.Heal()
			must(t, s.Close())
			must(t, p.e.CheckLive(ctx)) // and recovers
			p.restart(t)
			must(t, p.e.Check(ctx))
			s, err = layer.Open(ctx, p.e.Config())
			must(t, err)
			infos, err := s.List(ctx)
			must(t, err)
			for _, i := range infos {
				_, err := lookAt(ctx, s, i)
				must(t, err)
			}
			must(t, s.Close())
			must(t, p.e.Check(ctx))
		})
	}
}
