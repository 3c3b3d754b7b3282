package layer_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// setTime makes a stopped pool's metadata say that it has taken so many snapshots.
func setTime(t testing.TB, path string, taken uint32) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	b := make([]byte, 4096)
	_, err = f.ReadAt(b, 0)
	must(t, err)
	const timeOffset, salt = 44, 160774 // drivers/md/dm-thin-metadata.c
	binary.LittleEndian.PutUint32(b[timeOffset:], taken)
	binary.LittleEndian.PutUint32(b, ^crc32.Checksum(b[4:], crc32.MakeTable(crc32.Castagnoli))^salt)
	_, err = f.WriteAt(b, 0)
	must(t, err)
	must(t, errors.Join(f.Sync(), f.Close()))
}

// age makes a pool old: its superblock's count of snapshots, and its high mark.
func age(t testing.TB, e *pooltest.Env, taken uint32, ids metadata.ThinID) {
	t.Helper()
	ctx := pooltest.Context(t)
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	setTime(t, e.Metadata(), taken)
	must(t, forgetCursor(e))
	must(t, editPool(ctx, e, func(p *metadata.Pool) { p.LowID, p.HighID = ids, ids }))
}

// open opens a pool that the test closes before it ends.
func open(t testing.TB, e *pooltest.Env) *layer.Store {
	t.Helper()
	s, err := layer.Open(pooltest.Context(t), e.Config())
	must(t, err)
	return s
}

type alone struct{}

func (alone) LockStore(context.Context, bool) (func(), error) { return func() {}, nil }

// editPool changes the record of a pool behind everybody's back.
func editPool(ctx context.Context, e *pooltest.Env, change func(*metadata.Pool)) error {
	s := metadata.New(e.Store(), alone{})
	return errors.Join(s.Update(ctx, func(tx *metadata.Tx) error {
		p, err := tx.Pool()
		if err != nil {
			return err
		}
		change(&p)
		return tx.PutPool(p)
	}), s.Close())
}

const (
	nearLife = 1<<24 - 1<<16 - 100 // snapshots: the next window goes, the one after it does not
	nearIDs  = 1<<24 - 2*64 - 1
)

// The kernel takes 2^24 snapshots of a pool and then mixes up blocks without a word. Long before, nothing that
// needs one is made any more; what is there can be used and removed, and a renewal makes the counts begin anew.
func TestTrap02SnapshotsOfALife(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	ctx := pooltest.Context(t)
	s := open(t, e)
	makeLayer(t, s, "base", "", baseFiles)
	makeSnapshot(t, s, "web", "base")
	must(t, s.Close())
	age(t, e, nearLife, 1000)

	s = open(t, e)
	if !s.Life().Aged() {
		must(t, s.Close()) // the start has counted, after the record was read
		s = open(t, e)
	}
	if l := s.Life(); !l.Aged() || l.Snapshots < nearLife {
		t.Errorf("at the start: %s", l)
	}
	st, err := s.PoolStatus(ctx)
	must(t, err)
	if *st.SnapshotsTaken < nearLife || !st.Life().Aged() {
		t.Errorf("inspect: %+v", st)
	}
	for i := 0; err == nil; i++ {
		if i > 200 {
			t.Fatal("it never ends")
		}
		_, err = s.CreateSnapshot(ctx, fmt.Sprintf("s%d", i), layer.SnapshotOptions{Parent: "base"})
	}
	if !errors.Is(err, pool.ErrSpent) || errs.Class(err) != layer.ErrNoSpace || errs.Hint(err) == "" {
		t.Fatalf("at the end: %v (%s)", err, errs.Hint(err))
	}
	_, err = s.Commit(ctx, "web", "committed", layer.CommitOptions{})
	mustFail(t, err, pool.ErrSpent)
	st, err = s.PoolStatus(ctx)
	must(t, err)
	if *st.SnapshotsTaken >= 1<<24-1 {
		t.Errorf("%d snapshots were taken", *st.SnapshotsTaken)
	}
	wantFiles(t, s, "web", baseFiles)
	must(t, s.Remove(ctx, "s0"))
	renewAndUse(t, e, s)
}

