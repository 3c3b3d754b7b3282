package layer_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta/metagen"
)

// leaves returns the leaves of a device whose mappings have two levels, and the first key of each.
func (m *poolMetadata) leaves(name string, e *pooltest.Env) (blocks, keys []uint64) {
	root := m.Block(m.root(node(m.t, e, name).ID))
	for i := range int(binary.LittleEndian.Uint32(root[16:])) {
		blocks = append(blocks, m.child(m.root(node(m.t, e, name).ID), i))
		keys = append(keys, binary.LittleEndian.Uint64(root[32+8*i:]))
	}
	return blocks, keys
}

// writeEach writes to some blocks of a node's device.
func writeEach(t testing.TB, s *layer.Store, name string, blocks ...uint64) {
	t.Helper()
	ctx := pooltest.Context(t)
	path, err := s.Attach(ctx, name, false)
	must(t, err)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	for _, b := range blocks {
		_, err := f.WriteAt([]byte(name), int64(b)*64<<10)
		must(t, err)
	}
	must(t, errors.Join(f.Sync(), f.Close()))
	must(t, s.Detach(ctx, name))
}

// crowdedPool is a stopped pool in whose metadata there is not enough room for its repair: every other leaf, which all nodes share, is damaged so that it is
// too small, and those between, which it is to be put together with, belong to pairs of snapshots.
func crowdedPool(t testing.TB, e *pooltest.Env) *poolMetadata {
	s := e.Open(t)
	makeLayer(t, s, "base", "", baseFiles)
	_, err := s.CreateSnapshot(pooltest.Context(t), "large", layer.SnapshotOptions{Size: 512 << 20})
	must(t, err)
	scatter(t, s, "large", 6000)
	m := stoppedMetadata(t, e)
	_, keys := m.leaves("large", e)
	var between []uint64
	for i := 1; i < len(keys); i += 2 {
		between = append(between, keys[i])
	}
	// Each pair has two roots and those leaves, and one that is the second's alone; the repair needs as many again.
	pairs := 1024 / (2*len(between) + 3)
	for i := range pairs {
		one, two := fmt.Sprintf("one%d", i), fmt.Sprintf("two%d", i)
		makeSnapshot(t, s, one, "large")
		writeEach(t, s, one, between...)
		makeSnapshot(t, s, two, one)
		writeEach(t, s, two, keys[len(keys)-2])
	}
	m = stoppedMetadata(t, e)
	leaves, _ := m.leaves("large", e)
	for i := 0; i < len(leaves); i += 2 {
		binary.LittleEndian.PutUint32(m.Block(leaves[i])[16:], 5)
		m.Blocks[leaves[i]] = metagen.Info{Kind: metagen.Node}
		m.Seal(leaves[i])
	}
	super := m.superblock()
	t.Logf("%d leaves, %d pairs, %d of %d blocks of metadata in use", len(leaves), pairs, super.MetadataSpace.Allocated, super.MetadataSpace.Blocks)
	m.save()
	return m
}

// A repair that does not fit into the metadata makes it larger, which the pool itself cannot before it is repaired; killed before it has the old place, it can be
// repeated.
func TestRepairGrowsMetadata(t *testing.T) {
	const size = 4 << 20
	e := pooltest.New(t, pool.Spec{DataSize: 2 << 30, MetadataSize: size, BaseSize: 64 << 20})
	ctx := pooltest.Context(t)
	crowdedPool(t, e)
	spare := e.Metadata() + ".spare"
	refused := errors.New("not now")
	var told pool.RepairReport
	_, err := pool.RepairMetadata(ctx, e.Dirs, e.Name, pool.RepairOptions{Confirm: func(r pool.RepairReport) error {
		told = r
		return refused
	}})
	if !errors.Is(err, refused) || told.MetadataSize <= size {
		t.Fatalf("got %v, told %d: %+v", err, told.MetadataSize, told)
	}
	for _, path := range []string{e.Metadata(), spare} {
		if st, err := os.Stat(path); err != nil || st.Size() > size {
			t.Errorf("%s after a repair that was not made: %v, %v", path, st.Size(), err)
		}
	}
	points := []string{"pool.repair.swapped"}
	if os.Getenv("DMLAYER_TEST_LONG") != "" {
		points = []string{"pool.repair.grown", "pool.repair.kept", "pool.repair.swapped"}
	}
	for _, point := range points {
		fault.Set(func(name string) error {
			pooltest.Reached(name)
			if name == point {
				return refused
			}
			return nil
		})
		_, err = pool.RepairMetadata(ctx, e.Dirs, e.Name, pool.RepairOptions{})
		fault.Set(nil)
		if !errors.Is(err, refused) {
			t.Fatalf("it was not interrupted at %s: %v", point, err)
		}
		if point != "pool.repair.swapped" {
			must(t, pool.Start(ctx, e.Dirs, e.Name)) // as it is
			must(t, pool.Stop(ctx, e.Dirs, e.Name))
		}
	}
	must(t, pool.Start(ctx, e.Dirs, e.Name))
	for _, f := range checkPool(t, e).Findings {
		if f.Class == pool.NeedsRepair && f.Code != pool.FoundNodeLoss || f.Class == pool.NeedsPerson {
			t.Errorf("found %+v", f)
		}
	}
	st, err := os.Stat(e.Metadata())
	must(t, err)
	if st.Size() != told.MetadataSize {
		t.Errorf("the metadata has %d bytes, told %d", st.Size(), told.MetadataSize)
	}
	now, err := pool.Extend(ctx, e.Dirs, e.Name, pool.Extension{Metadata: pool.Extent{Bytes: 4 << 20, More: true}})
	must(t, err)
	if now.Metadata != told.MetadataSize+4<<20 {
		t.Errorf("it does not grow any more: %+v", now)
	}
	wantWritable(t, e)
	wantFiles(t, e.Open(t), "base", baseFiles)
	_, err = pool.Check(ctx, e.Dirs, e.Name, pool.CheckOptions{Mend: func(pool.Finding) bool { return true }}) // the spare
	must(t, err)
	if st, err := os.Stat(spare); err != nil || st.Size() < now.Metadata {
		t.Errorf("spare: %v, %v", st, err)
	}
	old, err := filepath.Glob(e.Metadata() + ".damaged-*")
	must(t, err)
	if len(old) != 1 {
		t.Errorf("kept: %v", old)
	}
}

