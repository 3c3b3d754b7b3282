package layer_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta/metagen"
)

// Each way to damage metadata is found for what it is, in words, and a repair of it ends: with what it would cost, or with
// why it cannot be done.
func TestCheckEveryDamage(t *testing.T) {
	e := pooltest.New(t, smallPool)
	sound := stoppedMetadata(t, e)
	defer sound.save()
	_, transaction := poolRecord(t, e)
	p := metagen.New(metagen.Options{MetadataBlocks: 1024, DataBlocks: 4096, Seed: 7})
	p.TransactionID, p.Time = transaction, 3
	p.Thin(0)
	p.Write(0, 0, 2)
	for id := uint64(1); id < 6; id++ {
		p.Thin(id)
		p.Write(id, id*10, 400)
	}
	p.Snap(9, 3)
	p.Write(9, 40, 30)
	rnd := rand.New(rand.NewPCG(1, 2))
	codes := map[metagen.Effect][]string{
		metagen.Damaged: {pool.FoundMetadataDamaged, pool.FoundMetadataUnreadable, pool.FoundNeedsCheck, pool.FoundMetadataForeign},
		metagen.Leaked:  {pool.FoundMetadataLeak, pool.FoundMetadataDamaged},
		metagen.Stale:   {pool.FoundMetadataStale},
	}
	refused := errors.New("not now")
	for _, d := range metagen.Damages() {
		im := p.Image()
		if !d.Apply(im, rnd) || len(im.Bytes) < 1024*thinmeta.BlockSize {
			continue // the file is longer
		}
		m := &poolMetadata{t, e.Metadata(), 0, im}
		m.save()
		r := checkPool(t, e)
		if !r.Has(codes[d.Effect]...) {
			t.Errorf("%s: found %q", d.Name, found(r))
		}
		_, err := pool.RepairMetadata(pooltest.Context(t), e.Dirs, e.Name, pool.RepairOptions{Confirm: func(pool.RepairReport) error { return refused }})
		if !errors.Is(err, refused) && !errors.Is(err, layer.ErrDamaged) {
			t.Errorf("%s: repair: %v", d.Name, err)
		}
	}
}

func poolRecord(t testing.TB, e *pooltest.Env) (uuid string, transaction uint64) {
	t.Helper()
	st, err := pool.Inspect(pooltest.Context(t), e.Dirs, e.Name)
	must(t, err)
	return st.UUID, *st.TransactionID
}

// A disk that fails under the metadata makes errors that say so; what can be read stays readable; and once the disk works
// again, a repair loses nothing.
func TestDamagedDisk(t *testing.T) {
	for _, fault := range []pooltest.Fault{pooltest.FailsWrites, pooltest.Fails} {
		t.Run(string(fault), func(t *testing.T) {
			ctx := pooltest.Context(t)
			dirs := pooltest.Dirs(t)
			disk := pooltest.NewFaultyDisk(t, dirs.Root, 512<<20)
			e := &pooltest.Env{Dirs: dirs, Name: smallPool.Name}
			must(t, pool.Create(ctx, dirs, smallPool))
			t.Cleanup(func() { must(t, pool.Destroy(context.WithoutCancel(ctx), dirs, e.Name)) })
			s := e.Open(t)
			makeLayer(t, s, "base", "", baseFiles)
			makeSnapshot(t, s, "web", "base")

			disk.Break(fault, e.Metadata())
			_, err := s.CreateSnapshot(ctx, "more", layer.SnapshotOptions{Parent: "base"})
			mustFail(t, err, layer.ErrDamaged)
			readable(t, e, fault == pooltest.FailsWrites)
			r := checkPool(t, e)
			t.Logf("found %q", found(r))
			if !r.MetadataDamaged() {
				t.Errorf("found %+v", r.Findings)
			}

			disk.Heal()
			repair(t, e)
			wantFound(t, e)
			s = e.Open(t)
			wantFiles(t, s, "web", baseFiles)
			makeSnapshot(t, s, "again", "base")
			must(t, e.CheckLive(ctx))
		})
	}
}

// readable checks that what is recorded can be seen, and what is in a layer where the pool can still be read.
func readable(t *testing.T, e *pooltest.Env, contents bool) {
	t.Helper()
	ctx := pooltest.Context(t)
	s, err := layer.OpenRecords(ctx, e.Config())
	must(t, err)
	defer s.Close()
	infos, err := s.List(ctx)
	must(t, err)
	if len(infos) != 2 {
		t.Errorf("nodes %+v", infos)
	}
	if _, err := s.Inspect(ctx, "web"); err != nil {
		t.Error(err)
	}
	if _, err := pool.Inspect(ctx, e.Dirs, e.Name); err != nil {
		t.Error(err)
	}
	if contents {
		wantFiles(t, s, "base", baseFiles)
		m, err := s.Mount(ctx, "base", "", layer.MountOptions{ReadOnly: true})
		must(t, err)
		must(t, s.Unmount(ctx, m.Dir))
	}
}

// Blocks of the metadata that cannot be read cost what was in them, or the repair says why it cannot be done and has
// changed nothing.
func TestUnreadableMetadata(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.ThinCheck)
	ctx := pooltest.Context(t)
	dirs := pooltest.Dirs(t)
	disk := pooltest.NewFaultyDisk(t, dirs.Root, 512<<20)
	e := &pooltest.Env{Dirs: dirs, Name: smallPool.Name}
	must(t, pool.Create(ctx, dirs, smallPool))
	t.Cleanup(func() { must(t, pool.Destroy(context.WithoutCancel(ctx), dirs, e.Name)) })
	s := e.Open(t)
	makeLayer(t, s, "base", "", baseFiles)
	must(t, pool.Stop(ctx, dirs, e.Name))
	before, err := os.ReadFile(e.Metadata())
	must(t, err)

	disk.Break(pooltest.FailsReads, e.Metadata())
	must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
	r := checkPool(t, e)
	if !r.MetadataDamaged() {
		t.Errorf("found %+v", r.Findings)
	}
	t.Logf("found %q", found(r))
	refused := errors.New("not now")
	var told pool.RepairReport
	_, err = pool.RepairMetadata(ctx, dirs, e.Name, pool.RepairOptions{Confirm: func(r pool.RepairReport) error { told = r; return refused }})
	t.Logf("repair: %v, %+v", err, told)
	if !errors.Is(err, refused) && !errors.Is(err, layer.ErrDamaged) {
		t.Errorf("repair: %v", err)
	}
	disk.Heal()
	must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
	after, err := os.ReadFile(e.Metadata())
	must(t, err)
	if !slices.Equal(before, after) {
		t.Error("the metadata was changed")
	}
	repair(t, e)
	wantFiles(t, e.Open(t), "base", baseFiles)
	must(t, e.CheckLive(ctx))
}
