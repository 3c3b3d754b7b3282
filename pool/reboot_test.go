package pool_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// machine is one that a pool lies in, as far as it forgets things when it is switched off.
type machine struct {
	t     *testing.T
	e     *pooltest.Env
	disks []*pooltest.LoopDisk
	vg    string
	taken []*pooltest.LoopDisk // of somebody else, which shift the names of what comes later
}

// off takes away all that a reboot takes away, without a word to dmlayer: kernel devices, from the top down, volumes, disks, and the run
// directory.
func (m *machine) off() {
	m.t.Helper()
	ctx := pooltest.Context(m.t)
	dm, err := devmapper.Open()
	must(m.t, err)
	defer dm.Close()
	prefixes := []devmapper.UUID{"DMLAYER-"}
	if m.vg != "" {
		prefixes = append(prefixes, "LVM-")
	}
	for _, prefix := range prefixes {
		for {
			list, err := dm.List(prefix)
			must(m.t, errors.Join(err, ctx.Err()))
			if len(list) == 0 {
				break
			}
			for _, d := range list { // what something lies on goes in a later round
				if _, err := dm.Remove(devmapper.ByUUID(d.UUID), devmapper.RemoveOptions{}); err != nil && !errors.Is(err, devmapper.ErrBusy) && !errors.Is(err, devmapper.ErrNotFound) {
					m.t.Fatal(err)
				}
			}
		}
	}
	for _, d := range append(m.disks, m.taken...) {
		d.Detach(m.t)
	}
	m.taken = nil
	must(m.t, os.RemoveAll(m.e.Dirs.Run))
}

// somethingElse takes the next name for a disk.
func (m *machine) somethingElse() {
	m.t.Helper()
	m.taken = append(m.taken, pooltest.NewLoopDisk(m.t, 1<<20, 0))
}

// on brings the disks back in an order, under other names, each of them late: without it, the pool is not started, and nothing is
// destroyed.
func (m *machine) on(order ...int) {
	m.t.Helper()
	ctx := pooltest.Context(m.t)
	m.somethingElse()
	for _, i := range order {
		if err := pool.Start(ctx, m.e.Dirs, m.e.Name); !errors.Is(err, pool.ErrAbsent) || !errors.Is(err, errs.ErrDamaged) || !strings.Contains(err.Error(), "missing") && !strings.Contains(err.Error(), "not there") {
			m.t.Errorf("with %d of %d disks: %v", i, len(order), err)
		}
		m.disks[i].Attach(m.t)
		m.somethingElse()
	}
}

// After a reboot every pool comes back with all that it held, whatever devices are called by then and in whatever order they come.
func TestReboot(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.Ext4, testenv.ThinCheck)
	small := pool.Spec{Name: pooltest.PoolName, BaseSize: 64 << 20}
	for name, lay := range map[string]func(t *testing.T, m *machine) pool.Spec{
		"loopback": func(*testing.T, *machine) pool.Spec {
			spec := small
			spec.Backing, spec.DataSize = pool.BackingLoopback, 256<<20
			return spec
		},
		"two disks": func(t *testing.T, m *machine) pool.Spec {
			m.disks = []*pooltest.LoopDisk{pooltest.NewLoopDisk(t, 257<<20, 0), pooltest.NewLoopDisk(t, 9<<20, 0)}
			m.e.DataDisk, m.e.MetadataDisk = m.disks[0], m.disks[1]
			spec := small
			spec.Backing, spec.DataDevice, spec.MetadataDevice = pool.BackingDevice, m.disks[0].Path, m.disks[1].Path
			return spec
		},
		"one disk": func(t *testing.T, m *machine) pool.Spec {
			testenv.Need(t, testenv.LVM)
			m.disks = []*pooltest.LoopDisk{pooltest.NewLoopDisk(t, 256<<20, 0)}
			m.vg = "dmlayer-test"
			spec := small
			spec.Backing, spec.Device = pool.BackingLVM, m.disks[0].Path
			return spec
		},
		"volume group": func(t *testing.T, m *machine) pool.Spec {
			m.disks, m.vg = vgOn(t, "testvg", 128<<20, 128<<20), "testvg"
			spec := small
			spec.Backing, spec.VG, spec.DataSize = pool.BackingLVM, m.vg, 200<<20
			return spec
		},
		"thin pool": func(t *testing.T, m *machine) pool.Spec {
			m.disks, m.vg = vgOn(t, "testvg", 128<<20, 128<<20), "testvg"
			pooltest.LVM(t, "lvcreate", "-y", "--type", "thin-pool", "-L", "200m", "--poolmetadatasize", "8m", "-c", "64k", "-n", "tp", "testvg")
			spec := small
			spec.Backing, spec.VG, spec.ThinPool = pool.BackingLVM, m.vg, "tp"
			return spec
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := &machine{t: t, e: &pooltest.Env{Dirs: pooltest.Dirs(t), Name: pooltest.PoolName}}
			ctx := pooltest.Context(t)
			must(t, pool.Create(ctx, m.e.Dirs, lay(t, m)))
			fillPool(t, m.e)
			orders := [][]int{{0, 1}, {1, 0}}
			if len(m.disks) < 2 {
				orders = [][]int{{0}, {0}}[:max(len(m.disks), 1)]
			}
			if len(m.disks) == 0 {
				orders[0] = nil
			}
			for _, order := range orders {
				m.off()
				m.on(order...)
				wantPool(t, m.e) // which starts it
			}
			must(t, m.e.Check(ctx))
			destroy(t, m.e)
			if m.vg == "testvg" {
				pooltest.LVM(t, "vgremove", "-f", "-y", m.vg)
			}
			for _, d := range m.taken {
				d.Detach(t)
			}
		})
	}
}
