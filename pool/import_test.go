package pool_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// folder returns the folder of a pool.
func folder(e *pooltest.Env) string { return filepath.Dir(e.Store()) }

// fill makes a layer with a file and a side file, a snapshot of it, one of that, one of nothing, and a document.
func fillPool(t testing.TB, e *pooltest.Env) {
	t.Helper()
	ctx := pooltest.Context(t)
	s := opened(t, e)
	_, err := s.CreateLayer(ctx, "base", layer.LayerOptions{}, func(_ context.Context, w *layer.LayerWriter) error {
		blob, err := w.Blob("test")
		if err != nil {
			return err
		}
		if _, err := blob.Write([]byte("side file")); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(w.Root(), "a"), []byte("1"), 0o600)
	})
	must(t, err)
	for name, parent := range map[string]string{"web": "base", "alone": ""} {
		_, err := s.CreateSnapshot(ctx, name, layer.SnapshotOptions{Parent: parent})
		must(t, err)
	}
	_, err = s.CreateSnapshot(ctx, "webweb", layer.SnapshotOptions{Parent: "web"})
	must(t, err)
	must(t, s.UpdateDocuments(ctx, func(tx *layer.DocTx) error {
		return tx.Put(layer.Document{Kind: "image", Key: "x", Layers: []string{"base"}, Data: []byte(`{"a":1}`)})
	}))
	must(t, s.Close())
}

// opened is Env.Open for who closes it himself.
func opened(t testing.TB, e *pooltest.Env) *layer.Store {
	t.Helper()
	s, err := layer.Open(pooltest.Context(t), e.Config())
	must(t, err)
	return s
}

// wantPool checks that all of fillPool is there and works, and that new nodes can be made.
func wantPool(t testing.TB, e *pooltest.Env) {
	t.Helper()
	ctx := pooltest.Context(t)
	s := opened(t, e)
	defer s.Close()
	for name, parent := range map[string]string{"base": "", "web": "base", "webweb": "web", "alone": ""} {
		n, err := s.Get(ctx, name)
		if err != nil || n.Parent != parent {
			t.Errorf("%s: %+v, %v", name, n, err)
		}
	}
	docs, err := s.Documents(ctx, "image")
	if err != nil || len(docs) != 1 || !slices.Equal(docs[0].Layers, []string{"base"}) {
		t.Errorf("documents: %+v, %v", docs, err)
	}
	_, err = s.CreateSnapshot(ctx, "new", layer.SnapshotOptions{Parent: "webweb"})
	must(t, err)
	m, err := s.Mount(ctx, "new", "", layer.MountOptions{})
	must(t, err)
	if text, err := os.ReadFile(filepath.Join(m.Dir, "a")); string(text) != "1" {
		t.Errorf("the layer's file: %q, %v", text, err)
	}
	must(t, s.Unmount(ctx, "new"))
	must(t, s.Remove(ctx, "new"))
	_, err = s.CreateSnapshot(ctx, "from-nothing", layer.SnapshotOptions{})
	must(t, err)
	must(t, s.Remove(ctx, "from-nothing"))
}

// imported imports without a question being asked.
func imported(t testing.TB, dirs pool.Dirs, o pool.ImportOptions) pool.ImportReport {
	t.Helper()
	o.Confirm = func(r pool.ImportReport) error {
		if r.Differs() {
			t.Errorf("records and pool differ: %+v", r)
		}
		return nil
	}
	r, err := pool.Import(pooltest.Context(t), dirs, o)
	must(t, err)
	return r
}

// backups returns the files of a pool's backups.
func backups(t testing.TB, e *pooltest.Env) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(e.Dirs.Root, "backups", e.Name+"-*", "*-*"))
	must(t, err)
	return list
}

func dropBackups(t testing.TB, e *pooltest.Env) {
	t.Helper()
	must(t, os.RemoveAll(filepath.Join(e.Dirs.Root, "backups")))
}

