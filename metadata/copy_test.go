package metadata_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
)

var taken = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// fullStore has every kind of record, and a node whose parent is younger than itself.
func fullStore(t testing.TB) *metadata.Store {
	t.Helper()
	s := open(t, create(t))
	must(t, s.Update(context.Background(), func(tx *metadata.Tx) error {
		var nodes []metadata.Node
		for i, name := range []string{".template-1", "base", "web", "late"} {
			n, err := tx.AddNode(metadata.Node{ID: metadata.ThinID(i + 1), Name: name, Kind: metadata.KindLayer, Size: 1 << 30, FS: "ext4", Created: taken})
			if err != nil {
				return err
			}
			nodes = append(nodes, n)
		}
		web := nodes[2]
		web.ID, web.Parent, web.Kind, web.Foreign = 9, nodes[3].Key, metadata.KindSnapshot, true
		web.Labels, web.Attrs = map[string]string{"k": "v\nw"}, map[string]string{"a": "b"}
		if err := tx.PutNode(web); err != nil {
			return err
		}
		if err := tx.PutTombstone(metadata.Tombstone{ID: 3, Name: "web", Since: taken}); err != nil {
			return err
		}
		return tx.PutDocument(metadata.Document{Kind: "image", Key: "sha256:1", Nodes: []metadata.Key{2}, Data: json.RawMessage(`{ "config": "<&>" }`)})
	}))
	return s
}

func copyOf(t testing.TB, s *metadata.Store) (text []byte) {
	t.Helper()
	must(t, s.View(context.Background(), func(tx *metadata.Tx) error {
		var b bytes.Buffer
		err := tx.WriteCopy(&b, taken)
		text = b.Bytes()
		return err
	}))
	return text
}

