package layer_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
	"github.com/dmlayer/dmlayer/thinpool"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta/metagen"
)

// poolMetadata is the metadata file of a stopped pool, to be damaged.
type poolMetadata struct {
	t     testing.TB
	path  string
	begin int64 // of the metadata in it
	*metagen.Image
}

func stoppedMetadata(t testing.TB, e *pooltest.Env) *poolMetadata {
	t.Helper()
	must(t, pool.Stop(pooltest.Context(t), e.Dirs, e.Name))
	path, begin := e.Metadata(), int64(0)
	if e.MetadataDisk != nil {
		path, begin = e.MetadataDisk.File, 1<<20 // behind the header
	} else if _, err := os.Stat(path); err != nil {
		path = metadataVolume(t)
		defer activated(t, path)()
	}
	b, err := os.ReadFile(path)
	must(t, err)
	b = b[begin:]
	return &poolMetadata{t, path, begin, &metagen.Image{Bytes: b, Blocks: map[uint64]metagen.Info{0: {Kind: metagen.Superblock}}}}
}

// save writes the file in place: it keeps its blocks.
func (m *poolMetadata) save() {
	m.t.Helper()
	defer activated(m.t, m.path)()
	f, err := os.OpenFile(m.path, os.O_WRONLY, 0)
	must(m.t, err)
	_, err = f.WriteAt(m.Bytes, m.begin)
	must(m.t, errors.Join(err, f.Sync(), f.Close()))
}

// wantCheck sets the mark with which the kernel asks for a check.
func (m *poolMetadata) wantCheck() {
	const flags, needsCheck = 4, 1
	m.Block(0)[flags] |= needsCheck
	m.Seal(0)
}

// root returns the block where a device's mappings begin.
func (m *poolMetadata) root(id metadata.ThinID) uint64 {
	m.t.Helper()
	meta, err := thinmeta.Open(m.Image, thinmeta.Options{})
	must(m.t, err)
	d, err := meta.Device(pooltest.Context(m.t), uint64(id))
	must(m.t, err)
	return d.Root
}

// child returns a block below an internal node: 32 bytes of header, keys, children.
func (m *poolMetadata) child(block uint64, n int) uint64 {
	b := m.Block(block)
	entries := binary.LittleEndian.Uint32(b[20:])
	return binary.LittleEndian.Uint64(b[32+8*int(entries)+8*n:])
}

func (m *poolMetadata) garble(block uint64) {
	for i := range m.Block(block) {
		m.Block(block)[i] ^= 0x5a
	}
}

// scatter writes to many blocks of a node's device, so that its mappings take several metadata blocks.
func scatter(t testing.TB, s *layer.Store, name string, blocks int) {
	t.Helper()
	ctx := pooltest.Context(t)
	path, err := s.Attach(ctx, name, false)
	must(t, err)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	for i := range blocks {
		_, err := f.WriteAt([]byte(strings.Repeat(name, 64)), int64(i)*64<<10+32<<10)
		must(t, err)
	}
	must(t, errors.Join(f.Sync(), f.Close()))
	must(t, s.Detach(ctx, name))
}

func checkPool(t testing.TB, e *pooltest.Env) pool.CheckReport {
	t.Helper()
	r, err := pool.Check(pooltest.Context(t), e.Dirs, e.Name, pool.CheckOptions{})
	must(t, err)
	return noteCodes(r)
}

// found returns code and node of what needs a repair or a person, and of devices that nobody uses: harmless as they are, dmlayer
// itself must not leave any.
func found(r pool.CheckReport) (list []string) {
	for _, f := range r.Findings {
		if f.Class == pool.NeedsRepair || f.Class == pool.NeedsPerson || f.Code == pool.FoundDeviceUnused {
			list = append(list, strings.TrimSpace(f.Code+" "+f.Node))
		}
	}
	return slices.Compact(list)
}

func wantFound(t testing.TB, e *pooltest.Env, want ...string) {
	t.Helper()
	if r := checkPool(t, e); !slices.Equal(found(r), want) {
		t.Errorf("found %q, want %q: %+v", found(r), want, r.Findings)
	}
}

// brokenPool is a stopped pool with a layer and snapshots, one of which has many blocks.
func brokenPool(t testing.TB) (*pooltest.Env, *poolMetadata) {
	e := pooltest.New(t, pool.Spec{DataSize: 512 << 20, BaseSize: 64 << 20})
	s := e.Open(t)
	makeLayer(t, s, "base", "", baseFiles)
	makeSnapshot(t, s, "small", "base")
	makeSnapshot(t, s, "large", "")
	scatter(t, s, "large", 700)
	return e, stoppedMetadata(t, e)
}

