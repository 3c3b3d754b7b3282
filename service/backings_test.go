package service_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// sizesOf returns the sizes of data and metadata as the running pool has them.
func sizesOf(t *testing.T, e *pooltest.Env) [2]int64 {
	t.Helper()
	st, err := pool.Inspect(pooltest.Context(t), e.Dirs, e.Name)
	must(t, err)
	if st.DataTotal == nil || st.MetadataTotal == nil {
		t.Fatalf("the pool does not run: %+v", st)
	}
	return [2]int64{*st.DataTotal, *st.MetadataTotal}
}

// Disks that become larger are taken as soon as they are, each for itself: nobody looks, and no time passes.
func TestDisksGrow(t *testing.T) {
	e := pooltest.NewDevice(t, pool.Spec{DataSize: 64 * mib, MetadataSize: 8 * mib, BaseSize: 64 * mib}, 0)
	before := sizesOf(t, e)
	srv := serve(t, e)
	e.DataDisk.Resize(t, 97*mib)
	srv.until("has grown", fmt.Sprintf("data=%d", 96*mib))
	e.MetadataDisk.Resize(t, 17*mib)
	srv.until("has grown", fmt.Sprintf("metadata=%d", 16*mib))
	if now := sizesOf(t, e); now[0] != 96*mib || now[1] < before[1]+7*mib {
		t.Errorf("from %v to %v", before, now)
	}
	// A writer fills more than there was.
	s := e.Open(t)
	dir := mountLarge(t, s, "web", 128*mib)
	must(t, writeFile(filepath.Join(dir, "file"), pattern(1, 70*mib)))
	must(t, s.Unmount(pooltest.Context(t), "web"))
}

// mountLarge mounts a new snapshot of that size.
func mountLarge(t *testing.T, s *layer.Store, name string, size int64) string {
	t.Helper()
	ctx := pooltest.Context(t)
	_, err := s.CreateSnapshot(ctx, name, layer.SnapshotOptions{Size: size})
	must(t, err)
	m, err := s.Mount(ctx, name, "", layer.MountOptions{})
	must(t, err)
	return m.Dir
}

// So is a dm device of somebody else, such as a volume or a multipath disk, that gets a larger table.
func TestMappedDiskGrows(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.ThinCheck)
	below, meta := pooltest.NewLoop(t, 128*mib), pooltest.NewLoopDisk(t, 9*mib, 0)
	dm, err := devmapper.Open()
	must(t, err)
	t.Cleanup(func() { must(t, dm.Close()) })
	const uuid = devmapper.UUID("TEST-grows")
	ref := devmapper.ByUUID(uuid)
	_, err = dm.Create("grows", uuid)
	must(t, err)
	t.Cleanup(func() {
		_, err := dm.Remove(ref, devmapper.RemoveOptions{})
		must(t, err)
	})
	load := func(size int64) string {
		must(t, dm.Load(ref, devmapper.LoadOptions{}, devmapper.Target{Length: devmapper.SectorsOf(uint64(size)), Type: "linear", Params: fmt.Sprintf("7:%d 0", below.Number)}))
		info, err := dm.Resume(ref, devmapper.ResumeOptions{})
		must(t, err)
		return fmt.Sprintf("/dev/dm-%d", info.Dev.Minor)
	}
	e := &pooltest.Env{Dirs: pooltest.Dirs(t), Name: pooltest.PoolName}
	must(t, pool.Create(pooltest.Context(t), e.Dirs, pool.Spec{
		Name: e.Name, Backing: pool.BackingDevice, DataDevice: load(33 * mib), MetadataDevice: meta.Path, BaseSize: 16 * mib,
	}))
	t.Cleanup(func() { must(t, pool.Destroy(pooltest.Context(t), e.Dirs, e.Name)) })
	srv := serve(t, e)
	load(65 * mib)
	srv.until("has grown", fmt.Sprintf("data=%d", 64*mib))
}

