package layertar_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer/layertar"
)

// FuzzApply applies what the fuzzer makes of archives. Nothing beside the tree may change, and
// nothing may panic.
func FuzzApply(f *testing.F) {
	testenv.Need(f, testenv.Root)
	for _, data := range seeds(f) {
		f.Add(data)
	}
	disk := fuzzDisk(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		base, err := os.MkdirTemp(disk, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(base)
		c := newCanary(t, base)
		ctx, cancel := context.WithTimeout(context.Background(), testenv.Scale(10*time.Second))
		defer cancel()
		_, err = layertar.Apply(ctx, c.root, bytes.NewReader(data), layertar.ApplyOptions{})
		c.check(t)
		if err != nil {
			return
		}
		if got := diff(t, c.root, filepath.Clean(c.root), layertar.DiffOptions{SameLineage: true}); got != "" {
			t.Errorf("changes %q of a tree against itself", got)
		}
	})
}

// fuzzDisk mounts a small file system: a few bytes can ask for a huge sparse file, and as with a
// node, the disk puts an end to that. It is in no folder, so that it goes with a process of the fuzzer that is killed.
func fuzzDisk(f *testing.F) string {
	dir := f.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m,nr_inodes=2000"); err != nil {
		f.Fatal(err)
	}
	disk, err := os.Open(dir)
	if err := errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH)); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = disk.Close() })
	return fmt.Sprintf("/proc/self/fd/%d", disk.Fd())
}

// The names and targets that FuzzLayers puts together. Those with OUT lead to the canary's directory.
var (
	fuzzNames = []string{
		"a", "b", "a/b", "a/b/c", "b/c", "l", "l/a", "l/canary", "a/l", "a/l/canary", ".", "..", "../outside/canary", "OUT/canary",
		".wh.a", ".wh.b", ".wh.l", "a/.wh.b", "l/.wh.canary", "l/.wh..wh..opq", "a/.wh..wh..opq", ".wh..wh..opq", "a/b/.wh.c", "../.wh.outside",
		"l/sub/x", "m", "m/x", "a/../../outside/x",
	}
	fuzzTargets = []string{"a", "b", "a/b", "b/c", "l", "l/canary", "..", "../outside", "OUT", "OUT/canary", "OUT/sub", "/", ".", "m", "a/l", "/a"}
	fuzzTypes   = []byte{tar.TypeReg, tar.TypeReg, tar.TypeDir, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo, tar.TypeChar}
)

// fuzzLayer makes an archive of four bytes an entry.
func fuzzLayer(t testing.TB, data []byte, outside string) []byte {
	var entries []entry
	for ; len(data) >= 4; data = data[4:] {
		e := entry{Header: tar.Header{
			Typeflag: fuzzTypes[int(data[0])%len(fuzzTypes)],
			Name:     strings.ReplaceAll(fuzzNames[int(data[1])%len(fuzzNames)], "OUT", outside),
			Mode:     int64(data[3])<<2 | 0o400,
			Uid:      int(data[3] >> 6),
		}}
		switch e.Typeflag {
		case tar.TypeSymlink, tar.TypeLink:
			e.Linkname = strings.ReplaceAll(fuzzTargets[int(data[2])%len(fuzzTargets)], "OUT", outside)
		case tar.TypeReg:
			e.content = strings.Repeat("x", int(data[2]))
			e.ModTime = noon.Add(time.Duration(data[2] % 4))
		}
		entries = append(entries, e)
	}
	return archive(t, entries...)
}

// FuzzLayers puts two layers together from parts that are likely to meet, and applies them. Nothing
// beside the tree may change; and the difference that the second layer made, written as a layer and applied to
// the first, must give the same tree.
func FuzzLayers(f *testing.F) {
	testenv.Need(f, testenv.Root)
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		data := make([]byte, 8+r.IntN(120))
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		f.Add(data)
	}
	disk := fuzzDisk(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 400 {
			return
		}
		base, err := os.MkdirTemp(disk, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(base)
		c := newCanary(t, base)
		half := len(data) / 8 * 4
		first, second := fuzzLayer(t, data[:half], c.outside), fuzzLayer(t, data[half:], c.outside)
		lower := filepath.Join(c.outside, "lower")
		if err := os.Mkdir(lower, 0o700); err != nil {
			t.Fatal(err)
		}
		c.before = c.look(t)
		_, _ = tryApply(t, lower, first)
		_, _ = tryApply(t, c.root, first)
		_, _ = tryApply(t, c.root, second)
		var layer bytes.Buffer
		if err := layertar.WriteDiff(context.Background(), &layer, lower, c.root, layertar.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := tryApply(t, lower, layer.Bytes()); err != nil {
			t.Fatal(err)
		}
		wantEqual(t, lower, c.root)
		c.check(t)
	})
}
