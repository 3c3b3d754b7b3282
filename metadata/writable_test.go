package metadata_test

import (
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/dmlayer/dmlayer/metadata"
)

// What can be written is summed up with each change, also of a store of an older program, which does not keep the sum.
func TestWritable(t *testing.T) {
	path := create(t)
	s := open(t, path)
	want := func(bytes int64) {
		t.Helper()
		view(t, s, func(tx *metadata.Tx) error {
			got, err := tx.Writable()
			if got != bytes {
				t.Errorf("%d bytes can be written, want %d", got, bytes)
			}
			return err
		})
		problems, err := s.Check(t.Context())
		must(t, err)
		if len(problems) > 0 {
			t.Errorf("check: %v", problems)
		}
	}
	of := func(name string, id metadata.ThinID, kind metadata.Kind, size int64) metadata.Node {
		n := node(name, id, 0)
		n.Kind, n.Size = kind, size
		return n
	}
	add := func(n metadata.Node) (added metadata.Node) {
		update(t, s, func(tx *metadata.Tx) (err error) { added, err = tx.AddNode(n); return err })
		return added
	}
	want(0)
	add(of("l", 1, metadata.KindLayer, 1<<30))
	add(of(".t", 2, metadata.KindTemplate, 1<<30))
	want(0)
	a := add(of("a", 3, metadata.KindSnapshot, 5<<30))
	add(of("v", 4, metadata.KindVolume, 1<<30))
	want(6 << 30)
	a.Size = 7 << 30
	update(t, s, func(tx *metadata.Tx) error { return tx.PutNode(a) })
	want(8 << 30)

	tamper(t, path, func(tx *bbolt.Tx) error { return tx.Bucket([]byte("meta")).Delete([]byte("writable")) })
	want(8 << 30)
	a.Kind = metadata.KindLayer
	update(t, s, func(tx *metadata.Tx) error { return tx.PutNode(a) })
	want(1 << 30)
	update(t, s, func(tx *metadata.Tx) error { return tx.DeleteNode(4) })
	want(0)

	b := add(of("b", 9, metadata.KindSnapshot, 3<<30))
	var c *metadata.Copy
	view(t, s, func(tx *metadata.Tx) (err error) { c, err = metadata.CopyOf(tx, time.Now()); return err })
	update(t, s, func(tx *metadata.Tx) error { return tx.DeleteNode(b.Key) })
	update(t, s, func(tx *metadata.Tx) error { return tx.Replace(c) })
	want(3 << 30)
}

// A store without the sum that has a damaged record can still be changed.
func TestWritableOfDamaged(t *testing.T) {
	path := create(t)
	s := open(t, path)
	update(t, s, func(tx *metadata.Tx) error {
		for i, name := range []string{"a", "b"} {
			if _, err := tx.AddNode(node(name, metadata.ThinID(i+1), 0)); err != nil {
				return err
			}
		}
		return nil
	})
	tamper(t, path, func(tx *bbolt.Tx) error {
		if err := tx.Bucket([]byte("meta")).Delete([]byte("writable")); err != nil {
			return err
		}
		return tx.Bucket([]byte("nodes")).Put([]byte{0, 0, 0, 0, 0, 0, 0, 1}, []byte("{"))
	})
	update(t, s, func(tx *metadata.Tx) error { return tx.DeleteNode(2) })
}