func repair(t testing.TB, e *pooltest.Env) pool.RepairReport {
	t.Helper()
	r, err := pool.RepairMetadata(pooltest.Context(t), e.Dirs, e.Name, pool.RepairOptions{})
	must(t, err)
	return r
}

func node(t testing.TB, e *pooltest.Env, name string) metadata.Node {
	t.Helper()
	n, err := e.Node(pooltest.Context(t), name)
	must(t, err)
	return n
}

// A pool of which the kernel wants the metadata checked is checked, and loses nothing.
func TestRepairNeedsCheck(t *testing.T) {
	e, m := brokenPool(t)
	m.wantCheck()
	m.save()
	wantFound(t, e, "needs-check")
	must(t, pool.Start(pooltest.Context(t), e.Dirs, e.Name)) // to be read
	wantFound(t, e, "needs-check")
	r := repair(t, e)
	if !r.Sound || len(r.Losses) > 0 || r.Old == "" {
		t.Errorf("report %+v", r)
	}
	kept, err := os.ReadFile(r.Old)
	must(t, err)
	if !slices.Equal(kept, m.Bytes) {
		t.Error("the old metadata is not kept as it was")
	}
	wantFound(t, e)
	wantFiles(t, e.Open(t), "small", baseFiles)
}

// A damaged part of one node's mappings costs that part of that node, says so before, and nothing else.
func TestRepairDamagedNode(t *testing.T) {
	e, m := brokenPool(t)
	m.garble(m.child(m.root(node(t, e, "large").ID), 1))
	m.save()
	wantFound(t, e, "metadata-damaged", "node-damaged large")
	refused := errors.New("not now")
	var told pool.RepairReport
	_, err := pool.RepairMetadata(pooltest.Context(t), e.Dirs, e.Name, pool.RepairOptions{Confirm: func(r pool.RepairReport) error {
		told = r
		return refused
	}})
	if !errors.Is(err, refused) {
		t.Fatalf("repaired though it must not: %v", err)
	}
	t.Logf("said: %q, losses %v, appeared %v", told.Said, told.Losses, told.Appeared)
	if len(told.Losses) != 1 || told.Losses[0].Node != "large" || told.Losses[0].Blocks < 100 || told.Losses[0].Of < 700 {
		t.Errorf("losses %+v", told.Losses)
	}
	now, err := os.ReadFile(e.Metadata())
	must(t, err)
	if !slices.Equal(now, m.Bytes) {
		t.Error("a repair that was refused changed the metadata")
	}
	r := repair(t, e)
	if !slices.Equal(r.Losses, told.Losses) {
		t.Errorf("lost %v, and told of %v", r.Losses, told.Losses)
	}
	s := e.Open(t)
	wantFiles(t, s, "small", baseFiles)
	wantFiles(t, s, "base", baseFiles)
	ctx := pooltest.Context(t)
	if _, err := s.Get(ctx, "large"); err != nil {
		t.Error(err)
	}
	for _, f := range checkPool(t, e).Findings {
		if f.Code == pool.FoundNodeMissing || f.Code == pool.FoundNodeLoss {
			must(t, s.Remove(ctx, "large"))
		}
	}
	must(t, e.CheckLive(ctx))
}

// Without a superblock the records say what stood in it.
func TestRepairWithoutSuperblock(t *testing.T) {
	e, m := brokenPool(t)
	m.garble(0)
	m.save()
	wantFound(t, e, "metadata-unreadable")
	r := repair(t, e)
	if r.Unreadable == "" || len(r.Losses) > 0 {
		t.Errorf("report %+v", r)
	}
	wantFound(t, e)
	s := e.Open(t)
	wantFiles(t, s, "small", baseFiles)
}