// A pool of which somebody else has taken more snapshots than the kernel can count takes no more at once, and nothing promises to renew it.
func TestTrap02Beyond(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	ctx := pooltest.Context(t)
	s := open(t, e)
	makeLayer(t, s, "base", "", baseFiles)
	must(t, s.Close())
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	setTime(t, e.Metadata(), 1<<24+5)
	_, renewed := pool.Renew(ctx, e.Dirs, e.Name, nil)
	mustFail(t, renewed, layer.ErrDamaged)
	s = e.Open(t)
	_, made := s.CreateSnapshot(ctx, "web", layer.SnapshotOptions{Parent: "base"})
	mustFail(t, made, pool.ErrSpent)
	for _, err := range []error{renewed, made} {
		if hint := errs.Hint(err); !strings.Contains(hint, "another pool") {
			t.Errorf("%v: hint %q", err, hint)
		}
	}
	wantFiles(t, s, "base", baseFiles)
}

// Thin ids end too.
func TestTrap02ThinIDsOfALife(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	ctx := pooltest.Context(t)
	s := open(t, e)
	makeLayer(t, s, "base", "", baseFiles)
	makeSnapshot(t, s, "web", "base")
	must(t, s.Close())
	age(t, e, 100, nearIDs)
	s = open(t, e)
	var err error
	for i := 0; err == nil && i < 300; i++ {
		_, err = s.CreateSnapshot(ctx, fmt.Sprintf("s%d", i), layer.SnapshotOptions{Parent: "base"})
	}
	mustFail(t, err, pool.ErrSpent)
	must(t, s.Remove(ctx, "s0"))
	renewAndUse(t, e, s)
}

// renewAndUse renews a pool that somebody has open, and goes on with it.
func renewAndUse(t *testing.T, e *pooltest.Env, s *layer.Store) {
	t.Helper()
	ctx := pooltest.Context(t)
	before, err := s.List(ctx)
	must(t, err)
	done, err := pool.Renew(ctx, e.Dirs, e.Name, nil)
	must(t, err)
	if !done.Before.Aged() || done.After.Aged() || done.After.IDs > uint64(len(before)+10) || done.After.Snapshots > uint64(len(before)+10) {
		t.Errorf("renewed: %+v", done)
	}
	after, err := s.List(ctx)
	must(t, err)
	if len(after) != len(before) {
		t.Errorf("%d nodes, before %d", len(after), len(before))
	}
	// The store that was open all the time, and a new one.
	must(t, s.Remove(ctx, "s1"))
	makeSnapshot(t, s, "new", "base")
	wantFiles(t, s, "new", baseFiles)
	must(t, s.Close())
	s = e.Open(t)
	if l := s.Life(); l.Aged() {
		t.Errorf("after it: %s", l)
	}
	makeSnapshot(t, s, "newer", "web")
	wantFiles(t, s, "newer", baseFiles)
	must(t, e.CheckLive(ctx))
}

// deviceSums are the checksums of all nodes' devices, by name.
func deviceSums(t testing.TB, s *layer.Store) map[string]uint32 {
	t.Helper()
	ctx := pooltest.Context(t)
	infos, err := s.List(ctx)
	must(t, err)
	sums := map[string]uint32{}
	for _, i := range infos {
		path, err := s.Attach(ctx, i.Name, true)
		must(t, err)
		sum, err := pooltest.Checksum(path)
		must(t, err)
		must(t, s.Detach(ctx, i.Name))
		sums[i.Name] = sum
	}
	return sums
}

