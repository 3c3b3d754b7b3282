package layer_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta/metagen"
)

// superblock reads the superblock of a stopped pool.
func (m *poolMetadata) superblock() thinmeta.Superblock {
	m.t.Helper()
	s, err := thinmeta.ReadSuperblock(bytes.NewReader(m.Bytes))
	must(m.t, err)
	return s
}

// leak counts a reference to a free data block and to a free metadata block: both are in use for nothing.
func (m *poolMetadata) leak() {
	m.t.Helper()
	const index, bitmaps, header = 208, 16, 16 // in the superblock; in the index; in both kinds of block
	block := func(at uint64) []byte { return m.Block(binary.LittleEndian.Uint64(at8(m.Block(0), at))) }
	meta := binary.LittleEndian.Uint64(at8(block(index), bitmaps))
	super, err := thinmeta.ReadSuperblock(m.Image)
	must(m.t, err)
	tree := m.Block(super.DataSpace.BitmapRoot) // a leaf, with room for 168 entries
	data := binary.LittleEndian.Uint64(at8(tree, 32+8*168))
	for _, b := range []uint64{meta, data} {
		bytes := m.Block(b)
		i := slices.Index(bytes[header:], 0)
		if i < 0 {
			m.t.Fatal("no free block")
		}
		bytes[header+i] |= 2 // the lower bit of the pair counts two
		m.Blocks[b] = metagen.Info{Kind: metagen.Bitmap}
		m.Seal(b)
	}
}

func at8(b []byte, at uint64) []byte { return b[at : at+8] }

// crashed makes it the metadata of a pool that was not stopped in order: nothing of it is kept beside it.
func (m *poolMetadata) crashed(e *pooltest.Env) { must(m.t, os.Remove(e.Metadata()+".superblock")) }

// snapshots is how many of one node are made: with thin_repair, which gives each its own tree, 450 do not fit into the metadata.
func snapshots() int {
	if os.Getenv("DMLAYER_TEST_LONG") != "" {
		return 450
	}
	return 40
}

// What nodes share stays shared in a repair, which needs no more metadata than the pool had, and costs only who has what is damaged.
func TestRepairSharedMappings(t *testing.T) {
	e := pooltest.New(t, pool.Spec{DataSize: 512 << 20, BaseSize: 64 << 20})
	s := e.Open(t)
	ctx := pooltest.Context(t)
	makeLayer(t, s, "base", "", baseFiles)
	makeSnapshot(t, s, "large", "")
	scatter(t, s, "large", 700)
	for i := range snapshots() {
		makeSnapshot(t, s, fmt.Sprintf("s%d", i), "large")
	}
	makeSnapshot(t, s, "other", "")
	scatter(t, s, "other", 700)
	m := stoppedMetadata(t, e)
	before := m.superblock().MetadataSpace.Allocated
	m.garble(m.child(m.root(node(t, e, "other").ID), 1))
	m.leak()
	m.wantCheck()
	m.save()
	r := repair(t, e)
	if r.Sound || len(r.Losses) != 1 || r.Losses[0].Node != "other" || r.Losses[0].Where == "" {
		t.Errorf("report %+v", r)
	}
	wantFound(t, e, "node-loss other")
	wantWritable(t, e)
	must(t, e.Open(t).Remove(ctx, "other"))
	if after := stoppedMetadata(t, e).superblock().MetadataSpace.Allocated; after > before {
		t.Errorf("%d blocks of metadata in use, before %d", after, before)
	}
}

// All devices have their details in few blocks. Without them nothing is lost: what nodes have is said elsewhere.
func TestRepairWithoutDetails(t *testing.T) {
	e, m := brokenPool(t)
	m.crashed(e)
	ctx := pooltest.Context(t)
	m.garble(m.superblock().DetailsRoot)
	m.save()
	wantFound(t, e, "metadata-damaged")
	if r := repair(t, e); r.Sound || len(r.Losses) > 0 || len(r.Appeared) > 0 || r.Label {
		t.Errorf("report %+v", r)
	}
	wantFound(t, e)
	s := e.Open(t)
	wantFiles(t, s, "small", baseFiles)
	wantFiles(t, s, "base", baseFiles)
	wantWritable(t, e)
	wantFiles(t, s, "base", baseFiles) // as it was: what was shared is copied before it is written
	// The pool's life, which the label's device tells, is the same.
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	must(t, os.Remove(e.Store()))
	_, err := pool.Import(ctx, e.Dirs, pool.ImportOptions{Dir: filepath.Dir(e.Store())})
	must(t, err)
	wantFiles(t, e.Open(t), "small", baseFiles)
}

