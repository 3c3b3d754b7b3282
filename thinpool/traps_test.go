package thinpool_test

import (
	"context"
	"errors"
	"testing"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/devmapper/dmtest"
	"github.com/dmlayer/dmlayer/thinpool"
)

// A pool whose resume fails is left suspended, with the wrong table live: all its devices hang until somebody puts the right
// one back.
func TestTrap05ResumeFails(t *testing.T) {
	onBoth(t, func(t *testing.T, l lab) {
		p, _ := l.pool(t, 512)
		must(t, p.CreateThin(1))
		table, _, err := p.Table()
		must(t, err)
		_, err = thinpool.ReloadPool(l.Client, p.Ref(), 256*blockSize, table)
		wantError(t, "a table shorter than the pool", err, devmapper.ErrInvalid)
		s, info, err := p.StatusInfo()
		if err != nil || s.TotalData != 512 || info.Suspended || info.Inactive {
			t.Errorf("after it: %+v, %+v, %v", s, info, err)
		}
		must(t, p.CreateThin(2))
	})
}

// The kernel takes a table with blocks of another size, and goes on with those that it has.
func TestTrap08OtherBlockSize(t *testing.T) {
	onBoth(t, func(t *testing.T, l lab) {
		p, _ := l.pool(t, 512)
		table, length, err := p.Table()
		must(t, err)
		other := table
		other.BlockSize *= 2
		_, err = thinpool.ReloadPool(l.Client, p.Ref(), length, other)
		wantError(t, "other blocks", err, thinpool.ErrInvalid)
		if now, _, err := p.Table(); err != nil || now != table {
			t.Errorf("the table is %+v, %v", now, err)
		}
		if info, err := l.Info(p.Ref()); err != nil || info.Inactive {
			t.Errorf("a table is staged: %+v, %v", info, err)
		}
	})
}

// The status of a pool commits its metadata unless it is asked for with the flag.
func TestTrap15StatusCommits(t *testing.T) {
	k := dmtest.NewKernel()
	c := k.Client()
	l := lab{c, metaDev, dataDev, k}
	p, dev := l.pool(t, 512)
	must(t, p.CreateThin(1))
	_, ref := l.thin(t, spec(dev, 1, 2048))
	asked := 0
	k.Intercept(func(_ context.Context, r dmtest.Request) error {
		if r.Cmd == devmapper.CmdTableStatus {
			asked++
			if r.Flags&dmtest.NoFlush == 0 {
				return errors.New("status without DM_NOFLUSH_FLAG")
			}
		}
		return nil
	})
	_, err := p.Status()
	must(t, err)
	_, err = thinpool.ReadThinStatus(c, ref)
	must(t, err, p.CreateThin(2), p.Delete(2))
	k.Intercept(nil)
	if asked < 4 {
		t.Errorf("%d times asked", asked)
	}
}