// A pool on disks takes what its metadata disk has become; until then the repair says that, and leaves all as it was.
func TestRepairGrowsMetadataDisk(t *testing.T) {
	if os.Getenv("DMLAYER_TEST_LONG") == "" {
		t.Skip("DMLAYER_TEST_LONG is not set: files have what is common to both")
	}
	const size = 4 << 20
	e := pooltest.NewDevice(t, pool.Spec{DataSize: 2 << 30, MetadataSize: size, BaseSize: 64 << 20}, 0)
	ctx := pooltest.Context(t)
	m := crowdedPool(t, e)
	_, err := pool.RepairMetadata(ctx, e.Dirs, e.Name, pool.RepairOptions{})
	mustFail(t, err, errs.ErrNoSpace)
	if hint := errs.Hint(err); !strings.Contains(hint, "when its devices do") {
		t.Errorf("it says %q", hint)
	}
	now := make([]byte, len(m.Bytes))
	f, err := os.Open(e.MetadataDisk.File)
	must(t, err)
	_, err = f.ReadAt(now, m.begin)
	must(t, errors.Join(err, f.Close()))
	if !slices.Equal(now, m.Bytes) {
		t.Error("a repair that was refused changed the metadata")
	}
	e.MetadataDisk.Resize(t, size+m.begin+4<<20)
	repairInterrupted(t, e)
}

// repairInterrupted repairs a crowded pool, at the third try.
func repairInterrupted(t *testing.T, e *pooltest.Env) {
	t.Helper()
	ctx := pooltest.Context(t)
	refused := errors.New("not now")
	for _, point := range []string{"pool.repair.grown", "pool.repair.swapped", ""} {
		fault.Set(func(name string) error {
			if name == point {
				return refused
			}
			return nil
		})
		_, err := pool.RepairMetadata(ctx, e.Dirs, e.Name, pool.RepairOptions{})
		fault.Set(nil)
		if point != "" && !errors.Is(err, refused) || point == "" && err != nil {
			t.Fatalf("%s: %v", point, err)
		}
		must(t, pool.Start(ctx, e.Dirs, e.Name))
		must(t, pool.Stop(ctx, e.Dirs, e.Name))
	}
	must(t, pool.Start(ctx, e.Dirs, e.Name))
	for _, f := range checkPool(t, e).Findings {
		if f.Class == pool.NeedsRepair && f.Code != pool.FoundNodeLoss || f.Class == pool.NeedsPerson {
			t.Errorf("found %+v", f)
		}
	}
	wantWritable(t, e)
	wantFiles(t, e.Open(t), "base", baseFiles)
}

// metadataVolume is the volume with the metadata of the pool that a test has on volumes.
func metadataVolume(t testing.TB) string {
	t.Helper()
	for _, name := range strings.Fields(pooltest.LVM(t, "lvs", "--noheadings", "-o", "lv_name", "testvg")) {
		if strings.HasSuffix(name, "metadata") || strings.HasSuffix(name, "meta") {
			return "/dev/testvg/" + name
		}
	}
	t.Fatal("there is no volume with metadata")
	return ""
}

// activated has a volume active until the result is called; what is no volume is left alone.
func activated(t testing.TB, path string) func() {
	volume, ok := strings.CutPrefix(path, "/dev/testvg/")
	if !ok {
		return func() {}
	}
	pooltest.LVM(t, "lvchange", "-ay", "testvg/"+volume)
	return func() { pooltest.LVM(t, "lvchange", "-an", "testvg/"+volume) }
}

// A pool on volumes takes what the volume group has.
func TestRepairGrowsMetadataVolume(t *testing.T) {
	if os.Getenv("DMLAYER_TEST_LONG") == "" {
		t.Skip("DMLAYER_TEST_LONG is not set: files have what is common to both")
	}
	const size = 4 << 20
	e := pooltest.NewLVM(t, 3<<30, pool.Spec{DataSize: 2 << 30, MetadataSize: size, BaseSize: 64 << 20})
	crowdedPool(t, e)
	repairInterrupted(t, e)
}
