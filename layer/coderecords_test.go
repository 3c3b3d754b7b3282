package layer_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// damageBolt writes to the record store below everything that keeps it in order.
func damageBolt(t testing.TB, e *pooltest.Env, fn func(tx *bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(e.Store(), 0o600, nil)
	must(t, err)
	must(t, errors.Join(db.Update(fn), db.Close()))
}

// damagePage breaks the page of the record store in which a text is.
func damagePage(t testing.TB, e *pooltest.Env, text string) {
	t.Helper()
	b, err := os.ReadFile(e.Store())
	must(t, err)
	damaged := 0
	for page := 2 * 4096; page < len(b); page += 4096 {
		if binary.NativeEndian.Uint64(b[page:]) == uint64(page/4096) && strings.Contains(string(b[page:page+4096]), text) {
			b[page+8] ^= 0x77 // its kind
			damaged++
		}
	}
	if damaged == 0 {
		t.Fatalf("no page has %q", text)
	}
	must(t, os.WriteFile(e.Store(), b, 0o600))
}

// recordDamages are what the records of a pool with the layer "base" and the snapshot "web" can be like that a check tells, and nothing mends.
var recordDamages = []struct {
	name, code string
	unchecked  bool // all else
	make       func(t testing.TB, e *pooltest.Env)
}{
	{"page", pool.FoundRecordsPages, true, func(t testing.TB, e *pooltest.Env) { damagePage(t, e, `"key":"d-50"`) }},
	{"record that is none", pool.FoundRecordsRecord, true, func(t testing.TB, e *pooltest.Env) {
		key := binary.BigEndian.AppendUint64(nil, uint64(node(t, e, "web").Key))
		damageBolt(t, e, func(tx *bbolt.Tx) error { return tx.Bucket([]byte("nodes")).Put(key, []byte("{")) })
	}},
	{"record without sense", pool.FoundRecordsRecord, true, func(t testing.TB, e *pooltest.Env) {
		must(t, e.Tamper(pooltest.Context(t), func(tx *metadata.Tx) error {
			n, err := tx.Node("web")
			n.Size = -1
			return errors.Join(err, tx.PutNode(n))
		}))
	}},
	{"record and index", pool.FoundRecordsRecord, true, func(t testing.TB, e *pooltest.Env) {
		key := binary.BigEndian.AppendUint64(nil, uint64(node(t, e, "web").Key))
		damageBolt(t, e, func(tx *bbolt.Tx) error {
			return errors.Join(tx.Bucket([]byte("nodes")).Put(key, []byte("{")), tx.Bucket([]byte("names")).Delete([]byte("web")))
		})
	}},
}

// Damaged records are told, changed by nothing that checks or mends, and put back by what the finding says: a copy.
func TestCheckDamagedRecords(t *testing.T) {
	e := pooltest.New(t, pool.Spec{DataSize: 256 << 20, BaseSize: 64 << 20})
	s, err := layer.Open(pooltest.Context(t), e.Config())
	must(t, err)
	makeLayer(t, s, "base", "", baseFiles)
	makeSnapshot(t, s, "web", "base")
	must(t, s.UpdateDocuments(pooltest.Context(t), func(tx *layer.DocTx) (err error) {
		for i := range 100 { // as many as take pages of their own, which no open reads
			key := "d-" + strconv.Itoa(i)
			err = errors.Join(err, tx.Put(layer.Document{Kind: "test", Key: key, Data: json.RawMessage(strconv.Quote(key + strings.Repeat(" ", 500)))}))
		}
		return err
	}))
	must(t, s.Close())
	for _, d := range recordDamages {
		t.Run(d.name, func(t *testing.T) {
			ctx := pooltest.Context(t)
			must(t, pool.Stop(ctx, e.Dirs, e.Name)) // which copies them
			d.make(t, e)
			before := fileTexts(t, e.Store(), e.Metadata())
			wantCodes(t, e, d.code)
			r, err := pool.Check(ctx, e.Dirs, e.Name, pool.CheckOptions{Mend: func(pool.Finding) bool { return true }})
			must(t, err)
			f := r.Findings[0]
			if f.Code != d.code || f.Class != pool.NeedsPerson || f.Mendable() || !strings.Contains(f.Do, "pool import") || f.Detail == "" {
				t.Errorf("found %+v", f)
			}
			if d.unchecked != (len(r.Unchecked) > 0) {
				t.Errorf("not checked: %q", r.Unchecked)
			}
			if !slices.Equal(fileTexts(t, e.Store(), e.Metadata()), before) {
				t.Error("the check has changed something")
			}
			must(t, os.Rename(e.Store(), e.Store()+".damaged"))
			_, err = pool.Import(ctx, e.Dirs, pool.ImportOptions{Dir: filepath.Dir(e.Store())})
			must(t, err)
			must(t, os.Remove(e.Store()+".damaged"))
			wantCodes(t, e)
			s, err := layer.Open(ctx, e.Config())
			must(t, err)
			wantFiles(t, s, "web", baseFiles)
			must(t, s.Close())
		})
	}
}

// Wrong indexes are made anew of the records, which loses nothing, and which a check that may not mend them leaves.
func TestCheckWrongIndexes(t *testing.T) {
	e := pooltest.New(t, pool.Spec{DataSize: 256 << 20, BaseSize: 64 << 20})
	s, err := layer.Open(pooltest.Context(t), e.Config())
	must(t, err)
	makeLayer(t, s, "base", "", baseFiles)
	makeSnapshot(t, s, "web", "base")
	must(t, s.Close())
	damageBolt(t, e, func(tx *bbolt.Tx) error {
		return errors.Join(tx.Bucket([]byte("names")).Delete([]byte("web")), tx.Bucket([]byte("children")).Put([]byte("nobody's"), nil))
	})
	before := fileTexts(t, e.Store())
	wantCodes(t, e, pool.FoundRecordsIndex)
	for range 2 {
		asked := 0
		r, err := pool.Check(pooltest.Context(t), e.Dirs, e.Name, pool.CheckOptions{Mend: func(f pool.Finding) bool {
			asked++
			return asked == 1 // of two
		}})
		must(t, err)
		if len(r.Findings) != 2 || asked != 2 || r.Findings[0].Class != pool.NeedsRepair || !r.Findings[0].Mendable() || r.Findings[0].Loses {
			t.Errorf("asked %d times, found %+v", asked, r.Findings)
		}
	}
	if !slices.Equal(fileTexts(t, e.Store()), before) {
		t.Error("what may not be mended was")
	}
	if r := mendAll(t, e); len(r.Findings) > 0 {
		t.Errorf("found %+v", r.Findings)
	}
	wantCodes(t, e)
	wantFiles(t, e.Open(t), "web", baseFiles)
}

// fileTexts returns what is in files.
func fileTexts(t testing.TB, paths ...string) (list []string) {
	t.Helper()
	for _, path := range paths {
		b, err := os.ReadFile(path)
		must(t, err)
		list = append(list, string(b))
	}
	return list
}
