// Package pooltest makes pools for tests on a real kernel and checks them afterwards: records, thin
// devices, dm devices, loop devices, mounts, claims and side files must agree, and thin_check must be
// content.
package pooltest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
)

// PoolName is the name of the pools that New makes.
const PoolName = "test"

// Env is a pool of a test.
type Env struct {
	Dirs pool.Dirs
	Name string

	// Of a pool that NewDevice has made.
	DataDisk, MetadataDisk *LoopDisk
}

// Config returns what layer.Open needs.
func (e *Env) Config() layer.Config { return layer.Config{Dirs: e.Dirs, Pool: e.Name} }

// Paths of what the tests tamper with.
func (e *Env) Store() string    { return filepath.Join(e.Dirs.Root, "pools", e.Name, "records.db") }
func (e *Env) Data() string     { return filepath.Join(e.Dirs.Root, "pools", e.Name, "data") }
func (e *Env) Metadata() string { return filepath.Join(e.Dirs.Root, "pools", e.Name, "metadata") }

// MountPoint returns where a node is mounted by default.
func (e *Env) MountPoint(node string) string { return filepath.Join(e.Dirs.Run, "mnt", e.Name, node) }

// FSSize returns the size of the file system that dir is on, in bytes.
func FSSize(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return int64(st.Blocks) * st.Bsize, nil
}

// Dirs returns fresh root and run directories.
func Dirs(t testing.TB) pool.Dirs {
	t.Helper()
	dir := t.TempDir()
	return pool.Dirs{Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run")}
}

// New makes a loopback pool that is checked and destroyed when the test ends. Zero sizes in spec
// become small ones.
func New(t testing.TB, spec pool.Spec) *Env {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.ThinCheck)
	e := &Env{Dirs: Dirs(t), Name: PoolName}
	spec.Name = e.Name
	if spec.DataSize == 0 {
		spec.DataSize = 2 << 30
	}
	if spec.BaseSize == 0 {
		spec.BaseSize = 1 << 30
	}
	if err := pool.Create(Context(t), e.Dirs, spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.finish(t) })
	return e
}

// Context returns a context that ends before the test's deadline.
func Context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Scale(2*time.Minute))
	t.Cleanup(cancel)
	return ctx
}

// Open opens the pool's nodes for the length of the test.
func (e *Env) Open(t testing.TB) *layer.Store {
	t.Helper()
	s, err := layer.Open(Context(t), e.Config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (e *Env) finish(t testing.TB) {
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Scale(time.Minute))
	defer cancel()
	if _, err := os.Stat(e.Store()); errors.Is(err, os.ErrNotExist) {
		return // the test destroyed it
	}
	if err := e.Check(ctx); err != nil {
		t.Errorf("check after the test: %v", err)
	}
	e.unmountAll(ctx, t)
	e.dropClaims(t)
	if err := pool.Destroy(ctx, e.Dirs, e.Name); err != nil {
		t.Errorf("destroy: %v", err)
	}
}

// unmountAll lets a test that failed in the middle end without leaving mounts.
func (e *Env) unmountAll(ctx context.Context, t testing.TB) {
	mounts, err := fsutil.Mounts()
	if err != nil {
		t.Error(err)
	}
	for _, m := range slices.Backward(mounts) {
		if strings.HasPrefix(m.Dir, e.Dirs.Run+"/") || strings.HasPrefix(m.Dir, filepath.Dir(e.Dirs.Run)+"/") && strings.HasPrefix(m.Source, "/dev/dm-") {
			if err := fsutil.Unmount(ctx, m.Dir, fsutil.UnmountOptions{}); err != nil {
				t.Errorf("left mounted: %v", err)
			}
		}
	}
}

func (e *Env) dropClaims(t testing.TB) {
	claims, _ := filepath.Glob(filepath.Join(e.Dirs.Run, "state", "*", "claims"))
	for _, c := range claims {
		if err := os.RemoveAll(c); err != nil {
			t.Error(err)
		}
	}
}

// LockFile returns the pool's lock file, which also holds the cursor of thin ids.
func (e *Env) LockFile(t testing.TB) string {
	t.Helper()
	path, err := e.lockFile()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func (e *Env) lockFile() (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(e.Dirs.Root, &st); err != nil {
		return "", fmt.Errorf("root directory %s: %w", e.Dirs.Root, err)
	}
	return filepath.Join(e.Dirs.Run, "lock", fmt.Sprintf("%s-%x-%x", e.Name, st.Dev, st.Ino)), nil
}
