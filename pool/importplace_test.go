package pool_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
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
		"with its records":    addSettings(t),
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
			with := what == "with its records"
			if (r.Hook == "/bin/false") != with || slices.Equal(r.MkfsOptions, mkfsOptions) != with || slices.Equal(r.MountOptions, mountOptions) != with {
				t.Errorf("not taken over: hook %q, options %q, %q", r.Hook, r.MkfsOptions, r.MountOptions)
			}
			if now := record(t, b); now.Space.Hook != "" || len(now.MkfsOptions) > 0 || len(now.MountOptions) > 0 {
				t.Errorf("taken over: hook %q, options %q, %q", now.Space.Hook, now.MkfsOptions, now.MountOptions)
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

// What a host is asked to do for a pool by its records.
var mkfsOptions, mountOptions = []string{"-m", "1"}, []string{"nodiscard"}

// addSettings gives the records in a folder a program to be started, and options for mkfs and mount.
func addSettings(t testing.TB) func(dir string) {
	return func(dir string) {
		t.Helper()
		store := metadata.New(filepath.Join(dir, "records.db"), noLock{})
		must(t, store.Update(pooltest.Context(t), func(tx *metadata.Tx) error {
			r, err := tx.Pool()
			if err != nil {
				return err
			}
			r.Space.Hook, r.MkfsOptions, r.MountOptions = "/bin/false", mkfsOptions, mountOptions
			return tx.PutPool(r)
		}))
		must(t, store.Close())
	}
}

type noLock struct{}

func (noLock) LockStore(context.Context, bool) (func(), error) { return func() {}, nil }

// record returns what a pool's records say of it.
func record(t testing.TB, e *pooltest.Env) metadata.Pool {
	t.Helper()
	p, err := pool.Open(pooltest.Context(t), e.Dirs, e.Name, nil)
	must(t, err)
	defer p.Close()
	return p.Record()
}

// A pool that has lost its records where it is has its own copies of them: it keeps what it was made with.
func TestImportKeepsSettings(t *testing.T) {
	spec := small
	spec.MkfsOptions, spec.MountOptions, spec.Space.Hook = mkfsOptions, mountOptions, "/bin/false"
	e := pooltest.New(t, spec)
	ctx := pooltest.Context(t)
	fillPool(t, e)
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	must(t, os.Remove(e.Store()))
	r := imported(t, e.Dirs, pool.ImportOptions{Dir: folder(e)})
	if now := record(t, e); r.Hook != "" || len(r.MkfsOptions)+len(r.MountOptions) > 0 ||
		now.Space.Hook != "/bin/false" || !slices.Equal(now.MkfsOptions, mkfsOptions) || !slices.Equal(now.MountOptions, mountOptions) {
		t.Errorf("imported with %+v; the records have hook %q, options %q, %q", r, now.Space.Hook, now.MkfsOptions, now.MountOptions)
	}
	wantPool(t, e)
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
