// Package thintools compares package thinmeta with Debian's thin-provisioning-tools. Their programs are
// run as they are; how they work is nobody's model here.
package thintools

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// Need says that a test needs the programs, and files that they can read: they want direct I/O, which a virtual
// machine has for devices only.
func Need(t testing.TB) { testenv.Need(t, testenv.Host, testenv.ThinCheck) }

// Dir is a folder for files that the programs can read.
func Dir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if direct(dir) {
		return dir
	}
	cache, err := testenv.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	if dir, err = os.MkdirTemp(cache, "thintools-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// direct tells whether a folder's files can be opened for direct I/O, which tmpfs refuses before Linux 6.6.
func direct(dir string) bool {
	f, err := os.OpenFile(filepath.Join(dir, "direct"), os.O_CREATE|os.O_RDWR|syscall.O_DIRECT, 0o600)
	if f != nil {
		f.Close()
	}
	return !errors.Is(err, syscall.EINVAL)
}

// Save writes a file that the programs can read, with holes for what is zero.
func Save(t testing.TB, metadata []byte) string {
	t.Helper()
	path := filepath.Join(Dir(t), "metadata")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	err = f.Truncate(int64(len(metadata)))
	for at := 0; at < len(metadata) && err == nil; at += thinmeta.BlockSize {
		b := metadata[at:min(at+thinmeta.BlockSize, len(metadata))]
		if !bytes.Equal(b, zeros[:len(b)]) {
			_, err = f.WriteAt(b, int64(at))
		}
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

var zeros [thinmeta.BlockSize]byte

// Run runs a program that has to succeed, and returns what it writes.
func Run(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := stream(name, args, func(r io.Reader) error { _, err := out.ReadFrom(r); return err }); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Check tells whether thin_check is content with a file, and what it says.
func Check(t testing.TB, path string) (ok bool, said string) {
	t.Helper()
	out, err := testenv.Tool(context.Background(), "thin_check", path).CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return err == nil, string(out)
}

// stream runs a program and gives what it writes to read while it runs.
func stream(name string, args []string, read func(io.Reader) error) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cmd := testenv.Tool(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := read(out)
	if readErr != nil {
		cancel()
	}
	if err := cmd.Wait(); err != nil && readErr == nil {
		return fmt.Errorf("%s %q: %w\n%s", name, args, err, &stderr)
	}
	return readErr
}
