package metadata_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
)

func kinds(problems []metadata.Problem) (list []string) {
	for _, p := range problems {
		if !slices.Contains(list, p.Kind) {
			list = append(list, p.Kind)
		}
	}
	return list
}

// A store that has grown, shrunk and been rewritten has nothing wrong with it, and a check changes nothing.
func TestCheckSound(t *testing.T) {
	path := create(t)
	s := open(t, path)
	for round := range 6 {
		update(t, s, func(tx *metadata.Tx) error {
			for i := range 300 {
				key := metadata.Key(1 + round*300 + i)
				parent := metadata.Key(0)
				if i > 0 {
					parent = key - 1
				}
				if _, err := tx.AddNode(node(fmt.Sprintf("n%d", key), metadata.ThinID(key), parent)); err != nil {
					return err
				}
			}
			return nil
		})
		update(t, s, func(tx *metadata.Tx) error {
			for i := 299; i >= round*40; i-- {
				if err := tx.DeleteNode(metadata.Key(1 + round*300 + i)); err != nil {
					return err
				}
				if err := tx.PutTombstone(metadata.Tombstone{ID: metadata.ThinID(1 + round*300 + i)}); err != nil {
					return err
				}
			}
			return nil
		})
		problems, err := s.Check(context.Background())
		must(t, err)
		if len(problems) > 0 {
			t.Fatalf("round %d: %v", round, problems)
		}
	}
}

func TestCheckRecords(t *testing.T) {
	key := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
	rewrite := func(tx *bbolt.Tx, bucket string, k []byte, change func(map[string]any)) error {
		var record map[string]any
		if err := json.Unmarshal(tx.Bucket([]byte(bucket)).Get(k), &record); err != nil {
			return err
		}
		change(record)
		v, err := json.Marshal(record)
		if err != nil {
			return err
		}
		return tx.Bucket([]byte(bucket)).Put(k, v)
	}
	for _, c := range []struct {
		name, kind string
		change     func(tx *bbolt.Tx) error
	}{
		{"node that is no record", metadata.ProblemRecord, func(tx *bbolt.Tx) error { return tx.Bucket([]byte("nodes")).Put(key(2), []byte("{")) }},
		{"pool that is no record", metadata.ProblemRecord, func(tx *bbolt.Tx) error { return tx.Bucket([]byte("meta")).Put([]byte("pool"), []byte("[]")) }},
		{"window upside down", metadata.ProblemRecord, func(tx *bbolt.Tx) error {
			return rewrite(tx, "meta", []byte("pool"), func(r map[string]any) { r["lowId"] = 99 })
		}},
		{"two nodes of one thin id", metadata.ProblemRecord, func(tx *bbolt.Tx) error {
			return rewrite(tx, "nodes", key(2), func(r map[string]any) { r["id"] = 1 })
		}},
		{"living and being deleted", metadata.ProblemRecord, func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte("tombs")).Put([]byte("\x00\x00\x00\x02"), []byte(`{"id":2,"name":"b"}`))
		}},
		{"name lost", metadata.ProblemIndex, func(tx *bbolt.Tx) error { return tx.Bucket([]byte("names")).Delete([]byte("a")) }},
		{"name of another", metadata.ProblemIndex, func(tx *bbolt.Tx) error { return tx.Bucket([]byte("names")).Put([]byte("a"), key(2)) }},
		{"child lost", metadata.ProblemIndex, func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte("children")).Delete(append(key(1), key(2)...))
		}},
		{"sum of sizes wrong", metadata.ProblemIndex, func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte("meta")).Put([]byte("writable"), key(5))
		}},
		{"document's hold lost", metadata.ProblemIndex, func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte("docrefs")).Delete(append(key(1), []byte("image\x00i")...))
		}},
		{"thin id of nobody", metadata.ProblemIndex, func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte("ids")).Put([]byte("\x00\x00\x00\x09"), key(2))
		}},
		{"parent gone", metadata.ProblemParent, func(tx *bbolt.Tx) error {
			return rewrite(tx, "nodes", key(2), func(r map[string]any) { r["parent"] = 77 })
		}},
		{"its own ancestor", metadata.ProblemParent, func(tx *bbolt.Tx) error {
			return rewrite(tx, "nodes", key(1), func(r map[string]any) { r["parent"] = 2 })
		}},
		{"document of nothing", metadata.ProblemDocument, func(tx *bbolt.Tx) error {
			return rewrite(tx, "docs", []byte("image\x00i"), func(r map[string]any) { r["nodes"] = []int{77} })
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "records.db")
			must(t, os.WriteFile(path, seedStore(t), 0o600))
			tamper(t, path, c.change)
			problems, err := open(t, path).Check(context.Background())
			must(t, err)
			if !slices.Contains(kinds(problems), c.kind) {
				t.Errorf("found %v, want a problem of kind %q", problems, c.kind)
			}
			reindex(t, path, problems)
		})
	}
}

