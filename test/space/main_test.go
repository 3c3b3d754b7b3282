package space

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

var operations = pooltest.Operations{
	"fill": func(_ context.Context, j pooltest.Job) error { return fillAll(j.Args) },
}

func TestMain(m *testing.M) { pooltest.Main(m, operations) }

var fileSystems = []string{"ext4", "xfs"}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustFail(t testing.TB, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Fatalf("got %v, want %v", err, class)
	}
}

func snapshot(t testing.TB, s *layer.Store, name, parent string) {
	t.Helper()
	_, err := s.CreateSnapshot(pooltest.Context(t), name, layer.SnapshotOptions{Parent: parent})
	must(t, err)
}

func mount(t testing.TB, s *layer.Store, name string) string {
	t.Helper()
	m, err := s.Mount(pooltest.Context(t), name, "", layer.MountOptions{})
	must(t, err)
	return m.Dir
}

func unmount(t testing.TB, s *layer.Store, name string) {
	t.Helper()
	must(t, s.Unmount(pooltest.Context(t), name))
}

func remove(t testing.TB, s *layer.Store, name string) {
	t.Helper()
	must(t, s.Remove(pooltest.Context(t), name))
}

func status(t testing.TB, e *place) pool.Status {
	t.Helper()
	st, err := pool.Inspect(pooltest.Context(t), e.Dirs, e.Name)
	must(t, err)
	return st
}

// onHost is what a file takes on the host's file system, in bytes.
func onHost(t testing.TB, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return st.Blocks * 512
}

const (
	chunk = 64 << 10
	piece = 32 // chunks in a file
)

// fillAll fills several folders at once. It returns nil if each writer has got an error that says that there is no room.
func fillAll(dirs []string) error {
	results := make(chan error)
	for _, dir := range dirs {
		go func() { results <- fill(dir) }()
	}
	var all error
	for range dirs {
		if err := <-results; !isNoRoom(err) {
			all = errors.Join(all, fmt.Errorf("a writer ended with %w", err))
		}
	}
	return all
}

// fill writes files to a folder, and makes each durable, until it gets an error, which it returns.
func fill(dir string) error {
	for n := 0; ; n++ {
		if err := writeFile(filepath.Join(dir, fmt.Sprintf("fill-%d", n)), n, piece*chunk); err != nil {
			return err
		}
	}
}

// writeFile writes a file of a content that is told by n, and makes it durable.
func writeFile(path string, n int, size int64) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	for at := int64(0); at < size; at += chunk {
		if _, err := f.WriteAt(content(n, at, min(chunk, size-at)), at); err != nil {
			return err
		}
	}
	return f.Sync()
}

// content is never zero, and tells where it belongs.
func content(n int, at, size int64) []byte {
	return []byte(strings.Repeat(fmt.Sprintf("%015d\n", int64(n)<<40|at), int(size/16)))
}

func wantContent(t testing.TB, path string, n int, size int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	if int64(len(b)) != size {
		t.Fatalf("%s has %d bytes, want %d", path, len(b), size)
	}
	for at := int64(0); at < size; at += chunk {
		if part := min(chunk, size-at); string(b[at:at+part]) != string(content(n, at, part)) {
			t.Fatalf("%s has something else at %d", path, at)
		}
	}
}

// wantSound checks the file system of a node that is not in use.
func wantSound(t testing.TB, s *layer.Store, name string) {
	t.Helper()
	r, err := s.Fsck(pooltest.Context(t), name, false)
	if err != nil || !r.Clean {
		t.Errorf("%s: %+v, %v", name, r, err)
	}
}

// trimmed is what fstrim does.
func trimmed(t testing.TB, s *layer.Store, name string) {
	t.Helper()
	_, err := s.Trim(pooltest.Context(t), name)
	must(t, err)
}

// isNoRoom tells whether an error is what a writer gets when there is no room: of his file system, of the pool below it, or of a file system
// that has given up.
func isNoRoom(err error) bool {
	for _, errno := range []error{unix.ENOSPC, unix.EIO, unix.EROFS} {
		if errors.Is(err, errno) || err != nil && strings.Contains(err.Error(), errno.Error()) {
			return true
		}
	}
	return false
}

func freeIn(t testing.TB, dir string) int64 {
	t.Helper()
	free, err := fsutil.FreeSpace(dir)
	must(t, err)
	return int64(free)
}