// In a pool that was stopped, a lost superblock loses nothing, whatever the pool has been through and whatever else of the metadata is hit: a copy of it is kept until
// the pool is started, and so are those of the blocks that lead from there to the devices.
func TestRepairSuperblockKept(t *testing.T) {
	e := pooltest.New(t, pool.Spec{DataSize: 512 << 20, BaseSize: 64 << 20})
	ctx := pooltest.Context(t)
	s := e.Open(t)
	makeLayer(t, s, "base", "", baseFiles)
	kept := e.Metadata() + ".superblock"
	var early []byte
	for i := range 12 {
		name := fmt.Sprintf("s%d", i)
		makeSnapshot(t, s, name, "base")
		scatter(t, s, name, 20+i*5)
		if i%3 == 0 {
			must(t, s.Remove(ctx, name))
		}
		if i == 6 { // the copy of this stop is of no use later
			must(t, pool.Stop(ctx, e.Dirs, e.Name))
			b, err := os.ReadFile(kept)
			if err != nil {
				t.Error(err)
			}
			early = b
			must(t, pool.Start(ctx, e.Dirs, e.Name))
			if _, err := os.Stat(kept); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a pool that runs has a copy of an old superblock: %v", err)
			}
		}
	}
	m := stoppedMetadata(t, e)
	super := m.superblock()
	m.garble(0)
	m.save()
	wantFound(t, e, "metadata-unreadable")
	now, err := os.ReadFile(kept)
	must(t, err)
	must(t, os.WriteFile(kept, early, 0o600)) // which is of another time, and is not taken for it
	if r, err := pool.RepairMetadata(ctx, e.Dirs, e.Name, pool.RepairOptions{}); err == nil && len(r.Appeared) > 0 {
		t.Errorf("with an old copy: %+v", r)
	} else if err != nil {
		mustFail(t, err, layer.ErrDamaged)
		if errors.Is(err, pool.ErrMispaired) {
			t.Errorf("an old copy was used: %v", err)
		}
		must(t, os.WriteFile(kept, now, 0o600))
	}
	m.garble(super.MappingRoot)
	m.garble(super.DetailsRoot)
	m.save()
	if r := repair(t, e); len(r.Losses) > 0 || len(r.Appeared) > 0 || r.Label {
		t.Errorf("report %+v", r)
	}
	wantFound(t, e)
	wantFiles(t, s, "base", baseFiles)
	makeSnapshot(t, s, "new", "base")

	// With another block hit, only what that says is lost.
	m = stoppedMetadata(t, e)
	root := m.root(node(t, e, "s10").ID)
	m.garble(0)
	m.garble(root)
	m.save()
	r := repair(t, e)
	if len(r.Losses) != 1 || r.Losses[0].Node != "s10" {
		t.Errorf("report %+v", r)
	}
	must(t, s.Remove(ctx, "s10"))
}

// A repair that loses the label makes it again from the records, and says so before.
func TestRepairWithoutLabel(t *testing.T) {
	e, m := brokenPool(t)
	ctx := pooltest.Context(t)
	m.garble(m.root(0))
	m.save()
	wantFound(t, e, "label-lost", "metadata-damaged", "node-damaged")
	must(t, pool.Start(ctx, e.Dirs, e.Name)) // to be read
	s := e.Open(t)
	wantFiles(t, s, "base", baseFiles)
	_, err := s.CreateSnapshot(ctx, "x", layer.SnapshotOptions{Parent: "base"})
	mustFail(t, err, layer.ErrDamaged)

	refused := errors.New("not now")
	_, err = pool.RepairMetadata(ctx, e.Dirs, e.Name, pool.RepairOptions{Confirm: func(r pool.RepairReport) error {
		if !r.Label {
			t.Errorf("it does not say that the label is lost: %+v", r)
		}
		return refused
	}})
	if !errors.Is(err, refused) {
		t.Errorf("repaired though it must not: %v", err)
	}
	now, err := os.ReadFile(e.Metadata())
	must(t, err)
	if !slices.Equal(now, m.Bytes) {
		t.Error("a repair that was refused changed the metadata")
	}
	// Interrupted between the metadata and the label, it can be repeated.
	fault.Set(func(name string) error {
		pooltest.Reached(name)
		if name == "pool.repair.unlabelled" {
			return refused
		}
		return nil
	})
	_, err = pool.RepairMetadata(ctx, e.Dirs, e.Name, pool.RepairOptions{})
	fault.Set(nil)
	if !errors.Is(err, refused) {
		t.Errorf("it was not interrupted: %v", err)
	}
	must(t, pool.Start(ctx, e.Dirs, e.Name)) // to be read
	wantFound(t, e, "label-lost", "read-only")
	r := repair(t, e)
	if !r.Label || !r.Sound {
		t.Errorf("report %+v", r)
	}
	wantFound(t, e)
	s = e.Open(t)
	wantFiles(t, s, "small", baseFiles)
	// The new label has a copy of the records that can be used.
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	must(t, os.Remove(e.Store()))
	must(t, os.RemoveAll(filepath.Join(e.Dirs.Root, "backups")))
	_, err = pool.Import(ctx, e.Dirs, pool.ImportOptions{Dir: filepath.Dir(e.Store())})
	must(t, err)
	wantFiles(t, e.Open(t), "small", baseFiles)
}

