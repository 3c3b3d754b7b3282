package metadata_test

import (
	"bytes"
	"os"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
)

// TestSync changes nothing in a store, whichever of its two headers is the newest, and refuses a file without one.
// That it makes a header durable that the disk had not taken, TestRecordLost of test/torture shows.
func TestSync(t *testing.T) {
	path := create(t)
	s := open(t, path)
	for id := range metadata.ThinID(3) {
		update(t, s, func(tx *metadata.Tx) error {
			_, err := tx.AddNode(node(string(rune('a'+id)), id+1, 0))
			return err
		})
		before, err := os.ReadFile(path)
		must(t, err)
		must(t, s.Sync(t.Context()))
		after, err := os.ReadFile(path)
		must(t, err)
		if !bytes.Equal(before, after) {
			t.Errorf("after %d transactions: the store was changed", id+1)
		}
	}
	must(t, s.Close())
	must(t, os.WriteFile(path, make([]byte, 8*os.Getpagesize()), 0o600))
	mustFail(t, open(t, path).Sync(t.Context()), errs.ErrDamaged)
	must(t, os.Remove(path))
	if err := open(t, path).Sync(t.Context()); err == nil {
		t.Error("a store that is not there")
	}
}
