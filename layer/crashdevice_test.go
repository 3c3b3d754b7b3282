package layer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// deviceOperations are operations on a pool on two disks.
var deviceOperations = map[string]func(ctx context.Context, dirs pool.Dirs, data, metadata string) error{
	"create": func(ctx context.Context, dirs pool.Dirs, data, metadata string) error {
		return pool.Create(ctx, dirs, pool.Spec{
			Name: smallPool.Name, Backing: pool.BackingDevice, DataDevice: data, MetadataDevice: metadata, BaseSize: 16 << 20, Force: true,
		})
	},
	"destroy": func(ctx context.Context, dirs pool.Dirs, _, _ string) error {
		return pool.Destroy(ctx, dirs, smallPool.Name)
	},
	"start": func(ctx context.Context, dirs pool.Dirs, _, _ string) error {
		return pool.Start(ctx, dirs, smallPool.Name)
	},
	"import": func(ctx context.Context, dirs pool.Dirs, data, _ string) error {
		_, err := pool.Import(ctx, dirs, pool.ImportOptions{Devices: []string{data}})
		if errors.Is(err, layer.ErrExists) {
			return pool.Start(ctx, dirs, smallPool.Name)
		}
		return err
	},
	"recover": func(ctx context.Context, dirs pool.Dirs, _, _ string) error {
		_, err := pool.Inspect(ctx, dirs, smallPool.Name)
		if errors.Is(err, layer.ErrNotFound) {
			return nil
		}
		return err
	},
}

// childDevice runs one of deviceOperations: its name and the paths of the disks are the arguments.
func childDevice(ctx context.Context, j pooltest.Job) error {
	return deviceOperations[j.Args[0]](ctx, j.Dirs, j.Args[1], j.Args[2])
}

// usedDisks are two disks with somebody's data on them, and what they were.
type usedDisks struct {
	*pooltest.Env
	before [2][]byte
}

// newUsedDisks makes disks that a create with --force has to wipe at both ends.
func newUsedDisks(t *testing.T) *usedDisks {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.ThinCheck)
	d := &usedDisks{Env: &pooltest.Env{Dirs: pooltest.Dirs(t), Name: smallPool.Name}}
	rnd := rand.New(rand.NewSource(5))
	for i, size := range []int64{12<<20 + 512*3, 6 << 20} {
		disk := pooltest.NewLoopDisk(t, size, 0)
		b := make([]byte, size)
		rnd.Read(b[:5<<20])
		copy(b[1080:], "\x53\xef") // ext2
		copy(b[510:], "\x55\xaa")
		copy(b[0x200000:], "SKUL\xba\xbe")
		copy(b[size/512*512-512:], "EFI PART")
		f, err := fsutil.OpenDevice(disk.Path, true)
		must(t, err)
		_, err = f.WriteAt(b, 0)
		must(t, errors.Join(err, f.Sync(), f.Close()))
		d.before[i] = b
		if i == 0 {
			d.DataDisk = disk
		} else {
			d.MetadataDisk = disk
		}
	}
	return d
}

// untouched fails unless the disks are what they were, byte for byte.
func (d *usedDisks) untouched(t *testing.T) {
	t.Helper()
	for i, disk := range []*pooltest.LoopDisk{d.DataDisk, d.MetadataDisk} {
		now, err := os.ReadFile(disk.File)
		must(t, err)
		if bytes.Equal(now, d.before[i]) {
			continue
		}
		first, differ := -1, 0
		for at := range now {
			if now[at] != d.before[i][at] {
				if differ++; first < 0 {
					first = at
				}
			}
		}
		t.Errorf("disk %d: %d bytes differ, the first at %#x", i, differ, first)
	}
}

func (d *usedDisks) job(op string, hit int) pooltest.Job {
	return pooltest.Job{Op: "device", Dirs: d.Dirs, Args: []string{op, d.DataDisk.Path, d.MetadataDisk.Path}, Hit: hit}
}

func (d *usedDisks) do(t *testing.T, op string) error {
	t.Helper()
	return deviceOperations[op](pooltest.Context(t), d.Dirs, d.DataDisk.Path, d.MetadataDisk.Path)
}

// eachPoint runs fn, on disks of their own, for each of those points that an operation reaches that begin with one of prefixes: the others
// are those of every backing. With DMLAYER_TEST_LONG it is each.
func eachPoint(t *testing.T, op string, prepare func(d *usedDisks), fn func(d *usedDisks, hit int), prefixes ...string) {
	t.Helper()
	d := newUsedDisks(t)
	prepare(d)
	c := pooltest.Run(t, d.job(op, 0))
	c.Succeed()
	points := c.Hits()
	d.takeDown(t)
	all := os.Getenv("DMLAYER_TEST_LONG") != ""
	for hit := 1; hit <= len(points) && !t.Failed(); hit++ {
		if !all && !slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(points[hit-1], p) }) {
			continue
		}
		t.Run(fmt.Sprintf("%s at %d, %s", op, hit, points[hit-1]), func(t *testing.T) {
			d := newUsedDisks(t)
			prepare(d)
			fn(d, hit)
			d.takeDown(t)
		})
	}
}