func TestCopyAndRestore(t *testing.T) {
	s := fullStore(t)
	text := copyOf(t, s)
	c, err := metadata.ReadCopy(bytes.NewReader(text))
	must(t, err)
	version, err := s.Version()
	must(t, err)
	if !c.Taken.Equal(taken) || c.Version != version || c.Pool.UUID != testPool.UUID || len(c.Nodes) != 4 || len(c.Tombstones) != 1 || len(c.Documents) != 1 {
		t.Fatalf("read %+v", c)
	}
	path := filepath.Join(t.TempDir(), "records.db")
	must(t, os.WriteFile(path, []byte("a store that is damaged"), 0o600))
	must(t, metadata.Restore(path, c))
	again := open(t, path)
	must(t, again.View(context.Background(), func(tx *metadata.Tx) error {
		got, err := metadata.CopyOf(tx, taken)
		if err != nil {
			return err
		}
		got.Version = c.Version
		if !reflect.DeepEqual(got, c) {
			t.Errorf("restored\n%+v\nof\n%+v", got, c)
		}
		n, err := tx.NodeByID(9)
		if err != nil || n.Name != "web" || n.Key != 3 {
			t.Errorf("by its thin id: %+v, %v", n, err)
		}
		children, err := tx.Children(4)
		if err != nil || len(children) != 1 || children[0].Name != "web" {
			t.Errorf("children: %+v, %v", children, err)
		}
		if docs := tx.DocumentsOf(2); len(docs) != 1 {
			t.Errorf("documents of a node: %v", docs)
		}
		return nil
	}))
	if left, _ := filepath.Glob(path + ".*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A name that leads out of a folder is of no node.
func TestCopyWithPaths(t *testing.T) {
	text := copyOf(t, fullStore(t))
	c, err := metadata.ReadCopy(bytes.NewReader(text))
	must(t, err)
	for _, name := range []string{"../../etc", "a/b", "..", ".", "a\x00b"} {
		c.Nodes[0].Name = name
		if err := metadata.Restore(filepath.Join(t.TempDir(), "records.db"), c); !errors.Is(err, errs.ErrDamaged) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// Whoever has a store open that is replaced sees the new one, and never takes what he has read for what is in it.
func TestReplacedWhileOpen(t *testing.T) {
	s := fullStore(t)
	text := copyOf(t, s)
	c, err := metadata.ReadCopy(bytes.NewReader(text))
	must(t, err)
	for range 3 { // the copy is older than what is there
		must(t, s.Update(context.Background(), func(tx *metadata.Tx) error { return tx.PutTombstone(metadata.Tombstone{ID: 12}) }))
	}
	before, err := s.Version() // of the mapped file
	must(t, err)
	must(t, metadata.Restore(s.Path(), c))
	after, err := s.Version()
	must(t, err)
	if after <= before {
		t.Errorf("the version was %d and is %d", before, after)
	}
	if got := copyOf(t, s); bytes.Contains(got, []byte(`"id":12`)) {
		t.Errorf("it still reads what was replaced: %s", got)
	}
	again, err := metadata.ReadCopy(bytes.NewReader(copyOf(t, s)))
	must(t, err)
	must(t, metadata.Restore(s.Path(), again))
	must(t, s.Update(context.Background(), func(tx *metadata.Tx) error { return tx.PutTombstone(metadata.Tombstone{ID: 13}) }))
	if last, err := s.Version(); err != nil || last <= after {
		t.Errorf("after a write the version is %d, and was %d: %v", last, after, err)
	}
	problems, err := s.Check(context.Background())
	if err != nil || len(problems) > 0 {
		t.Errorf("the store with a raised version: %v, %v", problems, err)
	}
}

// A copy that is not what was written is never read, whatever byte of it is wrong or missing.
func TestDamagedCopy(t *testing.T) {
	text := copyOf(t, fullStore(t))
	for i := range text {
		bad := bytes.Clone(text)
		bad[i] ^= 0x10
		if _, err := metadata.ReadCopy(bytes.NewReader(bad)); err == nil {
			t.Fatalf("with byte %d changed: %s", i, bad)
		}
		if _, err := metadata.ReadCopy(bytes.NewReader(text[:i])); !errors.Is(err, errs.ErrDamaged) {
			t.Fatalf("of %d bytes: %v", i, err)
		}
	}
	if _, err := metadata.ReadCopy(bytes.NewReader(append(bytes.Clone(text), '\n'))); !errors.Is(err, errs.ErrDamaged) {
		t.Errorf("with something behind: %v", err)
	}
	newer := bytes.Replace(text, fmt.Appendf(nil, `"schema":%d`, metadata.SchemaVersion), fmt.Appendf(nil, `"schema":%d`, metadata.SchemaVersion+1), 1)
	if _, err := metadata.ReadCopy(bytes.NewReader(newer)); !errors.Is(err, errs.ErrUnsupported) {
		t.Errorf("of another version: %v", err)
	}
}

// seal ends a copy of these lines as dmlayer would.
func seal(lines ...string) string {
	text := strings.Join(lines, "\n") + "\n"
	sum := sha256.Sum256([]byte(text))
	return text + fmt.Sprintf(`{"records":%d,"sha256":%q}`, len(lines)-1, hex.EncodeToString(sum[:])) + "\n"
}

const (
	copyHead  = `{"format":"dmlayer records","schema":1,"pool":{"uuid":"0123456789abcdef0123456789abcdef","blockSize":65536,"baseSize":1}}`
	copyLayer = `{"node":{"key":1,"id":1,"name":"a","size":1}}`
)

// Records with a right checksum that do not fit together would be a store that fails later.
func TestCopyThatMakesNoSense(t *testing.T) {
	if _, err := metadata.ReadCopy(strings.NewReader(seal(copyHead, copyLayer))); err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{
		"no uuid":             seal(`{"format":"dmlayer records","schema":1,"pool":{"blockSize":65536,"baseSize":1}}`),
		"no block size":       seal(`{"format":"dmlayer records","schema":1,"pool":{"uuid":"0123456789abcdef0123456789abcdef","baseSize":1}}`),
		"a line of no kind":   seal(copyHead, `{}`),
		"no JSON":             seal(copyHead, `{`),
		"the same key":        seal(copyHead, copyLayer, `{"node":{"key":1,"id":2,"name":"b","size":1}}`),
		"the same id":         seal(copyHead, copyLayer, `{"node":{"key":2,"id":1,"name":"b","size":1}}`),
		"the same name":       seal(copyHead, copyLayer, `{"node":{"key":2,"id":2,"name":"a","size":1}}`),
		"no id":               seal(copyHead, `{"node":{"key":1,"name":"a","size":1}}`),
		"no key":              seal(copyHead, `{"node":{"id":1,"name":"a","size":1}}`),
		"no size":             seal(copyHead, `{"node":{"key":1,"id":1,"name":"a"}}`),
		"an id out of range":  seal(copyHead, `{"node":{"key":1,"id":16777216,"name":"a","size":1}}`),
		"no parent":           seal(copyHead, `{"node":{"key":1,"id":1,"name":"a","size":1,"parent":7}}`),
		"its own parent":      seal(copyHead, `{"node":{"key":1,"id":1,"name":"a","size":1,"parent":1}}`),
		"a ring":              seal(copyHead, `{"node":{"key":1,"id":1,"name":"a","size":1,"parent":2}}`, `{"node":{"key":2,"id":2,"name":"b","size":1,"parent":1}}`),
		"a buried node":       seal(copyHead, copyLayer, `{"tombstone":{"id":1}}`),
		"the label buried":    seal(copyHead, `{"tombstone":{"id":0}}`),
		"a document twice":    seal(copyHead, `{"document":{"kind":"k","key":"k"}}`, `{"document":{"kind":"k","key":"k"}}`),
		"a document of none":  seal(copyHead, `{"document":{"kind":"k","key":"k","nodes":[3]}}`),
		"a nameless document": seal(copyHead, `{"document":{"kind":"k"}}`),
	} {
		t.Run(what, func(t *testing.T) {
			if c, err := metadata.ReadCopy(strings.NewReader(text)); !errors.Is(err, errs.ErrDamaged) {
				t.Errorf("%+v, %v", c, err)
			}
		})
	}
}

// A chain as long as a copy can hold must not take for ever.
func TestCopyOfALongChain(t *testing.T) {
	lines := []string{copyHead, copyLayer}
	for i := 2; i <= 100000; i++ {
		lines = append(lines, fmt.Sprintf(`{"node":{"key":%d,"id":%[1]d,"name":"n%[1]d","size":1,"parent":%d}}`, i, i-1))
	}
	if _, err := metadata.ReadCopy(strings.NewReader(seal(lines...))); err != nil {
		t.Fatal(err)
	}
}

func TestRestoreRefusesWhatDoesNotFit(t *testing.T) {
	path := create(t)
	before, err := os.ReadFile(path)
	must(t, err)
	err = metadata.Restore(path, &metadata.Copy{Pool: testPool, Nodes: []metadata.Node{{Key: 1, ID: 1, Name: "a"}}})
	if after, _ := os.ReadFile(path); !errors.Is(err, errs.ErrDamaged) || !bytes.Equal(before, after) {
		t.Errorf("%v; the store was changed: %v", err, !bytes.Equal(before, after))
	}
}

// A store with a record that cannot be read gives no copy that looks good.
func TestCopyOfADamagedStore(t *testing.T) {
	s := fullStore(t)
	must(t, s.Update(context.Background(), func(tx *metadata.Tx) error {
		return tx.PutTombstone(metadata.Tombstone{ID: 9})
	}))
	if _, err := metadata.ReadCopy(bytes.NewReader(copyOf(t, s))); !errors.Is(err, errs.ErrDamaged) {
		t.Errorf("got %v", err)
	}
}

func FuzzReadCopy(f *testing.F) {
	f.Add([]byte(seal(copyHead, copyLayer)))
	f.Add([]byte(seal(copyHead, `{"node":null}`, `{"tombstone":{"id":1,"since":"2026-11-21T12:00:00Z"}}`)))
	f.Add([]byte(`{"format":"dmlayer records","schema":1}` + "\n" + `{"records":0}` + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		// A checksum that fits lets the fuzzer behind it.
		body, _, _ := bytes.Cut(text, []byte("\n{\"records\""))
		for _, text := range [][]byte{text, []byte(seal(strings.Split(string(body), "\n")...))} {
			c, err := metadata.ReadCopy(bytes.NewReader(text))
			if err != nil {
				if c != nil || errs.Class(err) == nil {
					t.Fatalf("%+v, %v", c, err)
				}
				continue
			}
			if err := metadata.Restore(filepath.Join(t.TempDir(), "records.db"), c); err != nil {
				t.Fatalf("what was read cannot be restored: %v", err)
			}
		}
	})
}
