package metadata_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
)

// lock is the store's lock for tests in one process.
type lock struct{ mu sync.RWMutex }

func (l *lock) LockStore(_ context.Context, shared bool) (func(), error) {
	if shared {
		l.mu.RLock()
		return l.mu.RUnlock, nil
	}
	l.mu.Lock()
	return l.mu.Unlock, nil
}

var testPool = metadata.Pool{
	Name: "p", UUID: "0123456789abcdef0123456789abcdef", State: metadata.PoolReady, FS: "ext4",
	BaseSize: 1 << 30, BlockSize: 1 << 16, TransactionID: 7 << 24, LowID: 1, HighID: 65,
	MkfsOptions: []string{"-O", "x"}, Backing: metadata.Backing{Type: "loopback", DataSize: 1 << 30},
}

func create(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "records.db")
	must(t, metadata.Create(path, testPool))
	return path
}

func open(t testing.TB, path string) *metadata.Store {
	s := metadata.New(path, &lock{})
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustFail(t testing.TB, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Fatalf("got %v, want %v", err, class)
	}
}

func update(t testing.TB, s *metadata.Store, fn func(tx *metadata.Tx) error) {
	t.Helper()
	must(t, s.Update(context.Background(), fn))
}

func view(t testing.TB, s *metadata.Store, fn func(tx *metadata.Tx) error) {
	t.Helper()
	must(t, s.View(context.Background(), fn))
}

func node(name string, id metadata.ThinID, parent metadata.Key) metadata.Node {
	return metadata.Node{Name: name, ID: id, Parent: parent, Kind: metadata.KindSnapshot, Size: 1 << 20, FS: "ext4"}
}

func TestCreate(t *testing.T) {
	path := create(t)
	mustFail(t, metadata.Create(path, testPool), errs.ErrExists)
	view(t, open(t, path), func(tx *metadata.Tx) error {
		p, err := tx.Pool()
		if !reflect.DeepEqual(p, testPool) {
			t.Errorf("got %+v, want %+v", p, testPool)
		}
		return err
	})
	fi, err := os.Stat(path)
	must(t, err)
	if fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", fi.Mode())
	}
}

// A store that was being made when its maker died is made anew.
func TestCreateOverHalfAStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	must(t, os.WriteFile(path+".new", []byte("half"), 0o600))
	must(t, metadata.Create(path, testPool))
	if _, err := os.Stat(path + ".new"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

func TestCreateWithoutAFolder(t *testing.T) {
	if err := metadata.Create(filepath.Join(t.TempDir(), "absent", "records.db"), testPool); err == nil {
		t.Error("made")
	}
}

func TestMissingStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	s := open(t, path)
	none := func(*metadata.Tx) error { return nil }
	mustFail(t, s.View(context.Background(), none), errs.ErrNotFound)
	mustFail(t, s.Update(context.Background(), none), errs.ErrNotFound)
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("looking made a store")
	}
}

func TestNodes(t *testing.T) {
	s := open(t, create(t))
	var a, b metadata.Node
	update(t, s, func(tx *metadata.Tx) (err error) {
		if a, err = tx.AddNode(node("a", 1, 0)); err != nil {
			return err
		}
		b, err = tx.AddNode(node("b", 2, a.Key))
		return err
	})
	view(t, s, func(tx *metadata.Tx) error {
		for _, get := range []func() (metadata.Node, error){
			func() (metadata.Node, error) { return tx.Node("b") },
			func() (metadata.Node, error) { return tx.NodeByKey(b.Key) },
			func() (metadata.Node, error) { return tx.NodeByID(2) },
		} {
			if n, err := get(); err != nil || !reflect.DeepEqual(n, b) {
				t.Errorf("got %+v, %v", n, err)
			}
		}
		if !hasChildren(tx, a.Key) || hasChildren(tx, b.Key) {
			t.Error("children")
		}
		children, err := tx.Children(a.Key)
		if len(children) != 1 || children[0].Name != "b" {
			t.Errorf("children %v", children)
		}
		return err
	})
}