// spoil overwrites the copies of the records in a stopped pool's label, or the newest ones of them.
func spoil(t testing.TB, e *pooltest.Env, which ...int) {
	t.Helper()
	f, err := os.OpenFile(e.Data(), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	data, err := os.ReadFile(e.Data())
	must(t, err)
	var heads []int
	for at := 0; ; {
		i := bytes.Index(data[at:], []byte("dmlayer copy 01\n"))
		if i < 0 {
			break
		}
		heads = append(heads, at+i)
		at += i + 1
	}
	slices.SortFunc(heads, func(a, b int) int { return bytes.Compare(sequence(data, b), sequence(data, a)) })
	for _, w := range which {
		_, err := f.WriteAt([]byte("spoilt"), int64(heads[w]+4096+100))
		must(t, err)
	}
	must(t, f.Sync())
}

// sequence returns the sequence number of a copy, to be compared as bytes.
func sequence(data []byte, head int) []byte {
	b := slices.Clone(data[head+16 : head+24])
	slices.Reverse(b)
	return b
}

func TestStopBacksUp(t *testing.T) {
	e := newPool(t)
	ctx := pooltest.Context(t)
	if st := state(t, e); st.Backups != 0 || st.LastBackup != nil {
		t.Errorf("after create: %d backups, %v", st.Backups, st.LastBackup)
	}
	fillPool(t, e)
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	st := state(t, e)
	if st.Backups != 1 || st.LastBackup == nil {
		t.Fatalf("after stop: %d backups, %v", st.Backups, st.LastBackup)
	}
	f, err := os.Open(backups(t, e)[0])
	must(t, err)
	c, err := metadata.ReadCopy(f)
	must(t, errors.Join(err, f.Close()))
	if len(c.Documents) != 1 || c.Pool.UUID != st.UUID || !c.Taken.Truncate(1e6).Equal(*st.LastBackup) {
		t.Errorf("the backup has %+v", c)
	}
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	if n := len(backups(t, e)); n != 1 {
		t.Errorf("%d backups of one version", n)
	}
	for range 12 {
		must(t, pool.Start(ctx, e.Dirs, e.Name))
		must(t, pool.Stop(ctx, e.Dirs, e.Name))
	}
	if n := len(backups(t, e)); n != 10 {
		t.Errorf("%d backups are kept", n)
	}
	must(t, pool.Destroy(ctx, e.Dirs, e.Name))
	if left := backups(t, e); len(left) > 0 {
		t.Errorf("left by destroy: %v", left)
	}
}

// A backup that cannot be written is told, and the pool is stopped.
func TestStopWithoutRoomForABackup(t *testing.T) {
	e := newPool(t)
	ctx := pooltest.Context(t)
	fillPool(t, e)
	tmpfs(t, filepath.Join(e.Dirs.Root, "backups"), "4k")
	must(t, os.WriteFile(filepath.Join(e.Dirs.Root, "backups", "ballast"), make([]byte, 4096), 0o600))
	err := pool.Stop(ctx, e.Dirs, e.Name)
	mustFail(t, err, errs.ErrNoSpace)
	if st := state(t, e); st.State != pool.StateInactive || st.Backups != 0 {
		t.Errorf("it is %s with %d backups: %v", st.State, st.Backups, err)
	}
	must(t, os.Remove(e.Store()))
	r := imported(t, e.Dirs, pool.ImportOptions{Dir: folder(e)}) // the label has its copy
	mustFail(t, r.NotCopied, errs.ErrNoSpace)
	wantPool(t, e)
	must(t, os.Remove(filepath.Join(e.Dirs.Root, "backups", "ballast")))
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	must(t, pool.Destroy(ctx, e.Dirs, e.Name))
}

// The record store is lost; the pool has a copy of it, and so has the backup.
func TestImportLostRecords(t *testing.T) {
	e := newPool(t)
	ctx := pooltest.Context(t)
	fillPool(t, e)
	for _, where := range []string{"label", "backup"} {
		t.Run(where, func(t *testing.T) {
			must(t, pool.Stop(ctx, e.Dirs, e.Name))
			must(t, os.Remove(e.Store()))
			if where == "label" {
				dropBackups(t, e)
			} else {
				spoil(t, e, 0, 1)
			}
			err := pool.Start(ctx, e.Dirs, e.Name)
			if mustFail(t, err, errs.ErrNotFound); !strings.Contains(errs.Hint(err), "pool import") {
				t.Errorf("hint %q", errs.Hint(err))
			}
			r := imported(t, e.Dirs, pool.ImportOptions{Dir: folder(e)})
			if !strings.Contains(r.Source, where) || r.Nodes != 4 || !r.SideFiles || r.CopyTransaction != r.PoolTransaction {
				t.Errorf("imported with %+v", r)
			}
			wantPool(t, e)
			must(t, e.Check(ctx))
			_, err = pool.Import(ctx, e.Dirs, pool.ImportOptions{Dir: folder(e)})
			mustFail(t, err, errs.ErrExists)
		})
	}
}

// A pool that runs when its records are lost is taken down first, unless it is in use.
func TestImportRunningPool(t *testing.T) {
	e := newPool(t)
	ctx := pooltest.Context(t)
	fillPool(t, e)
	s := opened(t, e)
	must(t, s.Backup(ctx))
	m, err := s.Mount(ctx, "alone", "", layer.MountOptions{})
	must(t, err)
	must(t, os.Remove(e.Store()))
	_, err = pool.Import(ctx, e.Dirs, pool.ImportOptions{Dir: folder(e)})
	mustFail(t, err, errs.ErrBusy)
	if !strings.Contains(err.Error(), m.Dir) {
		t.Errorf("it does not say who: %v", err)
	}
	unmount(t, m.Dir)
	must(t, s.Close())
	imported(t, e.Dirs, pool.ImportOptions{Dir: folder(e)})
	wantPool(t, e)
}

// The copy is older than the pool. What came after it is kept and named, what went after it is named; nothing is
// deleted, neither by the import nor later.
func TestImportOlderCopy(t *testing.T) {
	e := newPool(t)
	ctx := pooltest.Context(t)
	fillPool(t, e)
	s := opened(t, e)
	must(t, s.Backup(ctx))
	older := backups(t, e)[0]
	_, err := s.CreateSnapshot(ctx, "late", layer.SnapshotOptions{Parent: "web"})
	must(t, err)
	late, err := e.Node(ctx, "late")
	must(t, err)
	gone, err := e.Node(ctx, "alone")
	must(t, err)
	must(t, s.Remove(ctx, "alone"))
	must(t, s.Close())
	must(t, pool.Stop(ctx, e.Dirs, e.Name))

	for _, lost := range []bool{false, true} { // put back in place of the newer store, or in place of none
		if lost {
			must(t, pool.Stop(ctx, e.Dirs, e.Name))
		}
		must(t, os.Remove(e.Store()))
		o := pool.ImportOptions{Dir: folder(e), Records: older}
		before, err := pooltest.Checksum(e.Metadata())
		must(t, err)
		stop := errors.New("no")
		o.Confirm = func(pool.ImportReport) error { return stop }
		if _, err := pool.Import(ctx, e.Dirs, o); !errors.Is(err, stop) {
			t.Fatalf("got %v", err)
		}
		if after, err := pooltest.Checksum(e.Metadata()); before != after || err != nil {
			t.Fatal("the metadata was changed without consent")
		}
		if _, err := os.Stat(e.Store()); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("a store was made without consent: %v", err)
		}
		o.Confirm = nil
		r, err := pool.Import(ctx, e.Dirs, o)
		must(t, err)
		if len(r.Missing) != 1 || r.Missing[0].ID != gone.ID || r.Missing[0].Name != "alone" ||
			!slices.ContainsFunc(r.Orphans, func(o pool.Orphan) bool { return o.ID == late.ID && o.Bytes > 0 }) {
			t.Errorf("the report says %+v", r)
		}
		// What works with the pool later does not touch the orphan, whatever it has in flight.
		for range 2 {
			s := opened(t, e)
			n, err := s.CreateSnapshot(ctx, "more", layer.SnapshotOptions{Parent: "webweb"})
			must(t, err)
			id, err := e.Node(ctx, n.Name)
			must(t, err)
			if id.ID <= late.ID {
				t.Errorf("thin id %d is handed out again, the orphan has %d", id.ID, late.ID)
			}
			must(t, s.Remove(ctx, "more"))
			must(t, s.Close())
			must(t, pool.Stop(ctx, e.Dirs, e.Name))
			if ids, err := e.Thins(ctx); err != nil || !slices.Contains(ids, late.ID) {
				t.Errorf("the orphan is gone: %v, %v", ids, err)
			}
		}
	}
	s = opened(t, e)
	must(t, s.Remove(ctx, "alone"))
	must(t, s.Close())
	must(t, pool.Destroy(ctx, e.Dirs, e.Name))
}

