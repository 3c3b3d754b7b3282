package main_test

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
	"go.etcd.io/bbolt"
)

// cmdRecord replaces a text in all keys and values of a bucket of the stopped default pool's record store, behind everybody's back. "\0" is a zero.
func cmdRecord(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: record BUCKET OLD NEW")
	}
	db, err := bbolt.Open(filepath.Join(ts.Getenv("DMLAYER_ROOT"), "pools", "default", "records.db"), 0o600, nil)
	ts.Check(err)
	text := func(arg string) []byte { return []byte(strings.ReplaceAll(arg, `\0`, "\x00")) }
	changed, err := replaceIn(db, args[0], text(args[1]), text(args[2]))
	ts.Check(errors.Join(err, db.Close()))
	if changed == 0 {
		ts.Fatalf("nothing in %s has %q", args[0], args[1])
	}
}

func replaceIn(db *bbolt.DB, bucket string, old, text []byte) (changed int, err error) {
	err = db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(bucket))
		var before, after [][2][]byte
		_ = b.ForEach(func(k, v []byte) error {
			if bytes.Contains(k, old) || bytes.Contains(v, old) {
				before = append(before, [2][]byte{bytes.Clone(k), nil})
				after = append(after, [2][]byte{bytes.ReplaceAll(k, old, text), bytes.ReplaceAll(v, old, text)})
			}
			return nil
		})
		changed = len(after)
		for i := range after {
			if err := errors.Join(b.Delete(before[i][0]), b.Put(after[i][0], after[i][1])); err != nil {
				return err
			}
		}
		return nil
	})
	return changed, err
}