// A node keeps its key when it gets another name, id and parent, and every index follows.
func TestPutNode(t *testing.T) {
	s := open(t, create(t))
	var a, b, c metadata.Node
	update(t, s, func(tx *metadata.Tx) (err error) {
		a, _ = tx.AddNode(node("a", 1, 0))
		b, _ = tx.AddNode(node("b", 2, 0))
		c, err = tx.AddNode(node("c", 3, a.Key))
		return err
	})
	c.Name, c.ID, c.Parent = "d", 9, b.Key
	update(t, s, func(tx *metadata.Tx) error { return tx.PutNode(c) })
	view(t, s, func(tx *metadata.Tx) error {
		if _, err := tx.Node("c"); !errors.Is(err, errs.ErrNotFound) {
			t.Errorf("old name: %v", err)
		}
		if _, err := tx.NodeByID(3); !errors.Is(err, errs.ErrNotFound) {
			t.Errorf("old id: %v", err)
		}
		if n, err := tx.NodeByID(9); err != nil || n.Key != c.Key || n.Name != "d" {
			t.Errorf("new id: %+v, %v", n, err)
		}
		if tx.Named(3) || !tx.Named(9) {
			t.Error("Named")
		}
		if hasChildren(tx, a.Key) || !hasChildren(tx, b.Key) {
			t.Error("parents")
		}
		return nil
	})
	update(t, s, func(tx *metadata.Tx) error { return tx.DeleteNode(c.Key) })
	view(t, s, func(tx *metadata.Tx) error {
		if hasChildren(tx, b.Key) || tx.Named(9) {
			t.Error("something of the node is left")
		}
		if _, err := tx.Node("d"); !errors.Is(err, errs.ErrNotFound) {
			t.Errorf("name: %v", err)
		}
		return nil
	})
}

func TestNodesThatMustNotBe(t *testing.T) {
	s := open(t, create(t))
	update(t, s, func(tx *metadata.Tx) error {
		if _, err := tx.AddNode(node("a", 1, 0)); err != nil {
			return err
		}
		if _, err := tx.AddNode(node("b", 2, 0)); err != nil {
			return err
		}
		return tx.PutTombstone(metadata.Tombstone{ID: 5, Name: "t", Since: time.Now()})
	})
	cases := []struct {
		what  string
		class error
		do    func(tx *metadata.Tx) error
	}{
		{"taken name", errs.ErrExists, func(tx *metadata.Tx) error { _, err := tx.AddNode(node("a", 8, 0)); return err }},
		{"taken id", errs.ErrDamaged, func(tx *metadata.Tx) error { _, err := tx.AddNode(node("x", 1, 0)); return err }},
		{"id of a tombstone", errs.ErrDamaged, func(tx *metadata.Tx) error { _, err := tx.AddNode(node("x", 5, 0)); return err }},
		{"no parent", errs.ErrNotFound, func(tx *metadata.Tx) error { _, err := tx.AddNode(node("x", 8, 77)); return err }},
		{"rename to taken", errs.ErrExists, func(tx *metadata.Tx) error { return change(tx, "a", func(n *metadata.Node) { n.Name = "b" }) }},
		{"move to taken id", errs.ErrDamaged, func(tx *metadata.Tx) error { return change(tx, "a", func(n *metadata.Node) { n.ID = 2 }) }},
		{"move to dead id", errs.ErrDamaged, func(tx *metadata.Tx) error { return change(tx, "a", func(n *metadata.Node) { n.ID = 5 }) }},
		{"move to no parent", errs.ErrNotFound, func(tx *metadata.Tx) error { return change(tx, "a", func(n *metadata.Node) { n.Parent = 77 }) }},
		{"change of none", errs.ErrNotFound, func(tx *metadata.Tx) error { return tx.PutNode(metadata.Node{Key: 77}) }},
		{"removal of none", errs.ErrNotFound, func(tx *metadata.Tx) error { return tx.DeleteNode(77) }},
	}
	for _, c := range cases {
		t.Run(c.what, func(t *testing.T) {
			mustFail(t, s.Update(context.Background(), c.do), c.class)
		})
	}
}

func change(tx *metadata.Tx, name string, fn func(*metadata.Node)) error {
	n, err := tx.Node(name)
	if err != nil {
		return err
	}
	fn(&n)
	return tx.PutNode(n)
}

// An id that a node once had is never the first id of another one.
func TestKeysAreNeverReused(t *testing.T) {
	s := open(t, create(t))
	var a metadata.Node
	update(t, s, func(tx *metadata.Tx) (err error) {
		if a, err = tx.AddNode(node("a", 1, 0)); err != nil {
			return err
		}
		a.ID = 2 // a reset
		return tx.PutNode(a)
	})
	err := s.Update(context.Background(), func(tx *metadata.Tx) error {
		b, err := tx.AddNode(node("b", 1, 0))
		if err == nil && b.Key == a.Key {
			t.Error("two nodes with one key")
		}
		return err
	})
	mustFail(t, err, errs.ErrDamaged)
	view(t, s, func(tx *metadata.Tx) error {
		if tx.Named(1) {
			t.Error("an id that was given up is still named")
		}
		_, err := tx.NodeByID(1)
		mustFail(t, err, errs.ErrNotFound)
		return nil
	})
}

