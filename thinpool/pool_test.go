package thinpool_test

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"testing"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/devmapper/dmtest"
	"github.com/dmlayer/dmlayer/thinpool"
)

func TestMessages(t *testing.T) {
	onBoth(t, func(t *testing.T, l lab) {
		p, dev := l.pool(t, 512)
		before := l.Stats()
		must(t, p.CreateThin(0), p.CreateThin(5), p.CreateSnap(6, 5), p.CreateThin(thinpool.MaxID))
		after := l.Stats()
		if m, s := after["message"]-before["message"], after["table/status"]-before["table/status"]; m != 4 || s != 4 {
			t.Errorf("4 messages took %d messages and %d looks at the status", m, s)
		}
		if after["info"] != before["info"] || after["version"] != before["version"] {
			t.Errorf("and others: %v, before %v", after, before)
		}
		wantError(t, "create what exists", p.CreateThin(5), thinpool.ErrExists, syscall.EEXIST)
		wantError(t, "snapshot onto what exists", p.CreateSnap(6, 0), thinpool.ErrExists)
		wantError(t, "snapshot of nothing", p.CreateSnap(8, 7), thinpool.ErrNoDevice)
		wantError(t, "delete nothing", p.Delete(7), thinpool.ErrNoDevice)
		wantError(t, "id too large", errors.Join(p.CreateThin(thinpool.MaxID+1)), thinpool.ErrInvalid)
		wantError(t, "origin too large", p.CreateSnap(9, thinpool.MaxID+1), thinpool.ErrInvalid)
		wantError(t, "delete too large", p.Delete(thinpool.MaxID+1), thinpool.ErrInvalid)

		must(t, p.SetTransactionID(0, 1<<63+7))
		wantError(t, "wrong transaction id", p.SetTransactionID(0, 1), thinpool.ErrTransactionID, syscall.EINVAL)
		s, err := p.Status()
		must(t, err)
		if s.TransactionID != 1<<63+7 || s.Mode != thinpool.ModeReadWrite || s.TotalData != 512 || s.UsedData != 0 || !s.Commits() ||
			s.HeldRoot != 0 || s.ErrorIfNoSpace || s.FreeMetadata() == 0 {
			t.Errorf("status %+v", s)
		}

		root, err := p.ReserveMetadataSnap()
		must(t, err)
		if root == 0 {
			t.Error("the metadata snapshot is in block 0")
		}
		_, err = p.ReserveMetadataSnap()
		wantError(t, "second metadata snapshot", err, thinpool.ErrBusy)
		must(t, p.ReleaseMetadataSnap())
		wantError(t, "release nothing", p.ReleaseMetadataSnap(), thinpool.ErrNoDevice)

		_, ref := l.thin(t, spec(dev, 6, 2048))
		wantError(t, "delete an active one", p.Delete(6), thinpool.ErrBusy)
		must(t, thinpool.Deactivate(l.Client, ref))
		must(t, p.Delete(6), p.Delete(5), p.Delete(0), p.Delete(thinpool.MaxID))
	})
}

func TestNotAPool(t *testing.T) {
	onBoth(t, func(t *testing.T, l lab) {
		p, dev := l.pool(t, 512)
		must(t, p.CreateThin(1))
		_, ref := l.thin(t, spec(dev, 1, 2048))
		_, err := thinpool.NewPool(l.Client, ref).Status()
		wantError(t, "status of a thin device", err, thinpool.ErrWrongTarget)
		_, _, err = thinpool.NewPool(l.Client, ref).Table()
		wantError(t, "table of a thin device", err, thinpool.ErrWrongTarget)
		_, err = thinpool.ReadThinStatus(l.Client, p.Ref())
		wantError(t, "thin status of a pool", err, thinpool.ErrWrongTarget)
		_, _, err = thinpool.ReadThin(l.Client, p.Ref())
		wantError(t, "thin table of a pool", err, thinpool.ErrWrongTarget)

		none := devmapper.ByName("test-none")
		_, err = thinpool.NewPool(l.Client, none).Status()
		wantError(t, "status of nothing", err, devmapper.ErrNotFound)
		wantError(t, "message to nothing", thinpool.NewPool(l.Client, none).CreateThin(3), devmapper.ErrNotFound)
		_, err = thinpool.ReadThinStatus(l.Client, none)
		wantError(t, "thin status of nothing", err, devmapper.ErrNotFound)
		wantError(t, "deactivate nothing", thinpool.Deactivate(l.Client, none), devmapper.ErrNotFound)

		_, err = l.Create("test-none", "") // a maker that died before it loaded a table
		must(t, err)
		defer l.remove(t, none)
		_, info, err := thinpool.NewPool(l.Client, none).StatusInfo()
		wantError(t, "status without a table", err, thinpool.ErrWrongTarget)
		if info.Active || info.Name != "test-none" {
			t.Errorf("info without a table: %+v", info)
		}
	})
}

