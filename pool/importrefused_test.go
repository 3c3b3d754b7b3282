package pool_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// What must not be imported, and that refusing changes nothing.
func TestImportRefuses(t *testing.T) {
	e := newPool(t)
	ctx := pooltest.Context(t)
	fillPool(t, e)
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	tmp := t.TempDir()
	carried := filepath.Join(tmp, "carried")
	copyFolder(t, folder(e), carried)
	must(t, os.Remove(filepath.Join(carried, "records.db")))
	empty := t.TempDir()
	other := pooltest.Dirs(t)
	change := func(file string, fn func(path string)) string {
		dir := filepath.Join(t.TempDir(), "changed")
		copyFolder(t, carried, dir)
		fn(filepath.Join(dir, file))
		return dir
	}
	unfinished := func(path string) {
		const transaction = 48 // in the superblock, u64
		b, err := os.ReadFile(path)
		must(t, err)
		must(t, os.WriteFile(path, withSuperblock(b, func(sb []byte) { clear(sb[transaction : transaction+8]) }), 0o600))
	}
	for _, c := range []struct {
		what string
		dirs pool.Dirs
		o    pool.ImportOptions
		want error
	}{
		{"a healthy pool", e.Dirs, pool.ImportOptions{Dir: folder(e)}, errs.ErrExists},
		{"a healthy pool, with an older copy", e.Dirs, pool.ImportOptions{Dir: folder(e), Records: backups(t, e)[0]}, errs.ErrExists},
		{"a pool under its own name", e.Dirs, pool.ImportOptions{Dir: carried}, errs.ErrExists},
		{"a pool twice", e.Dirs, pool.ImportOptions{Dir: carried, Name: "twice"}, errs.ErrExists},
		{"another name in place", e.Dirs, pool.ImportOptions{Dir: folder(e), Name: "twice"}, errs.ErrInvalid},
		{"a name that is none", other, pool.ImportOptions{Dir: carried, Name: "../x"}, errs.ErrInvalid},
		{"nothing", other, pool.ImportOptions{Dir: filepath.Join(tmp, "none")}, errs.ErrNotFound},
		{"an empty folder", other, pool.ImportOptions{Dir: empty}, errs.ErrNotFound},
		{"a file", other, pool.ImportOptions{Dir: e.Data()}, errs.ErrUnsupported},
		{"records that are not there", other, pool.ImportOptions{Dir: carried, Records: filepath.Join(tmp, "none")}, errs.ErrNotFound},
		{"records that are none", other, pool.ImportOptions{Dir: carried, Records: e.Metadata()}, errs.ErrDamaged},
		{"data that was cut off", other, pool.ImportOptions{Dir: change("data", func(p string) { must(t, os.Truncate(p, 1<<20)) })}, errs.ErrDamaged},
		{"metadata that was cut off", other, pool.ImportOptions{Dir: change("metadata", func(p string) { must(t, os.Truncate(p, 1<<20)) })}, errs.ErrDamaged},
		{"blank metadata", other, pool.ImportOptions{Dir: change("metadata", func(p string) { must(t, os.Truncate(p, 0)); must(t, os.Truncate(p, 4<<20)) })}, errs.ErrDamaged},
		{"a pool that was never finished", other, pool.ImportOptions{Dir: change("metadata", unfinished)}, errs.ErrDamaged},
		{"no label", other, pool.ImportOptions{Dir: change("data", func(p string) { must(t, os.Truncate(p, 0)); must(t, os.Truncate(p, 256<<20)) })}, errs.ErrDamaged},
	} {
		t.Run(c.what, func(t *testing.T) {
			c.o.Confirm = func(pool.ImportReport) error { return errors.New("it was going to") }
			_, err := pool.Import(ctx, c.dirs, c.o)
			mustFail(t, err, c.want)
			if names, err := pool.List(ctx, other); len(names) > 0 || err != nil {
				t.Errorf("pools %v, %v", names, err)
			}
		})
	}
	must(t, pool.Start(ctx, e.Dirs, e.Name))
	t.Run("a copy of a pool that runs", func(t *testing.T) {
		_, err := pool.Import(ctx, other, pool.ImportOptions{Dir: carried})
		mustFail(t, err, errs.ErrBusy)
	})
	t.Run("a pool that runs elsewhere", func(t *testing.T) {
		_, err := pool.Import(ctx, other, pool.ImportOptions{Dir: folder(e)})
		mustFail(t, err, errs.ErrBusy)
	})
	wantPool(t, e)
}

// A folder on another file system is not moved, and the hint says what helps.
func TestImportFromAnotherFileSystem(t *testing.T) {
	a := newPool(t)
	ctx := pooltest.Context(t)
	must(t, pool.Stop(ctx, a.Dirs, a.Name))
	b := pooltest.Dirs(t)
	tmpfs(t, b.Root, "8m")
	_, err := pool.Import(ctx, b, pool.ImportOptions{Dir: folder(a)})
	if mustFail(t, err, errs.ErrUnsupported); !strings.Contains(errs.Hint(err), "--root") {
		t.Errorf("hint %q", errs.Hint(err))
	}
	must(t, pool.Start(ctx, a.Dirs, a.Name))
}