// An error of the function leaves everything as it was, whatever it has written.
func TestFailedUpdate(t *testing.T) {
	s := open(t, create(t))
	broken := errors.New("broken")
	err := s.Update(context.Background(), func(tx *metadata.Tx) error {
		_, _ = tx.AddNode(node("a", 1, 0))
		_ = tx.PutTombstone(metadata.Tombstone{ID: 4})
		return broken
	})
	mustFail(t, err, broken)
	view(t, s, func(tx *metadata.Tx) error {
		tombs, err := tx.Tombstones()
		if tx.Named(1) || len(tombs) > 0 {
			t.Error("something was written")
		}
		return err
	})
}

func TestTombstones(t *testing.T) {
	s := open(t, create(t))
	update(t, s, func(tx *metadata.Tx) error {
		for id := metadata.ThinID(3); id > 0; id-- {
			if err := tx.PutTombstone(metadata.Tombstone{ID: id, Name: fmt.Sprint(id)}); err != nil {
				return err
			}
		}
		return tx.DropTombstone(99)
	})
	update(t, s, func(tx *metadata.Tx) error { return tx.DropTombstone(2) })
	view(t, s, func(tx *metadata.Tx) error {
		tombs, err := tx.Tombstones()
		if len(tombs) != 2 || tombs[0].ID != 1 || tombs[1].Name != "3" {
			t.Errorf("tombstones %v", tombs)
		}
		if !tx.Tombstone(1) || tx.Tombstone(2) || !tx.Named(3) || tx.Named(2) {
			t.Error("Tombstone, Named")
		}
		return err
	})
}

func TestDocuments(t *testing.T) {
	s := open(t, create(t))
	var a, b metadata.Node
	doc := func(key string, data string, nodes ...metadata.Key) metadata.Document {
		return metadata.Document{Kind: "image", Key: key, Nodes: nodes, Data: json.RawMessage(data)}
	}
	update(t, s, func(tx *metadata.Tx) error {
		a, _ = tx.AddNode(node("a", 1, 0))
		b, _ = tx.AddNode(node("b", 2, 0))
		return errors.Join(tx.PutDocument(doc("two", `{"n":2}`, a.Key, b.Key)), tx.PutDocument(doc("one", `{"n":1}`, a.Key)),
			tx.PutDocument(metadata.Document{Kind: "images", Key: "x", Data: json.RawMessage("1")}))
	})
	view(t, s, func(tx *metadata.Tx) error {
		docs, err := tx.Documents("image")
		if len(docs) != 2 || docs[0].Key != "one" || string(docs[1].Data) != `{"n":2}` {
			t.Errorf("documents %v", docs)
		}
		if of := tx.DocumentsOf(a.Key); strings.Join(of, ";") != "image one;image two" {
			t.Errorf("documents of a: %q", of)
		}
		return err
	})
	update(t, s, func(tx *metadata.Tx) error { return tx.PutDocument(doc("two", `{}`, b.Key)) })
	update(t, s, func(tx *metadata.Tx) error { return tx.DeleteDocument("image", "one") })
	view(t, s, func(tx *metadata.Tx) error {
		if of := tx.DocumentsOf(a.Key); len(of) != 0 {
			t.Errorf("a is still held by %q", of)
		}
		if of := tx.DocumentsOf(b.Key); len(of) != 1 {
			t.Errorf("b is held by %q", of)
		}
		_, err := tx.Document("image", "one")
		mustFail(t, err, errs.ErrNotFound)
		return nil
	})
	for _, bad := range []metadata.Document{{Key: "x"}, {Kind: "x"}, {Kind: "a\x00b", Key: "x"}, {Kind: "a", Key: "x\x00"}} {
		mustFail(t, s.Update(context.Background(), func(tx *metadata.Tx) error { return tx.PutDocument(bad) }), errs.ErrInvalid)
	}
	mustFail(t, s.Update(context.Background(), func(tx *metadata.Tx) error { return tx.PutDocument(doc("x", "{}", 77)) }), errs.ErrNotFound)
}