// An older record store was put back: the pool refuses it and says the way out, which is this.
func TestImportAfterRestore(t *testing.T) {
	e := newPool(t)
	ctx := pooltest.Context(t)
	fillPool(t, e)
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	old, err := os.ReadFile(e.Store())
	must(t, err)
	must(t, pool.Start(ctx, e.Dirs, e.Name))
	s := opened(t, e)
	_, err = s.CreateSnapshot(ctx, "late", layer.SnapshotOptions{})
	must(t, err)
	must(t, s.Close())
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	must(t, os.WriteFile(e.Store(), old, 0o600))
	err = pool.Start(ctx, e.Dirs, e.Name)
	if mustFail(t, err, errs.ErrDamaged); !strings.Contains(errs.Hint(err), "pool import") {
		t.Errorf("hint %q", errs.Hint(err))
	}
	r := imported(t, e.Dirs, pool.ImportOptions{Dir: folder(e)})
	if r.Nodes != 5 {
		t.Errorf("the newest copy has %d nodes: %+v", r.Nodes, r)
	}
	wantPool(t, e)
	must(t, e.Check(ctx))
	// Stores from before the import are another tag's.
	must(t, os.WriteFile(e.Store(), old, 0o600))
	mustFail(t, pool.Start(ctx, e.Dirs, e.Name), errs.ErrDamaged)
	imported(t, e.Dirs, pool.ImportOptions{Dir: folder(e)})
}