// A damaged space map is made anew, and nothing is lost; the pool can be written to at once.
func TestRepairSpaceMaps(t *testing.T) {
	e, m := brokenPool(t)
	super := m.superblock()
	for _, b := range []uint64{super.DataSpace.BitmapRoot, super.MetadataSpace.BitmapRoot} {
		m.Block(b)[200] ^= 1
	}
	m.wantCheck()
	m.save()
	if r := repair(t, e); r.Sound || len(r.Losses) > 0 {
		t.Errorf("report %+v", r)
	}
	wantFound(t, e)
	wantWritable(t, e)
}

// Blocks that are in use for nothing lose nothing: a pool with some, of which the kernel wants the metadata checked, can be written to
// after the repair.
func TestRepairNeedsCheckLeaks(t *testing.T) {
	e, m := brokenPool(t)
	m.leak()
	m.wantCheck()
	m.save()
	wantFound(t, e, "needs-check")
	if r := checkPool(t, e); !r.Has(pool.FoundMetadataLeak) {
		t.Fatalf("found %+v", r.Findings)
	}
	r := repair(t, e)
	if !r.Sound || len(r.Losses) > 0 {
		t.Errorf("report %+v", r)
	}
	wantFound(t, e)
	wantWritable(t, e)
}

// One repair mends damage and takes the kernel's mark away.
func TestRepairDamageAndNeedsCheck(t *testing.T) {
	e, m := brokenPool(t)
	m.garble(m.child(m.root(node(t, e, "large").ID), 1))
	m.wantCheck()
	m.save()
	if r := repair(t, e); r.Sound || len(r.Losses) != 1 {
		t.Errorf("report %+v", r)
	}
	wantFound(t, e, "node-loss large")
	wantWritable(t, e)
	must(t, e.Open(t).Remove(pooltest.Context(t), "large"))
}

// wantWritable makes a node.
func wantWritable(t testing.TB, e *pooltest.Env) {
	t.Helper()
	s := e.Open(t)
	makeSnapshot(t, s, "written", "base")
	wantFiles(t, s, "written", baseFiles)
}

// Where the block that leads to all devices is lost, in a pool that was not stopped in order, each is found that has as many blocks as no other, and of the others what an earlier
// such block says, which is said to be likely and no more.
func TestRepairWithoutDeviceTree(t *testing.T) {
	e, m := brokenPool(t)
	m.crashed(e)
	m.garble(m.superblock().MappingRoot)
	m.save()
	ctx := pooltest.Context(t)
	r := repair(t, e)
	t.Logf("losses %v, appeared %v", r.Losses, r.Appeared)
	s := e.Open(t)
	lost := map[string]bool{}
	for _, l := range r.Losses {
		lost[l.Node] = true
		if n := node(t, e, l.Node); n.Lost == nil {
			t.Errorf("%s is not marked", l.Node)
		}
	}
	for _, name := range []string{"base", "small"} {
		if !lost[name] {
			wantFiles(t, s, name, baseFiles)
		}
	}
	if lost["large"] {
		t.Error("the one that no other is like is not found")
	}
	path, err := s.Attach(ctx, "large", true)
	must(t, err)
	f, err := os.Open(path)
	must(t, err)
	b := make([]byte, 320)
	for _, i := range []int64{0, 350, 699} {
		if _, err := f.ReadAt(b, i*64<<10+32<<10); err != nil || string(b) != strings.Repeat("large", 64) {
			t.Errorf("block %d: %.20q, %v", i, b, err)
		}
	}
	must(t, f.Close())
	must(t, s.Detach(ctx, "large"))
	_, err = s.CreateSnapshot(ctx, "new", layer.SnapshotOptions{})
	must(t, err)
	must(t, e.CheckLive(ctx))
}