// Two Stores on one file see each other's writes, in any order, also when one of them goes back and forth
// between reading and writing.
func TestTwoStoresOnOneFile(t *testing.T) {
	path := create(t)
	l := &lock{}
	stores := [3]*metadata.Store{}
	for i := range stores {
		stores[i] = metadata.New(path, l)
		defer stores[i].Close()
	}
	var want []string
	for i := range 60 {
		w := stores[(i*7)%3]
		name := fmt.Sprintf("n%02d", i)
		update(t, w, func(tx *metadata.Tx) error {
			if i%5 == 4 { // removals free pages, which the others must not go on reading
				n, err := tx.Node(want[0])
				if err != nil {
					return err
				}
				want = want[1:]
				return tx.DeleteNode(n.Key)
			}
			want = append(want, name)
			n := node(name, metadata.ThinID(i+1), 0)
			n.Labels = map[string]string{"long": strings.Repeat("x", 1000)}
			_, err := tx.AddNode(n)
			return err
		})
		for k, s := range stores {
			var have []string
			view(t, s, func(tx *metadata.Tx) error {
				return tx.Nodes(func(n metadata.Node) error { have = append(have, n.Name); return nil })
			})
			if !reflect.DeepEqual(have, want) {
				t.Fatalf("after write %d, store %d has %v, want %v", i, k, have, want)
			}
		}
	}
}

// Version tells exactly whether somebody has changed the store.
func TestVersion(t *testing.T) {
	path := create(t)
	a, b := open(t, path), open(t, path)
	version := func(s *metadata.Store) uint64 {
		v, err := s.Version()
		must(t, err)
		return v
	}
	before := version(a)
	if before == 0 || version(b) != before {
		t.Fatalf("versions %d, %d", before, version(b))
	}
	var inside uint64
	view(t, a, func(tx *metadata.Tx) error { inside = tx.Version(); return nil })
	if inside != before || version(a) != before {
		t.Errorf("a read at %d changed %d to %d", inside, before, version(a))
	}
	update(t, b, func(tx *metadata.Tx) error {
		inside = tx.Version()
		return tx.PutTombstone(metadata.Tombstone{ID: 1})
	})
	if inside <= before || version(a) != inside || version(b) != inside {
		t.Errorf("a write at %d after %d: %d, %d", inside, before, version(a), version(b))
	}
	_ = a.Update(context.Background(), func(*metadata.Tx) error { return errors.New("no") })
	if version(b) != inside {
		t.Errorf("a write that failed changed the version to %d", version(b))
	}
}

func TestConcurrentTransactions(t *testing.T) {
	path := create(t)
	l := &lock{}
	var wg sync.WaitGroup
	const writers, writes = 4, 15
	for w := range writers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			s := metadata.New(path, l)
			defer s.Close()
			for i := range writes {
				err := s.Update(context.Background(), func(tx *metadata.Tx) error {
					p, err := tx.Pool()
					if err != nil {
						return err
					}
					p.SnapshotsTaken++
					if err := tx.PutPool(p); err != nil {
						return err
					}
					_, err = tx.AddNode(node(fmt.Sprintf("w%d-%d", w, i), metadata.ThinID(1+w*writes+i), 0))
					return err
				})
				if err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	view(t, open(t, path), func(tx *metadata.Tx) error {
		p, err := tx.Pool()
		n := 0
		_ = tx.Nodes(func(metadata.Node) error { n++; return nil })
		if p.SnapshotsTaken != writers*writes || n != writers*writes {
			t.Errorf("%d writes counted, %d nodes, want %d", p.SnapshotsTaken, n, writers*writes)
		}
		return err
	})
}

func TestNewerSchemaIsRefused(t *testing.T) {
	path := create(t)
	tamper(t, path, func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("meta")).Put([]byte("schema"), binary.BigEndian.AppendUint32(nil, metadata.SchemaVersion+1))
	})
	err := open(t, path).Update(context.Background(), func(*metadata.Tx) error { t.Error("called"); return nil })
	mustFail(t, err, errs.ErrUnsupported)
	if errs.Hint(err) == "" {
		t.Error("no hint")
	}
}

// TestOlderSchemaIsUpgraded reads a store of the version before, and writes it: from then on it is of this one.
func TestOlderSchemaIsUpgraded(t *testing.T) {
	path := create(t)
	schema := func() (v uint32) {
		tamper(t, path, func(tx *bbolt.Tx) error {
			v = binary.BigEndian.Uint32(tx.Bucket([]byte("meta")).Get([]byte("schema")))
			return nil
		})
		return v
	}
	tamper(t, path, func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("meta")).Put([]byte("schema"), binary.BigEndian.AppendUint32(nil, 1))
	})
	view(t, open(t, path), func(tx *metadata.Tx) error {
		_, err := tx.Pool()
		return err
	})
	if v := schema(); v != 1 {
		t.Errorf("reading made it version %d", v)
	}
	must(t, open(t, path).Update(context.Background(), func(*metadata.Tx) error { return nil }))
	if v := schema(); v != metadata.SchemaVersion {
		t.Errorf("version %d after writing", v)
	}
}

