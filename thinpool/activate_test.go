package thinpool_test

import (
	"context"
	"syscall"
	"testing"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/devmapper/dmtest"
	"github.com/dmlayer/dmlayer/thinpool"
)

func TestActivate(t *testing.T) {
	onBoth(t, func(t *testing.T, l lab) {
		p, dev := l.pool(t, 512)
		must(t, p.CreateThin(1), p.CreateSnap(2, 1))
		before := l.Stats()
		info, ref := l.thin(t, spec(dev, 1, 2048))
		if got, want := l.Stats(), [3]uint64{before["create"] + 1, before["load"] + 1, before["suspend/resume"] + 1}; [3]uint64{got["create"], got["load"], got["suspend/resume"]} != want {
			t.Errorf("ioctls %v, before %v", got, before)
		}
		if !info.Active || info.Suspended || info.ReadOnly || info.Name != "test-thin-1" || info.UUID != "DMLTEST-1" {
			t.Errorf("info %+v", info)
		}
		table, size, err := thinpool.ReadThin(l.Client, ref)
		if want := (thinpool.ThinTable{Pool: dev, ID: 1}); err != nil || table != want || size != 2048 {
			t.Errorf("table %+v, size %d, %v", table, size, err)
		}
		if s, err := thinpool.ReadThinStatus(l.Client, ref); err != nil || s.Mapped != 0 || s.Highest != nil || s.Fail || s.None {
			t.Errorf("status %+v, %v", s, err)
		}
		_, err = thinpool.Activate(l.Client, spec(dev, 1, 2048))
		wantError(t, "activate again", err, devmapper.ErrExists)
		same := spec(dev, 1, 2048)
		same.Name = "test-thin-other"
		_, err = thinpool.Activate(l.Client, same)
		wantError(t, "activate with the uuid", err, devmapper.ErrExists)

		readOnly := spec(dev, 2, 1000) // a size of its own, no multiple of a block
		readOnly.ReadOnly, readOnly.UUID = true, ""
		info, err = thinpool.Activate(l.Client, readOnly)
		must(t, err)
		defer l.remove(t, devmapper.ByDev(info.Dev))
		if !info.ReadOnly {
			t.Errorf("read-only: %+v", info)
		}
		if _, size, err := thinpool.ReadThin(l.Client, devmapper.ByDev(info.Dev)); err != nil || size != 1000 {
			t.Errorf("size %d, %v", size, err)
		}
	})
}

// TestActivateFails wants nothing left of what failed.
func TestActivateFails(t *testing.T) {
	onBoth(t, func(t *testing.T, l lab) {
		p, dev := l.pool(t, 512)
		must(t, p.CreateThin(1))
		_, err := thinpool.Activate(l.Client, spec(dev, 7, 2048))
		wantError(t, "no such id", err, thinpool.ErrNoDevice, syscall.Errno(61)) // Linux's ENODATA
		_, err = thinpool.Activate(l.Client, spec(devmapper.DevNum{Major: dev.Major, Minor: dev.Minor + 77}, 1, 2048))
		wantError(t, "no such pool", err)
		if err == nil {
			t.Error("no such pool: no error")
		}
		_, err = thinpool.Activate(l.Client, spec(dev, 1, 0))
		wantError(t, "no size", err, devmapper.ErrInvalid)
		_, err = thinpool.Activate(l.Client, spec(devmapper.DevNum{}, 1, 2048))
		wantError(t, "no pool", err, thinpool.ErrInvalid)
		_, err = thinpool.Activate(l.Client, spec(dev, thinpool.MaxID+1, 2048))
		wantError(t, "no id", err, thinpool.ErrInvalid)
		noName := spec(dev, 1, 2048)
		noName.Name = ""
		_, err = thinpool.Activate(l.Client, noName)
		wantError(t, "no name", err, devmapper.ErrInvalid)
		list, err := l.List("DMLTEST-")
		if err != nil || len(list) != 1 {
			t.Errorf("left behind: %+v, %v", list, err)
		}
		must(t, p.Delete(1))
	})
}

