package pool_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// The pool is carried to another root, as to another machine.
func TestImportElsewhere(t *testing.T) {
	a := newPool(t)
	ctx := pooltest.Context(t)
	fillPool(t, a)
	must(t, pool.Stop(ctx, a.Dirs, a.Name))
	for what, lost := range map[string]func(dir string){
		"with its records":    addHook(t),
		"without its records": func(dir string) { must(t, os.Remove(filepath.Join(dir, "records.db"))) },
		"and its side files": func(dir string) {
			must(t, os.Remove(filepath.Join(dir, "records.db")))
			must(t, os.RemoveAll(filepath.Join(dir, "blobs")))
		},
	} {
		t.Run(what, func(t *testing.T) {
			b := &pooltest.Env{Dirs: pooltest.Dirs(t), Name: "carried"}
			dir := filepath.Join(filepath.Dir(b.Dirs.Root), "a disk")
			copyFolder(t, folder(a), dir)
			lost(dir)
			r := imported(t, b.Dirs, pool.ImportOptions{Dir: dir, Name: b.Name})
			if (r.Hook == "/bin/false") != (what == "with its records") || hook(t, b) != "" {
				t.Errorf("hook %q of the records, %q afterwards", r.Hook, hook(t, b))
			}
			if r.Name != b.Name || r.SideFiles != (what != "and its side files") {
				t.Errorf("imported with %+v", r)
			}
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the folder is still there: %v", err)
			}
			wantPool(t, b)
			must(t, b.Check(ctx))
			must(t, pool.Destroy(ctx, b.Dirs, b.Name))
			if left, _ := filepath.Glob(filepath.Join(b.Dirs.Root, "*", "*")); len(left) > 0 {
				t.Errorf("left by destroy: %v", left)
			}
		})
	}
	must(t, pool.Start(ctx, a.Dirs, a.Name))
}

// addHook gives the records in a folder a program to be started.
func addHook(t testing.TB) func(dir string) {
	return func(dir string) {
		t.Helper()
		store := metadata.New(filepath.Join(dir, "records.db"), noLock{})
		must(t, store.Update(pooltest.Context(t), func(tx *metadata.Tx) error {
			r, err := tx.Pool()
			if err != nil {
				return err
			}
			r.Space.Hook = "/bin/false"
			return tx.PutPool(r)
		}))
		must(t, store.Close())
	}
}

type noLock struct{}

func (noLock) LockStore(context.Context, bool) (func(), error) { return func() {}, nil }

// hook returns the program that a pool's records have started.
func hook(t testing.TB, e *pooltest.Env) string {
	t.Helper()
	p, err := pool.Open(pooltest.Context(t), e.Dirs, e.Name, nil)
	must(t, err)
	defer p.Close()
	return p.Record().Space.Hook
}

func copyFolder(t testing.TB, from, to string) {
	t.Helper()
	must(t, filepath.WalkDir(from, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		return pooltest.CopySparse(path, filepath.Join(to, rel))
	}))
}

// The place of a pool is a link to its folder, which lies on another disk.
func TestImportLinkedFolder(t *testing.T) {
	e := newPool(t)
	ctx := pooltest.Context(t)
	fillPool(t, e)
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	disk := filepath.Join(t.TempDir(), "disk")
	must(t, os.Rename(folder(e), disk))
	must(t, os.Symlink(disk, folder(e)))
	must(t, os.Remove(e.Store()))
	imported(t, e.Dirs, pool.ImportOptions{Dir: folder(e)})
	wantPool(t, e)
	if _, err := os.Stat(filepath.Join(disk, "records.db")); err != nil {
		t.Error(err)
	}
}