func tamper(t testing.TB, path string, fn func(*bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	must(t, err)
	must(t, errors.Join(db.Update(fn), db.Close()))
}

func TestDamagedRecords(t *testing.T) {
	put := func(bucket, key, value string) func(*bbolt.Tx) error {
		return func(tx *bbolt.Tx) error { return tx.Bucket([]byte(bucket)).Put([]byte(key), []byte(value)) }
	}
	key := string(binary.BigEndian.AppendUint64(nil, 1))
	cases := map[string]func(*bbolt.Tx) error{
		"no schema":       func(tx *bbolt.Tx) error { return tx.Bucket([]byte("meta")).Delete([]byte("schema")) },
		"no bucket":       func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte("docs")) },
		"no meta":         func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte("meta")) },
		"no pool":         func(tx *bbolt.Tx) error { return tx.Bucket([]byte("meta")).Delete([]byte("pool")) },
		"pool is no JSON": put("meta", "pool", "{"),
		"node is no JSON": put("nodes", key, "\xff"),
		"tombstone":       put("tombs", "\x00\x00\x00\x01", "[]"),
		"document":        put("docs", "image\x00x", "7"),
	}
	for what, damage := range cases {
		t.Run(what, func(t *testing.T) {
			path := create(t)
			s := open(t, path)
			update(t, s, func(tx *metadata.Tx) error { _, err := tx.AddNode(node("a", 1, 0)); return err })
			must(t, s.Close())
			tamper(t, path, damage)
			mustFail(t, readAll(open(t, path)), errs.ErrDamaged)
		})
	}
}

// A damaged record is not taken for a free name.
func TestDamagedRecordIsNotOverwritten(t *testing.T) {
	path := create(t)
	s := open(t, path)
	update(t, s, func(tx *metadata.Tx) error { _, err := tx.AddNode(node("a", 1, 0)); return err })
	must(t, s.Close())
	tamper(t, path, func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("nodes")).Put(binary.BigEndian.AppendUint64(nil, 1), []byte("broken"))
	})
	err := open(t, path).Update(context.Background(), func(tx *metadata.Tx) error {
		_, err := tx.AddNode(node("a", 2, 0))
		return err
	})
	mustFail(t, err, errs.ErrDamaged)
}

// readAll reads everything that there is.
func readAll(s *metadata.Store) error {
	return s.View(context.Background(), func(tx *metadata.Tx) error {
		if _, err := tx.Pool(); err != nil {
			return err
		}
		if _, err := tx.Tombstones(); err != nil {
			return err
		}
		if _, err := tx.Documents("image"); err != nil {
			return err
		}
		return tx.Nodes(func(n metadata.Node) error {
			tx.DocumentsOf(n.Key)
			_, err := tx.Children(n.Key)
			return err
		})
	})
}

func TestNotAStore(t *testing.T) {
	for _, content := range []string{"", "x", strings.Repeat("\x00", 1<<16), strings.Repeat("\xff", 1<<16)} {
		path := filepath.Join(t.TempDir(), "records.db")
		must(t, os.WriteFile(path, []byte(content), 0o600))
		saidCut(t, readAll(open(t, path)))
	}
}

// saidCut checks that an error says that the store is damaged, and what to do, in words.
func saidCut(t testing.TB, err error) {
	t.Helper()
	if !errors.Is(err, errs.ErrDamaged) || !strings.Contains(errs.Hint(err), "pool import") || strings.Contains(err.Error(), "runtime error") {
		t.Errorf("%v; hint %q", err, errs.Hint(err))
	}
}

// A store that is cut off is said to be damaged, wherever it was cut, and nothing is made of what is left.
func TestCutOff(t *testing.T) {
	seed := seedStore(t)
	for _, size := range []int{0, 100, 5000, 8192, len(seed) / 2, len(seed) - 4096*3} {
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "records.db")
			must(t, os.WriteFile(path, seed[:size], 0o600))
			s := open(t, path)
			saidCut(t, readAll(s))
			saidCut(t, s.Update(context.Background(), func(tx *metadata.Tx) error { return tx.PutTombstone(metadata.Tombstone{ID: 7}) }))
			if _, err := s.Check(context.Background()); size < 8192 && !errors.Is(err, errs.ErrDamaged) {
				t.Errorf("check: %v", err)
			}
			if err := s.Sync(context.Background()); size < 8192 && !errors.Is(err, errs.ErrDamaged) {
				t.Errorf("sync: %v", err)
			}
			if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, seed[:size]) {
				t.Errorf("%d bytes are %d: %v", size, len(b), err)
			}
		})
	}
}