func TestPoolReload(t *testing.T) {
	onBoth(t, func(t *testing.T, l lab) {
		p, _ := l.pool(t, 256)
		table, length, err := p.Table()
		if want := l.poolTable(); err != nil || table != want || length != 256*blockSize {
			t.Errorf("table %+v, length %d, %v", table, length, err)
		}
		table.ErrorIfNoSpace, table.NoDiscardPassdown, table.LowWater = true, true, 17
		before := l.Stats()["suspend/resume"]
		info, err := thinpool.ReloadPool(l.Client, p.Ref(), 512*blockSize, table)
		if err != nil || info.Suspended || info.Inactive {
			t.Fatalf("grow: %+v, %v", info, err)
		}
		if n := l.Stats()["suspend/resume"] - before; n != 1 {
			t.Errorf("%d suspends and resumes, want a single resume", n)
		}
		s, err := p.Status()
		if err != nil || s.TotalData != 512 || !s.ErrorIfNoSpace || s.Discard != thinpool.DiscardNoPassdown {
			t.Errorf("after growing: %+v, %v", s, err)
		}
		if got, _, err := p.Table(); err != nil || got != table {
			t.Errorf("table after growing: %+v, %v", got, err)
		}

		// Shorter than the pool is: the kernel finds out too late.
		_, err = thinpool.ReloadPool(l.Client, p.Ref(), 256*blockSize, table)
		wantError(t, "shrink", err, devmapper.ErrInvalid)
		s, info, err = p.StatusInfo()
		if err != nil || s.TotalData != 512 || info.Suspended || info.Inactive {
			t.Errorf("after the failure: %+v, %+v, %v", s, info, err)
		}
		if _, length, err := p.Table(); err != nil || length != 512*blockSize {
			t.Errorf("after the failure: length %d, %v", length, err)
		}
		must(t, p.CreateThin(1))

		table.BlockSize = 100
		_, err = thinpool.ReloadPool(l.Client, p.Ref(), 512*blockSize, table)
		wantError(t, "bad table", err, thinpool.ErrInvalid)
	})
}

// TestPoolTwice has a second pool on the same metadata, a second one of the
// same name, and one of another block size.
func TestPoolTwice(t *testing.T) {
	onBoth(t, func(t *testing.T, l lab) {
		p, _ := l.pool(t, 256)
		must(t, p.CreateThin(1))
		length := 256 * blockSize
		_, err := thinpool.ActivatePool(l.Client, "test-pool2", "", length, l.poolTable())
		wantError(t, "same metadata", err, devmapper.ErrBusy)
		_, err = thinpool.ActivatePool(l.Client, "test-pool", "", length, l.poolTable())
		wantError(t, "same name", err, devmapper.ErrExists)
		must(t, thinpool.Deactivate(l.Client, p.Ref()))

		other := l.poolTable()
		other.BlockSize *= 2
		_, err = thinpool.ActivatePool(l.Client, "test-pool", "", length, other)
		wantError(t, "other block size", err, devmapper.ErrInvalid)
		_, err = thinpool.ActivatePool(l.Client, "test-pool", "", length/2, l.poolTable())
		wantError(t, "shorter", err, devmapper.ErrInvalid)
		list, err := l.List("DMLTEST-")
		if err != nil || len(list) > 0 {
			t.Errorf("left behind: %+v, %v", list, err)
		}
		p, _ = l.pool(t, 256)
		wantError(t, "create what was there before", p.CreateThin(1), thinpool.ErrExists)
	})
}