func (d *usedDisks) takeDown(t *testing.T) {
	t.Helper()
	takeDown(t, d.Env)
	d.DataDisk.Detach(t)
	d.MetadataDisk.Detach(t)
}

// blank fails unless a pool could be made on the disks without --force.
func (d *usedDisks) blank(t *testing.T) {
	t.Helper()
	for _, disk := range []*pooltest.LoopDisk{d.DataDisk, d.MetadataDisk} {
		if found, err := fsutil.Probe(disk.Path); err != nil || len(found) > 0 {
			t.Errorf("%s carries %v, %v", disk.Path, found, err)
		}
	}
}

// A create that is killed is undone by the next command, whichever, wherever that is killed in turn.
func TestDeviceCreateKilledAnywhere(t *testing.T) {
	eachPoint(t, "create", func(*usedDisks) {}, func(d *usedDisks, hit int) {
		pooltest.RunKilled(t, d.job("create", hit))
		if hit%2 == 0 { // the next create undoes it first
			must(t, d.do(t, "create"))
			must(t, d.Check(pooltest.Context(t)))
			return
		}
		must(t, d.do(t, "recover"))
		must(t, nothingLeft(d.Env))
		d.untouched(t)
	}, "pool.create.disk", "pool.create.activated", "pool.create.labelled", "pool.start.metadata")
}

func TestDeviceRecoveryKilledAnywhere(t *testing.T) {
	half := func(d *usedDisks) {
		j := d.job("create", 0)
		j.Point = "pool.create.labelled"
		pooltest.RunKilled(t, j)
	}
	eachPoint(t, "recover", half, func(d *usedDisks, hit int) {
		pooltest.RunKilled(t, d.job("recover", hit))
		must(t, d.do(t, "recover"))
		must(t, nothingLeft(d.Env))
		d.untouched(t)
	}, "pool.create.disk")
}

// Whatever step of a create fails, the disks are at once what they were.
func TestDeviceCreateFailsAnywhere(t *testing.T) {
	points := 1
	for hit := 0; hit <= points && !t.Failed(); hit++ {
		d := newUsedDisks(t)
		j := d.job("create", hit)
		if j.Action = pooltest.ActionFail; hit == 0 {
			j.Action = ""
		}
		hits := 0
		fault.Set(j.Hook(func(string) { hits++ }))
		err := d.do(t, "create")
		fault.Set(nil)
		if hit == 0 {
			must(t, err)
			points = hits
			must(t, d.do(t, "destroy"))
			d.blank(t)
		} else {
			mustFail(t, err, pooltest.ErrInjected)
			must(t, nothingLeft(d.Env))
			d.untouched(t)
		}
		d.takeDown(t)
	}
}

func TestDeviceDestroyKilledAnywhere(t *testing.T) {
	create := func(d *usedDisks) { must(t, d.do(t, "create")) }
	eachPoint(t, "destroy", create, func(d *usedDisks, hit int) {
		pooltest.RunKilled(t, d.job("destroy", hit))
		must(t, d.do(t, "recover"))
		must(t, nothingLeft(d.Env))
		d.blank(t)
	}, "pool.destroy.disk")
}

func TestDeviceStartKilledAnywhere(t *testing.T) {
	stopped := func(d *usedDisks) {
		must(t, d.do(t, "create"))
		must(t, pool.Stop(pooltest.Context(t), d.Dirs, d.Name))
	}
	eachPoint(t, "start", stopped, func(d *usedDisks, hit int) {
		pooltest.RunKilled(t, d.job("start", hit))
		must(t, d.Check(pooltest.Context(t)))
	}, "pool.start.attached", "pool.start.metadata")
}

func TestDeviceImportKilledAnywhere(t *testing.T) {
	lost := func(d *usedDisks) {
		must(t, d.do(t, "create"))
		must(t, pool.Stop(pooltest.Context(t), d.Dirs, d.Name))
		must(t, os.RemoveAll(filepath.Dir(d.Store())))
	}
	eachPoint(t, "import", lost, func(d *usedDisks, hit int) {
		pooltest.RunKilled(t, d.job("import", hit))
		must(t, d.do(t, "import"))
		must(t, d.Check(pooltest.Context(t)))
	}, "pool.import")
}
