package layer_test

import (
	"context"
	"errors"
	"math/rand"
	"os"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// volumesOperations are operations on a pool on logical volumes. where is a disk, or a volume group with a thin pool.
var volumesOperations = map[string]func(ctx context.Context, dirs pool.Dirs, where string) error{
	"create": func(ctx context.Context, dirs pool.Dirs, where string) error {
		spec := pool.Spec{Name: smallPool.Name, Backing: pool.BackingLVM, BaseSize: 16 << 20}
		if strings.HasPrefix(where, "/") {
			spec.Device, spec.Force, spec.DataSize = where, true, 16<<20
		} else {
			spec.VG, spec.ThinPool = where, "tp"
		}
		return pool.Create(ctx, dirs, spec)
	},
	"destroy": func(ctx context.Context, dirs pool.Dirs, _ string) error {
		return pool.Destroy(ctx, dirs, smallPool.Name)
	},
	"start": func(ctx context.Context, dirs pool.Dirs, _ string) error {
		return pool.Start(ctx, dirs, smallPool.Name)
	},
	"stop": func(ctx context.Context, dirs pool.Dirs, _ string) error { return pool.Stop(ctx, dirs, smallPool.Name) },
	"extend": func(ctx context.Context, dirs pool.Dirs, _ string) error {
		more := pool.Extent{Bytes: 4 << 20, More: true}
		_, err := pool.Extend(ctx, dirs, smallPool.Name, pool.Extension{Data: more, Metadata: more})
		return err
	},
	"recover": func(ctx context.Context, dirs pool.Dirs, _ string) error {
		_, err := pool.Inspect(ctx, dirs, smallPool.Name)
		if errors.Is(err, layer.ErrNotFound) {
			return nil
		}
		return err
	},
}

func childVolumes(ctx context.Context, j pooltest.Job) error {
	return volumesOperations[j.Args[0]](ctx, j.Dirs, j.Args[1])
}

// newVolumesWorld is to be called after the disks have been made, which can go only when the pool has gone.
func newVolumesWorld(t *testing.T, where string) *volumesWorld {
	w := &volumesWorld{Env: &pooltest.Env{Dirs: pooltest.Dirs(t), Name: smallPool.Name}, t: t, where: where}
	t.Cleanup(func() {
		if err := w.do("destroy"); !errors.Is(err, layer.ErrNotFound) {
			must(t, err)
		}
	})
	return w
}

func (w *volumesWorld) do(op string) error {
	return volumesOperations[op](pooltest.Context(w.t), w.Dirs, w.where)
}

// volumesWorld is where they are interrupted.
type volumesWorld struct {
	*pooltest.Env
	t     *testing.T
	where string
}

func (w *volumesWorld) job(op, point string) pooltest.Job {
	return pooltest.Job{Op: "volumes", Dirs: w.Dirs, Args: []string{op, w.where}, Point: point}
}

func (w *volumesWorld) kill(op, point string) {
	w.t.Helper()
	pooltest.RunKilled(w.t, w.job(op, point))
}

func (w *volumesWorld) run(op string) {
	w.t.Helper()
	pooltest.Run(w.t, w.job(op, "")).Succeed()
}

func (w *volumesWorld) fail(op, point string) {
	w.t.Helper()
	j := w.job(op, point)
	j.Action = pooltest.ActionFail
	err, _ := pooltest.Run(w.t, j).Wait()
	mustFail(w.t, err, pooltest.ErrInjected)
}

// thorough tells whether what takes long is tried too, such as each point of a create where lvm2's programs take half a second each.
func thorough() bool { return os.Getenv("DMLAYER_TEST_LONG") != "" }

// Killed or failing anywhere, a create leaves the disk as it was, with all that it carried, and a destroy takes all away; start, stop and
// growth are finished by whoever comes next.
func TestVolumesInterrupted(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.LVM, testenv.ThinCheck)
	disk := pooltest.NewLoop(t, 64<<20)
	b := make([]byte, 12<<20)
	rand.New(rand.NewSource(7)).Read(b)
	copy(b[1080:], "\x53\xef") // ext2
	fill := func() {
		t.Helper()
		f, err := fsutil.OpenDevice(disk.Path, true)
		must(t, err)
		_, err = f.WriteAt(b, 0)
		must(t, errors.Join(err, f.Sync(), f.Close()))
	}
	fill()
	sum, err := pooltest.Checksum(disk.Path)
	must(t, err)

	w := newVolumesWorld(t, disk.Path)
	undone := func() {
		t.Helper()
		must(t, nothingLeft(w.Env))
		if now, err := pooltest.Checksum(disk.Path); err != nil || now != sum {
			t.Fatalf("the disk is not what it was: %v", err)
		}
	}
	points := w.points("create", "pool.lvm.physical-volume")
	fill()
	sum, err = pooltest.Checksum(disk.Path) // what a destroy left behind the first part is the disk's by now
	must(t, err)
	for _, point := range points {
		w.kill("create", point)
		w.run("recover")
		undone()
		if thorough() {
			w.fail("create", point)
			undone()
		}
	}
	// The recovery is killed, too.
	w.kill("create", "pool.lvm.data-volume")
	for _, point := range []string{"pool.lvm.volumes-removed", "pool.lvm.group-removed", "pool.lvm.disk-restored"} {
		if thorough() || point == "pool.lvm.disk-restored" {
			w.kill("recover", point)
		}
	}
	w.run("recover")
	undone()

	w.run("create")
	for _, step := range []struct{ from, op, point string }{
		{"start", "stop", "pool.lvm.deactivated"}, {"stop", "start", "pool.lvm.activated"}, {"start", "extend", "pool.lvm.grown-metadata"},
	} {
		w.run(step.from)
		w.kill(step.op, step.point)
	}
	w.run("extend")
	must(t, w.Check(pooltest.Context(t)))
	w.kill("destroy", "pool.lvm.group-removed")
	w.kill("recover", "pool.lvm.physical-volume-removed")
	w.run("recover")
	must(t, nothingLeft(w.Env))
	if found, err := fsutil.Probe(disk.Path); err != nil || len(found) > 0 {
		t.Errorf("left on the disk: %v, %v", found, err)
	}
}

// points returns some points of an operation, or all where there is time.
func (w *volumesWorld) points(op string, some ...string) []string {
	w.t.Helper()
	if !thorough() {
		return some
	}
	c := pooltest.Run(w.t, w.job(op, ""))
	c.Succeed()
	w.run("destroy")
	w.t.Log("all points:", c.Hits())
	return c.Hits()
}

// A thin pool whose place a pool was about to take is there again.
func TestVolumesReplacingInterrupted(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.LVM, testenv.ThinCheck)
	pooltest.NewVG(t, "testvg", pooltest.NewLoop(t, 64<<20))
	pooltest.LVM(t, "lvcreate", "-y", "--type", "thin-pool", "-L", "16m", "--poolmetadatasize", "4m", "-c", "128k", "-n", "tp", "testvg")
	w := newVolumesWorld(t, "testvg")
	w.kill("create", "pool.lvm.thin-pool-removed")
	w.kill("recover", "pool.lvm.thin-pool-restored")
	w.run("recover")
	must(t, nothingLeft(w.Env))
	if out := pooltest.LVM(t, "lvs", "--noheadings", "-o", "lv_name,segtype,chunk_size", "--units", "b", "testvg"); !strings.Contains(strings.Join(strings.Fields(out), " "), "tp thin-pool 131072B") {
		t.Errorf("the thin pool is not there: %s", out)
	}
}