// TestReadOnlyPool asks for it. A pool that is read-only from the start says
// so by the errno only; the status tells the rest.
func TestReadOnlyPool(t *testing.T) {
	onBoth(t, func(t *testing.T, l lab) {
		p, _ := l.pool(t, 256)
		must(t, thinpool.Deactivate(l.Client, p.Ref()))
		p, _ = l.pool(t, 256, func(t *thinpool.PoolTable) { t.ReadOnly = true })
		s, err := p.Status()
		if err != nil || s.Mode != thinpool.ModeReadOnly || s.NeedsCheck || s.Commits() {
			t.Errorf("status %+v, %v", s, err)
		}
		err = p.CreateThin(1)
		wantError(t, "create", err, thinpool.ErrReadOnly, syscall.EOPNOTSUPP)
		var state *thinpool.StateError
		if !errors.As(err, &state) || state.Status.Mode != thinpool.ModeReadOnly {
			t.Errorf("no state in %v", err)
		}
		if errors.Is(err, thinpool.ErrNeedsCheck) || errors.Is(err, thinpool.ErrOutOfSpace) || errors.Is(err, thinpool.ErrNotCommitted) {
			t.Errorf("too many classes: %v", err)
		}
	})
}

// TestNotCommitted is about the message that succeeds and is lost.
func TestNotCommitted(t *testing.T) {
	k := dmtest.NewKernel()
	l := lab{k.Client(), metaDev, dataDev, k}
	p, _ := l.pool(t, 256)
	must(t, p.CreateThin(1))
	k.Pool(metaDev).FailCommits()
	err := p.CreateThin(2)
	wantError(t, "create", err, thinpool.ErrNotCommitted, thinpool.ErrNeedsCheck)
	wantError(t, "create again", p.CreateThin(3), thinpool.ErrReadOnly, thinpool.ErrNeedsCheck)
	if ids := k.Pool(metaDev).IDs(); !slices.Equal(ids, []uint32{1}) {
		t.Errorf("ids %v", ids)
	}
	k.Pool(metaDev).Repair()
	must(t, p.CreateThin(2))
}

// TestStatusAfterMessageFails cannot tell: that is not committed either.
func TestStatusAfterMessageFails(t *testing.T) {
	k := dmtest.NewKernel()
	l := lab{k.Client(), metaDev, dataDev, k}
	p, _ := l.pool(t, 256)
	k.Intercept(func(_ context.Context, r dmtest.Request) error {
		if r.Cmd == devmapper.CmdTableStatus {
			return syscall.ENOMEM
		}
		return nil
	})
	wantError(t, "create", p.CreateThin(1), thinpool.ErrNotCommitted, syscall.ENOMEM)
	k.Intercept(nil)
}

func TestModesOfTheFake(t *testing.T) {
	k := dmtest.NewKernel()
	l := lab{k.Client(), metaDev, dataDev, k}
	p, dev := l.pool(t, 256)
	must(t, p.CreateThin(1))
	_, ref := l.thin(t, spec(dev, 1, 2048))
	pool := k.Pool(metaDev)

	pool.Use(256, 500)
	if s, err := p.Status(); err != nil || s.Mode != thinpool.ModeOutOfDataSpace || s.FreeData() != 0 {
		t.Errorf("full: %+v, %v", s, err)
	}
	must(t, p.CreateThin(2), p.Delete(2))

	pool.Use(0, 4096)
	err := p.CreateThin(2)
	wantError(t, "metadata full", err, thinpool.ErrReadOnly, thinpool.ErrOutOfSpace)

	pool.Fail()
	if s, err := p.Status(); err != nil || s.Mode != thinpool.ModeFail {
		t.Errorf("failed: %+v, %v", s, err)
	}
	wantError(t, "failed", p.CreateThin(2), thinpool.ErrReadOnly)
	if s, err := thinpool.ReadThinStatus(l.Client, ref); err != nil || !s.Fail {
		t.Errorf("thin of a failed pool: %+v, %v", s, err)
	}
	_, info, err := p.StatusInfo()
	if err != nil || info.EventNr != 3 {
		t.Errorf("%d events for 3 changes of the mode, %v", info.EventNr, err)
	}
}