// Of the copies in the label the newest that is whole is taken; without any the pool stays as it is.
func TestImportDamagedCopies(t *testing.T) {
	e := newPool(t)
	ctx := pooltest.Context(t)
	fillPool(t, e)
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	must(t, pool.Start(ctx, e.Dirs, e.Name))
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	kept := filepath.Join(t.TempDir(), "kept")
	must(t, pooltest.CopySparse(backups(t, e)[0], kept))
	dropBackups(t, e)
	must(t, os.WriteFile(e.Store(), []byte(strings.Repeat("damaged!", 4096)), 0o600))

	spoil(t, e, 0)
	r := imported(t, e.Dirs, pool.ImportOptions{Dir: folder(e)})
	if len(r.Unusable) != 2 || r.CopyTransaction >= r.PoolTransaction { // the store, and the newer copy
		t.Errorf("imported with %+v", r)
	}
	wantPool(t, e)
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	dropBackups(t, e)
	must(t, os.Remove(e.Store()))
	spoil(t, e, 0, 1)
	_, err := pool.Import(ctx, e.Dirs, pool.ImportOptions{Dir: folder(e)})
	if mustFail(t, err, errs.ErrDamaged); !strings.Contains(errs.Hint(err), "--records") {
		t.Errorf("hint %q", errs.Hint(err))
	}
	_, err = pool.Import(ctx, e.Dirs, pool.ImportOptions{Dir: folder(e), Records: kept})
	must(t, err)
	wantPool(t, e)
	must(t, pool.Destroy(ctx, e.Dirs, e.Name)) // wantPool's ids lie above the copy's
}

func unmount(t testing.TB, dir string) {
	t.Helper()
	must(t, fsutil.Unmount(context.Background(), dir, fsutil.UnmountOptions{}))
}