// reindex makes the indexes of a store anew: nothing else is wrong after that than was before, and where that is a record, nothing changes.
func reindex(t *testing.T, path string, before []metadata.Problem) {
	t.Helper()
	s := metadata.New(path, &lock{})
	defer s.Close()
	err := s.Update(context.Background(), func(tx *metadata.Tx) error { return tx.Reindex() })
	if err != nil && !errors.Is(err, errs.ErrDamaged) {
		t.Errorf("made anew: %v", err)
	}
	now, cerr := s.Check(context.Background())
	must(t, cerr)
	want := slices.Clone(before)
	if err == nil {
		want = slices.DeleteFunc(want, func(p metadata.Problem) bool { return p.Kind == metadata.ProblemIndex })
	}
	if !slices.Equal(now, want) {
		t.Errorf("with indexes made anew (%v): %v, want %v", err, now, want)
	}
}

// Whatever the pages say, the check ends, and says what it found.
func TestCheckPages(t *testing.T) {
	seed := seedStore(t)
	for page := 2; page < len(seed)/4096; page++ {
		if binary.NativeEndian.Uint64(seed[page*4096:]) != uint64(page) {
			continue // of an older transaction, or never written
		}
		for what, change := range map[string]struct {
			at   int
			text string
		}{
			"id": {0, "\xff\xff"}, "kind": {8, "\x77"}, "overflow": {12, "\xff\xff\xff\x7f"}, "entries": {10, "\xff\xff"}, "positions": {16, "\xff\xff\xff\x7f\xff\xff\xff\x7f\xff\xff"},
		} {
			b := slices.Clone(seed)
			copy(b[page*4096+change.at:], change.text)
			problems, err := checkBytes(t, b)
			if err != nil && !errors.Is(err, errs.ErrDamaged) {
				t.Errorf("page %d, %s: %v", page, what, err)
			}
			t.Logf("page %d, %s: %v", page, what, problems)
		}
	}
}

// Every single page that is in use is missed when it is zeroed, and a file that was cut off is noticed.
func TestCheckPagesLost(t *testing.T) {
	seed := seedStore(t)
	lost := 0
	for page := 2; page < len(seed)/4096; page++ {
		b := slices.Clone(seed)
		clear(b[page*4096 : (page+1)*4096])
		problems, err := checkBytes(t, b)
		must(t, err)
		lost += len(problems)
	}
	if lost < 2 {
		t.Errorf("zeroed pages were missed %d times", lost)
	}
	problems, err := checkBytes(t, seed[:3*4096])
	must(t, err)
	if !slices.Equal(kinds(problems), []string{metadata.ProblemPages}) {
		t.Errorf("a file that was cut off: %v", problems)
	}
}

// A page that leads back to itself is where bbolt would go round for ever.
func TestCheckLoop(t *testing.T) {
	path := create(t)
	s := open(t, path)
	update(t, s, func(tx *metadata.Tx) error {
		for key := metadata.Key(1); key < 600; key++ {
			if _, err := tx.AddNode(node(fmt.Sprintf("n%d", key), metadata.ThinID(key), 0)); err != nil {
				return err
			}
		}
		return nil
	})
	must(t, s.Close())
	b, err := os.ReadFile(path)
	must(t, err)
	looped := 0
	for page := 2; page < len(b)/4096; page++ {
		p := b[page*4096:]
		const branch = 1
		if binary.NativeEndian.Uint64(p) != uint64(page) || binary.NativeEndian.Uint16(p[8:]) != branch {
			continue
		}
		c := slices.Clone(b)
		binary.NativeEndian.PutUint64(c[page*4096+16+8:], uint64(page))
		problems, err := checkBytes(t, c)
		must(t, err)
		if len(problems) > 0 {
			looped++
		}
	}
	if looped == 0 {
		t.Error("no loop was found")
	}
}

func checkBytes(t testing.TB, b []byte) ([]metadata.Problem, error) {
	path := filepath.Join(t.TempDir(), "records.db")
	must(t, os.WriteFile(path, b, 0o600))
	s := metadata.New(path, &lock{})
	defer s.Close()
	return s.Check(context.Background())
}

// FuzzPages puts foreign bytes into the pages of a store. Checking it ends, with an error, problems or neither.
func FuzzPages(f *testing.F) {
	seed := seedStore(f)
	for page := 2; page < len(seed)/4096; page++ {
		f.Add(uint32(page*4096), []byte{0xff, 0xff})
		f.Add(uint32(page*4096+8), []byte{1, 0, 1, 0})
		f.Add(uint32(page*4096+16), []byte{1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
	}
	f.Fuzz(func(t *testing.T, at uint32, change []byte) {
		b := slices.Clone(seed)
		if int(at) < 2*4096 || int(at) >= len(b) {
			return
		}
		copy(b[at:], change)
		_, _ = metadata.CheckPages(b)
	})
}
