package pool_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// wantSpare fails unless the spare has blocks for as much as the metadata has.
func wantSpare(t testing.TB, e *pooltest.Env, size int64) {
	t.Helper()
	st, err := os.Stat(filepath.Join(folder(e), "metadata.spare"))
	must(t, err)
	if have := st.Sys().(*syscall.Stat_t).Blocks * 512; st.Size() < size || have < size {
		t.Errorf("the spare has %d bytes, and blocks for %d; the metadata has %d", st.Size(), have, size)
	}
	if codes := found(t, e); len(codes) > 0 {
		t.Errorf("found: %v", codes)
	}
}

func found(t testing.TB, e *pooltest.Env) (codes []string) {
	t.Helper()
	r, err := pool.Check(pooltest.Context(t), e.Dirs, e.Name, pool.CheckOptions{})
	must(t, err)
	for _, f := range r.Findings {
		codes = append(codes, f.Code)
	}
	return codes
}

// tended is a look of the one who serves the pool.
func tended(t testing.TB, e *pooltest.Env) pool.Tended {
	t.Helper()
	p, err := pool.Open(pooltest.Context(t), e.Dirs, e.Name, nil)
	must(t, err)
	defer p.Close()
	seen, err := p.Tender().Look(pooltest.Context(t), true)
	must(t, err)
	return seen
}

// The spare for the metadata grows with it on every backing, by whomever that is made larger.
func TestSpareGrows(t *testing.T) {
	t.Run("files", func(t *testing.T) {
		g := newGrower(t)
		now, err := g.extend(pool.Extension{Metadata: pool.Extent{Bytes: 12 << 20}})
		must(t, err)
		wantSpare(t, g.e, now.Metadata)
	})
	t.Run("disks", func(t *testing.T) {
		e := pooltest.NewDevice(t, pool.Spec{DataSize: 64 << 20, MetadataSize: 8 << 20, BaseSize: 64 << 20}, 0)
		e.MetadataDisk.Resize(t, 13<<20)
		now, err := pool.Extend(pooltest.Context(t), e.Dirs, e.Name, pool.Extension{})
		must(t, err)
		wantSpare(t, e, now.Metadata)
		e.MetadataDisk.Resize(t, 17<<20)
		if seen := tended(t, e); seen.After.Metadata != 16<<20 {
			t.Errorf("%+v", seen)
		}
		wantSpare(t, e, 16<<20)
	})
	t.Run("volumes", func(t *testing.T) {
		e := pooltest.NewLVM(t, 96<<20, pool.Spec{DataSize: 24 << 20, MetadataSize: 4 << 20, BaseSize: 32 << 20})
		now, err := pool.Extend(pooltest.Context(t), e.Dirs, e.Name, pool.Extension{Metadata: pool.Extent{Bytes: 5 << 20}}) // which is made 8 MiB
		must(t, err)
		wantSpare(t, e, now.Metadata)
		pooltest.LVM(t, "lvextend", "-L", "+4m", "testvg/dmlayer-test-metadata")
		wantSpare(t, e, tended(t, e).After.Metadata)
	})
}

// A host that has no room for the spare keeps the metadata of a pool on disks from nothing: it grows, and check says what is missing.
func TestSpareWithoutRoom(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.ThinCheck)
	e := &pooltest.Env{Dirs: pooltest.Dirs(t), Name: pooltest.PoolName}
	ctx := pooltest.Context(t)
	tmpfs(t, e.Dirs.Root, "64m")
	e.DataDisk, e.MetadataDisk = pooltest.NewLoopDisk(t, 65<<20, 0), pooltest.NewLoopDisk(t, 5<<20, 0)
	must(t, pool.Create(ctx, e.Dirs, pool.Spec{
		Name: e.Name, Backing: pool.BackingDevice, DataDevice: e.DataDisk.Path, MetadataDevice: e.MetadataDisk.Path, BaseSize: 32 << 20,
	}))
	t.Cleanup(func() { must(t, pool.Destroy(pooltest.Context(t), e.Dirs, e.Name)) })
	ballast := filepath.Join(e.Dirs.Root, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 64<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	extend := func(size int64) pool.Sizes {
		t.Helper()
		e.MetadataDisk.Resize(t, size+1<<20)
		now, err := pool.Extend(ctx, e.Dirs, e.Name, pool.Extension{})
		must(t, err)
		if now.Metadata != size {
			t.Errorf("extended to %+v", now)
		}
		return now
	}
	if now := extend(8 << 20); !now.NoSpare {
		t.Error("it does not say that there is no spare")
	}
	if codes := found(t, e); !slices.Equal(codes, []string{pool.FoundSpareMissing}) {
		t.Errorf("found: %v", codes)
	}
	must(t, os.Remove(ballast))
	if now := extend(12 << 20); now.NoSpare {
		t.Error("it says that there is no spare")
	}
	wantSpare(t, e, 12<<20)
}