// lvSize returns the size of a volume.
func lvSize(t *testing.T, name string) (n int64) {
	t.Helper()
	for _, w := range strings.Fields(pooltest.LVM(t, "lvs", "--noheadings", "--nosuffix", "--units", "b", "-o", "lv_size", name)) {
		if _, err := fmt.Sscan(w, &n); err == nil {
			return n
		}
	}
	t.Fatalf("no size of %s", name)
	return 0
}

// A pool on volumes, made by itself or in the place of a thin pool, grows ahead of its writers by steps of its settings up to its limit,
// metadata first, and takes what somebody's lvextend has made larger as soon as it has.
func TestVolumesGrow(t *testing.T) {
	for _, thin := range []string{"", "tp"} {
		t.Run("thin pool "+thin, func(t *testing.T) {
			testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.LVM, testenv.ThinCheck)
			pooltest.NewVG(t, "testvg", pooltest.NewLoop(t, 512*mib))
			ctx := pooltest.Context(t)
			e := &pooltest.Env{Dirs: pooltest.Dirs(t), Name: pooltest.PoolName}
			spec := pool.Spec{
				Name: e.Name, Backing: pool.BackingLVM, VG: "testvg", ThinPool: thin, BaseSize: 256 * mib,
				Space: pool.Space{MinFree: -1, GrowAt: 50, GrowBy: 50, GrowLimit: 160 * mib},
			}
			if thin == "" {
				spec.DataSize, spec.MetadataSize = 64*mib, 4*mib
			} else {
				pooltest.LVM(t, "lvcreate", "-y", "--type", "thin-pool", "-L", "64m", "--poolmetadatasize", "4m", "-c", "64k", "-n", thin, "testvg")
			}
			must(t, pool.Create(ctx, e.Dirs, spec))
			t.Cleanup(func() { must(t, pool.Destroy(pooltest.Context(t), e.Dirs, e.Name)) })
			s := e.Open(t)
			srv := serve(t, e)
			wantFull(t, s, true)
			dir := mountLarge(t, s, "web", 256*mib)
			must(t, writeFile(filepath.Join(dir, "file"), pattern(1, 100*mib)))
			srv.look()
			srv.until("the pool does not grow", "160.0 MiB")
			if n := lvSize(t, "testvg/dmlayer-test-data"); n != 160*mib {
				t.Errorf("the volume of the data has %d bytes", n)
			}
			wantFull(t, s, false)
			if thin != "" {
				// By hand, beyond the limit; and the metadata.
				pooltest.LVM(t, "lvextend", "-L", "+32m", "testvg/dmlayer-test-data")
				srv.until("has grown", fmt.Sprintf("data=%d", 192*mib))
				pooltest.LVM(t, "lvextend", "-L", "+4m", "testvg/dmlayer-test-metadata")
				srv.until("has grown", fmt.Sprintf("metadata=%d", 8*mib))
			} else {
				// What is in use of the metadata is now more than the threshold.
				used, err := pool.Inspect(ctx, e.Dirs, e.Name)
				must(t, err)
				at := max(int(*used.MetadataUsed*100 / *used.MetadataTotal), 1)
				_, err = pool.SetSpace(ctx, e.Dirs, e.Name, func(space *pool.Space) { space.GrowAt, space.GrowBy = at, 200 })
				must(t, err)
				srv.until("has grown", fmt.Sprintf("metadata=%d", 12*mib))
			}
			must(t, s.Unmount(ctx, "web"))
		})
	}
}

// A disk that is not there yet when the service begins is waited for, whatever it is called when it comes.
func TestServeWaitsForDisks(t *testing.T) {
	e := pooltest.NewDevice(t, pool.Spec{DataSize: 64 * mib, MetadataSize: 8 * mib, BaseSize: 64 * mib}, 0)
	ctx := pooltest.Context(t)
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	e.DataDisk.Detach(t)
	e.MetadataDisk.Detach(t)
	srv := begin(t, e)
	srv.until("waiting for a disk", "data device")
	e.DataDisk.Attach(t)
	srv.until("waiting for a disk", "metadata device")
	e.MetadataDisk.Attach(t)
	srv.until("serving")
	must(t, srv.stop())
}