// seedStore is a small store as bytes.
func seedStore(t testing.TB) []byte {
	path := create(t)
	s := open(t, path)
	update(t, s, func(tx *metadata.Tx) error {
		a, err := tx.AddNode(node("a", 1, 0))
		if err != nil {
			return err
		}
		if _, err := tx.AddNode(node("b", 2, a.Key)); err != nil {
			return err
		}
		return errors.Join(tx.PutTombstone(metadata.Tombstone{ID: 3, Name: "gone"}),
			tx.PutDocument(metadata.Document{Kind: "image", Key: "i", Nodes: []metadata.Key{a.Key}, Data: json.RawMessage(`{}`)}))
	})
	must(t, s.Close())
	b, err := os.ReadFile(path)
	must(t, err)
	return b
}

// Pages that make bbolt panic or fault become errors, and the store is not left locked. (Not every damage
// does: bbolt follows a page that leads back to itself for ever.)
func TestDamagedPages(t *testing.T) {
	seed := seedStore(t)
	for page := 2; page < len(seed)/4096; page++ {
		for what, change := range map[string]string{"flags": "\xff\xff\xff\xff", "elements": "\xff\xff\xff\x7f\xff\xff\xff\x7f\xff\xff"} {
			t.Run(fmt.Sprintf("page %d %s", page, what), func(t *testing.T) {
				at := page*4096 + map[string]int{"flags": 8, "elements": 16}[what]
				b := append([]byte(nil), seed...)
				copy(b[at:], change)
				path := filepath.Join(t.TempDir(), "records.db")
				must(t, os.WriteFile(path, b, 0o600))
				s := open(t, path)
				for range 2 {
					if err := readAll(s); err != nil && !errors.Is(err, errs.ErrDamaged) && !errors.Is(err, errs.ErrNotFound) {
						t.Errorf("reading: %v", err)
					}
				}
				err := s.Update(context.Background(), func(tx *metadata.Tx) error { return tx.PutTombstone(metadata.Tombstone{ID: 7}) })
				if errors.Is(err, errs.ErrBusy) {
					t.Errorf("left locked: %v", err)
				}
			})
		}
	}
}

// FuzzDamagedRecord puts foreign bytes in the place of a record. Reading it ends in an error or not, but
// never in a panic.
func FuzzDamagedRecord(f *testing.F) {
	buckets := []string{"meta", "nodes", "names", "ids", "children", "tombs", "docs", "docrefs"}
	key := string(binary.BigEndian.AppendUint64(nil, 1))
	for i := range buckets {
		f.Add(uint8(i), []byte(key), []byte("{}"))
		f.Add(uint8(i), []byte("\x00\x00\x00\x01"), []byte(`{"id":-1}`))
	}
	f.Add(uint8(0), []byte("pool"), []byte(`{"lowId":99999999999}`))
	f.Add(uint8(2), []byte("a"), []byte("short"))
	f.Add(uint8(6), []byte("image\x00x"), []byte(`{"nodes":[7]}`))
	seed := seedStore(f)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, bucket uint8, key, value []byte) {
		if len(key) == 0 || len(key) > bbolt.MaxKeySize {
			return
		}
		path := filepath.Join(dir, fmt.Sprintf("records-%d.db", os.Getpid()))
		must(t, os.WriteFile(path, seed, 0o600))
		tamper(t, path, func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte(buckets[int(bucket)%len(buckets)])).Put(key, value)
		})
		s := metadata.New(path, &lock{})
		defer s.Close()
		_ = readAll(s)
		_ = s.Update(context.Background(), func(tx *metadata.Tx) error {
			if _, err := tx.AddNode(node(string(key), 9, 1)); err != nil {
				return err
			}
			n, err := tx.Node("a")
			if err == nil {
				n.Name = "z"
				err = tx.PutNode(n)
			}
			return err
		})
	})
}

func hasChildren(tx *metadata.Tx, key metadata.Key) bool {
	children, err := tx.Children(key)
	return err == nil && len(children) > 0
}