// A renewal changes no byte of any node, no side file and no record but its numbers; and what a node shared it shares.
func TestRenew(t *testing.T) {
	each(t, func(t *testing.T, e *pooltest.Env, s *layer.Store) {
		ctx := pooltest.Context(t)
		_, err := s.CreateLayer(ctx, "base", layer.LayerOptions{}, fillWith(baseFiles))
		must(t, err)
		makeSnapshot(t, s, "gone", "base")
		makeLayer(t, s, "top", "base", map[string]string{"b": "2"})
		makeSnapshot(t, s, "web", "top")
		dir := mount(t, s, "web")
		must(t, writeFiles(dir, map[string]string{"w": "of web"}))
		unmount(t, s, "web")
		makeSnapshot(t, s, "child", "web")
		must(t, s.Reset(ctx, "child", "base"))
		must(t, s.Remove(ctx, "gone"))
		must(t, s.UpdateDocuments(ctx, func(tx *layer.DocTx) error {
			return tx.Put(layer.Document{Kind: "test", Key: "hold", Layers: []string{"base"}, Data: []byte("{}")})
		}))
		mount(t, s, "web")
		_, err = pool.Renew(ctx, e.Dirs, e.Name, nil)
		mustFail(t, err, layer.ErrBusy)
		unmount(t, s, "web")
		nodes, err := s.List(ctx)
		must(t, err)
		must(t, s.Measure(ctx, nodes))
		sums := deviceSums(t, s)

		_, err = s.Attach(ctx, "web", true)
		must(t, err)
		_, err = pool.Renew(ctx, e.Dirs, e.Name, nil)
		mustFail(t, err, layer.ErrBusy)
		must(t, s.Detach(ctx, "web"))

		for range 2 {
			_, err = pool.Renew(ctx, e.Dirs, e.Name, nil)
			must(t, err)
			after, err := s.List(ctx)
			must(t, err)
			must(t, s.Measure(ctx, after))
			byName := map[string]layer.Info{}
			for _, i := range after {
				byName[i.Name] = i
			}
			for _, want := range nodes {
				got := byName[want.Name]
				if got.Parent != want.Parent || got.Kind != want.Kind || !got.Created.Equal(want.Created) || *got.Used != *want.Used || *got.Exclusive != *want.Exclusive {
					t.Errorf("node %+v, before %+v", got, want)
				}
			}
			for name, sum := range deviceSums(t, s) {
				if sum != sums[name] {
					t.Errorf("%s: checksum %#x, before %#x", name, sum, sums[name])
				}
			}
			blob, err := s.OpenBlob(ctx, "base", "test")
			must(t, err)
			text, err := io.ReadAll(blob)
			must(t, errors.Join(err, blob.Close()))
			if string(text) != "side file" {
				t.Errorf("side file: %q", text)
			}
		}
		mustFail(t, s.Remove(ctx, "base"), layer.ErrBusy) // the document and children hold it
		left, err := filepath.Glob(filepath.Join(filepath.Dir(e.Store()), "*renewal*"))
		must(t, err)
		if len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

// A pool whose metadata has what no record names is left alone: a renewal would give it an id that recovery deletes.
func TestRenewRefusesOrphans(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop)
	e := pooltest.New(t, pool.Spec{})
	ctx := pooltest.Context(t)
	s := open(t, e)
	makeSnapshot(t, s, "web", "")
	n, err := e.Node(ctx, "web")
	must(t, err)
	must(t, s.Close())
	var high metadata.ThinID
	must(t, editPool(ctx, e, func(p *metadata.Pool) {
		high = p.HighID
		p.LowID, p.HighID = 1000, 1000
	}))
	must(t, dropRecord(ctx, e, n))
	_, err = pool.Renew(ctx, e.Dirs, e.Name, nil)
	mustFail(t, err, layer.ErrDamaged)
	// In flight, it is cleaned up.
	must(t, editPool(ctx, e, func(p *metadata.Pool) { p.LowID, p.HighID = 1, high }))
	_, err = pool.Renew(ctx, e.Dirs, e.Name, nil)
	must(t, err)
	s = e.Open(t)
	makeSnapshot(t, s, "web", "")
	must(t, e.CheckLive(ctx))
}

func dropRecord(ctx context.Context, e *pooltest.Env, n metadata.Node) error {
	s := metadata.New(e.Store(), alone{})
	return errors.Join(s.Update(ctx, func(tx *metadata.Tx) error { return tx.DeleteNode(n.Key) }), s.Close())
}
