package layertar_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer/layertar"
	"github.com/dmlayer/dmlayer/test/treecmp"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(child())
	}
	testenv.Main(m)
}

// A disk is an empty file system, or the machine's directory for temporary files, where trees are made.
type disk struct {
	fs  string // "" for the machine's own
	dir string
	n   int
}

// eachDisk runs a test on ext4, XFS and whatever the machine uses itself.
func eachDisk(t *testing.T, test func(t *testing.T, d *disk)) {
	t.Run("temp", func(t *testing.T) {
		testenv.Need(t, testenv.Root)
		dir := t.TempDir()
		if err := unix.Setxattr(dir, "user.test", nil, 0); errors.Is(err, unix.ENOTSUP) {
			t.Skip("this file system has no user attributes (tmpfs before Linux 6.6)")
		}
		test(t, &disk{dir: dir})
	})
	for fs, feature := range map[string]testenv.Feature{"ext4": testenv.Ext4, "xfs": testenv.XFS} {
		t.Run(fs, func(t *testing.T) {
			testenv.Need(t, testenv.Root, testenv.Loop, feature)
			test(t, &disk{fs: fs, dir: mountImage(t, makeImage(t, fs))})
		})
	}
}

// tree returns a new, empty directory of the disk.
func (d *disk) tree(t *testing.T) string {
	t.Helper()
	d.n++
	dir := filepath.Join(d.dir, fmt.Sprintf("tree%d", d.n))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func makeImage(t *testing.T, fs string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), fs)
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	err = f.Truncate(400 << 20)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	command(t, "mkfs."+fs, "-q", image)
	return image
}

// mountImage mounts an image until the test ends, or until umount is called on the directory.
func mountImage(t *testing.T, image string) string {
	t.Helper()
	dir := t.TempDir()
	options := "loop"
	if strings.HasSuffix(image, "xfs") {
		options += ",nouuid"
	}
	command(t, "mount", "-o", options, image, dir)
	t.Cleanup(func() {
		if mounted(t, dir) {
			umount(t, dir)
		}
	})
	return dir
}

func mounted(t *testing.T, dir string) bool {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(table), " "+dir+" ")
}

func umount(t *testing.T, dir string) {
	t.Helper()
	command(t, "umount", dir)
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// noon is the time that entries get where a test says nothing else.
var noon = time.Unix(1_600_000_000, 123_456_789)

// archive makes a tar. Headers without a time get noon, those without a mode 0755.
func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		hdr := e.Header
		if hdr.ModTime.IsZero() {
			hdr.ModTime = noon
		}
		if hdr.Mode == 0 {
			hdr.Mode = 0o755
		}
		if hdr.Typeflag == 0 {
			hdr.Typeflag = tar.TypeReg
		}
		hdr.Size = int64(len(e.content))
		hdr.Format = tar.FormatPAX
		for k, v := range e.xattrs {
			if hdr.PAXRecords == nil {
				hdr.PAXRecords = map[string]string{}
			}
			hdr.PAXRecords["SCHILY.xattr."+k] = v
		}
		if err := w.WriteHeader(&hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

type entry struct {
	tar.Header
	content string
	xattrs  map[string]string
}

func file(name, content string) entry {
	return entry{Header: tar.Header{Name: name}, content: content}
}
func dir(name string) entry {
	return entry{Header: tar.Header{Name: name + "/", Typeflag: tar.TypeDir}}
}
func symlink(name, target string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}}
}
func hardlink(name, target string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}}
}

// apply applies an archive, through a magic link as the product does, and fails the test on errors.
func apply(t *testing.T, root string, data []byte) layertar.Stats {
	t.Helper()
	stats, err := tryApply(t, root, data)
	if err != nil {
		t.Fatal(err)
	}
	return stats
}

func tryApply(t testing.TB, root string, data []byte) (layertar.Stats, error) {
	t.Helper()
	f, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return layertar.Apply(context.Background(), fmt.Sprintf("/proc/self/fd/%d", f.Fd()), bytes.NewReader(data), layertar.ApplyOptions{})
}

// list returns what a tree holds, a line for each path: its type and, of a file, the content.
func list(t *testing.T, root string) string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(root, func(p string, de os.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		switch {
		case de.IsDir():
			rel += "/"
		case de.Type().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			rel += "=" + string(data)
		case de.Type()&os.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			rel += "->" + target
		default:
			rel += "(" + de.Type().String() + ")"
		}
		lines = append(lines, rel)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, " ")
}

func wantList(t *testing.T, root, want string) {
	t.Helper()
	if got := list(t, root); got != want {
		t.Errorf("tree holds\n%s\nwant\n%s", got, want)
	}
}

func wantEqual(t testing.TB, a, b string) {
	t.Helper()
	lines, err := treecmp.Compare(a, b, treecmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(lines) > 0 {
		t.Errorf("trees differ:\n%s", strings.Join(lines, "\n"))
	}
}