// What is in use is not stopped for a repair.
func TestRepairInUse(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	makeSnapshot(t, s, "web", "")
	mount(t, s, "web")
	_, err := pool.RepairMetadata(pooltest.Context(t), e.Dirs, e.Name, pool.RepairOptions{})
	mustFail(t, err, layer.ErrBusy)
	if err != nil && !strings.Contains(err.Error(), `snapshot "web" is mounted on`) {
		t.Errorf("it names nobody: %v", err)
	}
	unmount(t, s, "web")
}

// A pool that was made without a spare gets one.
func TestRepairMakesSpare(t *testing.T) {
	e, m := brokenPool(t)
	m.wantCheck()
	m.save()
	must(t, os.Remove(e.Metadata()+".spare"))
	repair(t, e)
	if _, err := os.Stat(e.Metadata() + ".spare"); err != nil {
		t.Error(err)
	}
	wantFound(t, e)
}

// childRepair repairs the metadata of a pool, and has everything mended that can be.
func childRepair(ctx context.Context, j pooltest.Job) error {
	if _, err := pool.RepairMetadata(ctx, j.Dirs, j.Pool, pool.RepairOptions{}); err != nil {
		return err
	}
	r, err := pool.Check(ctx, j.Dirs, j.Pool, pool.CheckOptions{Mend: func(pool.Finding) bool { return true }})
	if err != nil {
		return err
	}
	return r.Err()
}

// repairPlaces are the points of a repair; those of a start are walked with starts.
func repairPlaces(hits []string) (list []place) {
	for _, at := range places(hits) {
		if strings.HasPrefix(at.point, "pool.repair.") || strings.HasPrefix(at.point, "pool.mend.") {
			list = append(list, at)
		}
	}
	return list
}

// walkRepair interrupts the repair of a pool whose metadata is damaged, and with things to mend, at each of its points.
func walkRepair(t *testing.T, interrupt func(t *testing.T, e *pooltest.Env, at place)) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.ThinCheck)
	e := pooltest.New(t, smallPool)
	s := e.Open(t)
	makeLayer(t, s, "base", "", baseFiles)
	makeSnapshot(t, s, "web", "base")
	x := tamperer{t: t, e: e, s: s, uuid: checkPool(t, e).UUID}
	damage := func() {
		t.Helper()
		must(t, x.thin().CreateThin(thinpool.ID(strange))) // to be mended once the metadata is repaired
		must(t, os.MkdirAll(filepath.Join(e.Dirs.Root, "pools", e.Name, "blobs", "999"), 0o700))
		m := stoppedMetadata(t, e)
		m.wantCheck()
		m.save()
	}
	j := pooltest.Job{Op: "repair", Dirs: e.Dirs, Pool: e.Name}
	damage()
	c := pooltest.Run(t, j)
	c.Succeed()
	for _, at := range repairPlaces(c.Hits()) {
		damage()
		interrupt(t, e, at)
		c := pooltest.Run(t, j)
		c.Succeed()
		wantFound(t, e)
		wantFiles(t, e.Open(t), "web", baseFiles)
		must(t, e.CheckLive(pooltest.Context(t)))
		copies, err := filepath.Glob(e.Metadata() + ".damaged-*")
		must(t, err)
		for _, path := range copies {
			sameFile(t, path, e.Metadata())
			must(t, os.Remove(path))
		}
	}
}

// sameFile fails where a copy is a second name of the metadata.
func sameFile(t testing.TB, a, b string) {
	t.Helper()
	x, err := os.Stat(a)
	must(t, err)
	y, err := os.Stat(b)
	must(t, err)
	if os.SameFile(x, y) {
		t.Errorf("%s is %s", a, b)
	}
}

// TestRepairKilledAnywhere kills a repair: the pool has the old metadata or the repaired, and can be repaired again.
func TestRepairKilledAnywhere(t *testing.T) {
	walkRepair(t, func(t *testing.T, e *pooltest.Env, at place) {
		pooltest.RunKilled(t, pooltest.Job{Op: "repair", Dirs: e.Dirs, Pool: e.Name, Point: at.point, Hit: at.hit})
	})
}

func TestRepairFailedAnywhere(t *testing.T) {
	walkRepair(t, func(t *testing.T, e *pooltest.Env, at place) {
		j := pooltest.Job{Action: pooltest.ActionFail, Point: at.point, Hit: at.hit}
		fault.Set(j.Hook(func(string) {}))
		err := childRepair(pooltest.Context(t), pooltest.Job{Dirs: e.Dirs, Pool: e.Name})
		fault.Set(nil)
		want := pooltest.ErrInjected
		if strings.HasPrefix(at.point, "pool.mend.") {
			want = layer.ErrDamaged // what cannot be mended is still there to be told, and the rest is mended
		}
		mustFail(t, err, want)
	})
}