// TestActivateFailsBusy fails at the resume while somebody has the device open
// already: it goes when he closes it.
func TestActivateFailsBusy(t *testing.T) {
	k := dmtest.NewKernel()
	l := lab{k.Client(), metaDev, dataDev, k}
	p, dev := l.pool(t, 512)
	must(t, p.CreateThin(1))
	closeIt := func() {}
	k.Intercept(func(_ context.Context, r dmtest.Request) error {
		if r.Cmd != devmapper.CmdSuspend {
			return nil
		}
		var err error
		if closeIt, err = k.Open("test-thin-1"); err != nil {
			t.Error(err)
		}
		return syscall.ENOMEM
	})
	_, err := thinpool.Activate(l.Client, spec(dev, 1, 2048))
	wantError(t, "activate", err, syscall.ENOMEM)
	k.Intercept(nil)
	info, err := l.Info(devmapper.ByName("test-thin-1"))
	if err != nil || !info.DeferredRemove {
		t.Errorf("%+v, %v", info, err)
	}
	closeIt()
	_, err = l.Info(devmapper.ByName("test-thin-1"))
	if err == nil {
		t.Error("it is still there")
	}
	must(t, p.Delete(1))
}

func TestResize(t *testing.T) {
	onBoth(t, func(t *testing.T, l lab) {
		p, dev := l.pool(t, 512)
		must(t, p.CreateThin(1))
		s := spec(dev, 1, 2048)
		_, ref := l.thin(t, s)
		s.Size = 8192
		before := l.Stats()
		info, err := thinpool.Resize(l.Client, ref, s)
		if err != nil || info.Suspended || info.Inactive {
			t.Errorf("resize: %+v, %v", info, err)
		}
		if got := l.Stats(); got["suspend/resume"] != before["suspend/resume"]+1 || got["load"] != before["load"]+1 {
			t.Errorf("ioctls %v, before %v", got, before)
		}
		if _, size, err := thinpool.ReadThin(l.Client, ref); err != nil || size != 8192 {
			t.Errorf("size %d, %v", size, err)
		}
		s.ReadOnly = true
		if info, err := thinpool.Resize(l.Client, ref, s); err != nil || !info.ReadOnly {
			t.Errorf("read-only: %+v, %v", info, err)
		}
		s.ID = 9
		_, err = thinpool.Resize(l.Client, ref, s)
		wantError(t, "another id", err, thinpool.ErrNoDevice)
		if info, err := l.Info(ref); err != nil || info.Inactive || info.Suspended {
			t.Errorf("after the failure: %+v, %v", info, err)
		}
	})
}

// TestResizeFails at the resume, and wants the staged table gone.
func TestResizeFails(t *testing.T) {
	k := dmtest.NewKernel()
	l := lab{k.Client(), metaDev, dataDev, k}
	p, dev := l.pool(t, 512)
	must(t, p.CreateThin(1))
	s := spec(dev, 1, 2048)
	_, ref := l.thin(t, s)
	k.Intercept(func(_ context.Context, r dmtest.Request) error {
		if r.Cmd == devmapper.CmdSuspend {
			return syscall.EBUSY // somebody has frozen the file system
		}
		return nil
	})
	s.Size *= 2
	_, err := thinpool.Resize(l.Client, ref, s)
	wantError(t, "resize", err, devmapper.ErrBusy)
	k.Intercept(nil)
	info, err := l.Info(ref)
	if err != nil || info.Inactive {
		t.Errorf("%+v, %v", info, err)
	}
	if _, size, err := thinpool.ReadThin(l.Client, ref); err != nil || size != 2048 {
		t.Errorf("size %d, %v", size, err)
	}
}

// TestExternalOrigin has a table with a third field.
func TestExternalOrigin(t *testing.T) {
	onBoth(t, func(t *testing.T, l lab) {
		p, dev := l.pool(t, 512)
		must(t, p.CreateThin(1), p.CreateThin(2))
		originSpec := spec(dev, 1, 2048)
		originSpec.ReadOnly = true
		origin, _ := l.thin(t, originSpec)
		s := spec(dev, 2, 2048)
		s.Origin = &origin.Dev
		_, ref := l.thin(t, s)
		table, _, err := thinpool.ReadThin(l.Client, ref)
		if err != nil || table.Origin == nil || *table.Origin != origin.Dev {
			t.Errorf("table %+v, %v", table, err)
		}
		if deps, err := l.Deps(ref); err != nil || len(deps) != 2 {
			t.Errorf("deps %v, %v", deps, err)
		}
	})
}
