package layertar_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer/layertar"
)

// lower is the tree that the changes below start from.
func lower() []entry {
	x := file("x/attr", "a")
	x.xattrs = map[string]string{"user.k": "v"}
	return []entry{
		dir("d"), file("d/a", "aaa"), file("d/b", "bbb"), dir("d/e"), file("d/e/f", "fff"), dir("d-"), file("d-/g", "g"),
		dir("l"), file("l/one", "1"), hardlink("l/two", "l/one"), symlink("s", "d/a"), dir("x"), x, dir("z"), file("z/last", "end"),
	}
}

type change struct {
	name string
	do   func(at func(string) string) error
	want string // lines, with spaces instead of newlines
}

// changes are what somebody does to the tree, and what dmlayer diff says of it.
func changes() []change {
	return []change{
		{"nothing", func(func(string) string) error { return nil }, ""},
		{"new file", func(at func(string) string) error { return os.WriteFile(at("d/new"), nil, 0o600) }, "C /d A /d/new"},
		{"new file in the root", func(at func(string) string) error { return os.WriteFile(at("new"), nil, 0o600) }, "A /new"},
		{"new directory", func(at func(string) string) error { return os.MkdirAll(at("n/o/p"), 0o700) }, "A /n A /n/o A /n/o/p"},
		{"content", func(at func(string) string) error { return overwrite(at("d/e/f"), "FFF") }, "C /d C /d/e C /d/e/f"},
		{"content with the old time", func(at func(string) string) error {
			return keepTime(at("d/e/f"), func() error { return overwrite(at("d/e/f"), "FFF") })
		}, "C /d C /d/e C /d/e/f"},
		{"mode", func(at func(string) string) error { return os.Chmod(at("d/a"), 0o600) }, "C /d C /d/a"},
		{"mode and back", func(at func(string) string) error {
			return errors.Join(os.Chmod(at("d/a"), 0o600), os.Chmod(at("d/a"), 0o755))
		}, ""},
		{"owner", func(at func(string) string) error { return os.Lchown(at("s"), 5, 6) }, "C /s"},
		{"time", func(at func(string) string) error { return os.Chtimes(at("d/a"), time.Time{}, noon.Add(1)) }, "C /d C /d/a"},
		{"access time", func(at func(string) string) error { return os.Chtimes(at("d/a"), noon.Add(5), noon) }, ""},
		{"attribute", func(at func(string) string) error { return unix.Lsetxattr(at("x/attr"), "user.k", []byte("w"), 0) }, "C /x C /x/attr"},
		{"attribute gone", func(at func(string) string) error { return unix.Lremovexattr(at("x/attr"), "user.k") }, "C /x C /x/attr"},
		{"directory attribute", func(at func(string) string) error { return unix.Lsetxattr(at("d/e"), "user.k", []byte("w"), 0) }, "C /d C /d/e"},
		{"deleted file", func(at func(string) string) error { return os.Remove(at("d/a")) }, "C /d D /d/a"},
		{"deleted directory", func(at func(string) string) error { return os.RemoveAll(at("d")) }, "D /d"},
		{"file to directory", func(at func(string) string) error {
			return errors.Join(os.Remove(at("d/a")), os.MkdirAll(at("d/a/b"), 0o700))
		}, "C /d C /d/a A /d/a/b"},
		{"directory to file", func(at func(string) string) error {
			return errors.Join(os.RemoveAll(at("d/e")), os.WriteFile(at("d/e"), nil, 0o600))
		}, "C /d C /d/e"},
		{"rename", func(at func(string) string) error { return os.Rename(at("d/a"), at("d/c")) }, "C /d D /d/a A /d/c"},
		{"rename a directory", func(at func(string) string) error { return os.Rename(at("d/e"), at("m")) }, "C /d D /d/e A /m A /m/f"},
		{"link target", func(at func(string) string) error {
			return keepTime(at("s"), func() error { return errors.Join(os.Remove(at("s")), os.Symlink("d/b", at("s"))) })
		}, "C /s"},
		{"replaced by a copy", func(at func(string) string) error {
			return keepTime(at("d"), func() error {
				return keepTime(at("d/a"), func() error {
					return errors.Join(os.Remove(at("d/a")), os.WriteFile(at("d/a"), []byte("aaa"), 0o600), os.Chmod(at("d/a"), 0o755))
				})
			})
		}, ""},
		{"new hard link", func(at func(string) string) error { return os.Link(at("d/a"), at("z/link")) }, "C /z A /z/link"},
		{"hard link gone", func(at func(string) string) error { return os.Remove(at("l/two")) }, "C /l D /l/two"},
		{"hard link broken", func(at func(string) string) error {
			return keepTime(at("l/two"), func() error {
				return errors.Join(os.Remove(at("l/two")), os.WriteFile(at("l/two"), []byte("1"), 0o600), os.Chmod(at("l/two"), 0o755))
			})
		}, "C /l C /l/two"},
		{"hard link content", func(at func(string) string) error { return overwrite(at("l/two"), "2") }, "C /l C /l/one C /l/two"},
		{"hard link made of two files", func(at func(string) string) error {
			return errors.Join(os.Remove(at("z/last")), os.WriteFile(at("d/b"), []byte("end"), 0), os.Link(at("d/b"), at("z/last")))
		}, "C /d C /d/b C /z C /z/last"},
		{"directory touched by a file that is gone", func(at func(string) string) error {
			return errors.Join(os.WriteFile(at("d/e/tmp"), nil, 0o600), os.Remove(at("d/e/tmp")))
		}, "C /d C /d/e"},
		{"fifo and device", func(at func(string) string) error {
			return errors.Join(unix.Mkfifo(at("z/fifo"), 0o600), unix.Mknod(at("z/null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
		}, "C /z A /z/fifo A /z/null"},
		{"root mode", func(at func(string) string) error { return os.Chmod(at("."), 0o711) }, "C /"},
		{"order", func(at func(string) string) error {
			return errors.Join(os.WriteFile(at("d-/g"), nil, 0), os.WriteFile(at("d/e/f"), nil, 0), os.WriteFile(at("d.x"), nil, 0), os.Remove(at("d/b")))
		}, "C /d D /d/b C /d/e C /d/e/f C /d- C /d-/g A /d.x"},
	}
}

func overwrite(path, content string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	return errors.Join(err, f.Close())
}

// keepTime sets the modification time back after a change.
func keepTime(path string, change func() error) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	if err := change(); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{st.Mtim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

func under(dir string) func(string) string {
	return func(name string) string { return filepath.Join(dir, name) }
}

// diff returns the lines of the changes, joined by spaces.
func diff(t *testing.T, lower, upper string, o layertar.DiffOptions) string {
	t.Helper()
	var lines []string
	err := layertar.Changes(context.Background(), lower, upper, o, func(c layertar.Change) error {
		lines = append(lines, c.String())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, " ")
}

// wantRoundTrip writes the changes as a layer, applies it to a copy of lower and expects upper.
func wantRoundTrip(t *testing.T, d *disk, lower, upper string, o layertar.DiffOptions) {
	t.Helper()
	var buf bytes.Buffer
	if err := layertar.WriteDiff(context.Background(), &buf, lower, upper, layertar.WriteOptions{DiffOptions: o}); err != nil {
		t.Fatal(err)
	}
	result := d.tree(t)
	if lower != "" {
		command(t, "cp", "-a", lower+"/.", result)
	}
	apply(t, result, buf.Bytes())
	wantEqual(t, result, upper)
}

// TestChangesOfUnrelatedTrees compares trees that were made separately.
func TestChangesOfUnrelatedTrees(t *testing.T) {
	eachDisk(t, func(t *testing.T, d *disk) {
		for _, tt := range changes() {
			t.Run(tt.name, func(t *testing.T) {
				low, up := d.tree(t), d.tree(t)
				for _, dir := range []string{low, up} {
					apply(t, dir, archive(t, append([]entry{dirWithTime(".")}, lower()...)...))
				}
				if err := tt.do(under(up)); err != nil {
					t.Fatal(err)
				}
				if got := diff(t, low, up, layertar.DiffOptions{}); got != tt.want {
					t.Errorf("changes %q, want %q", got, tt.want)
				}
				wantRoundTrip(t, d, low, up, layertar.DiffOptions{})
				wantRoundTrip(t, d, "", up, layertar.DiffOptions{})
			})
		}
	})
}

func dirWithTime(name string) entry { return dir(name) }

// TestChangesOfOneLineage compares a file system with a block-level copy of what it was before.
func TestChangesOfOneLineage(t *testing.T) {
	for fs, feature := range map[string]testenv.Feature{"ext4": testenv.Ext4, "xfs": testenv.XFS} {
		t.Run(fs, func(t *testing.T) {
			testenv.Need(t, testenv.Root, testenv.Loop, feature)
			before := makeImage(t, fs)
			dir := mountImage(t, before)
			// One tree for each change, so that one copy serves all.
			for _, tt := range changes() {
				apply(t, makeDir(t, filepath.Join(dir, tt.name)), archive(t, lower()...))
			}
			umount(t, dir)
			after := filepath.Join(t.TempDir(), fs)
			command(t, "cp", "--sparse=always", before, after)
			low, up := mountImage(t, before), mountImage(t, after)
			for _, tt := range changes() {
				if err := tt.do(under(filepath.Join(up, tt.name))); err != nil {
					t.Fatal(err)
				}
			}
			o := layertar.DiffOptions{SameLineage: true}
			work := &disk{dir: mountImage(t, makeImage(t, fs))}
			for _, tt := range changes() {
				t.Run(tt.name, func(t *testing.T) {
					l, u := filepath.Join(low, tt.name), filepath.Join(up, tt.name)
					if got := diff(t, l, u, o); got != tt.want {
						t.Errorf("changes %q, want %q", got, tt.want)
					}
					wantRoundTrip(t, work, l, u, o)
				})
			}
		})
	}
}

func makeDir(t *testing.T, path string) string {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestLineageWithEqualStamps changes content without any stamp telling, as a write in the same tick
// of the kernel's clock does that saw the snapshot. It changes the bytes in the copied image.
func TestLineageWithEqualStamps(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.Loop, testenv.Ext4)
	before := makeImage(t, "ext4")
	dir := mountImage(t, before)
	apply(t, makeDir(t, filepath.Join(dir, "t")), archive(t, file("d/old", "old"), file("d/young", strings.Repeat("before the snapshot ", 500))))
	umount(t, dir)
	data, err := os.ReadFile(before)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(data, []byte("before the snapshot"))
	if at < 0 {
		t.Fatal("the content is not in the image")
	}
	after := filepath.Join(t.TempDir(), "ext4")
	command(t, "cp", "--sparse=always", before, after)
	f, err := os.OpenFile(after, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("behind"), int64(at))
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	low, up := mountImage(t, before)+"/t", mountImage(t, after)+"/t"
	o := layertar.DiffOptions{SameLineage: true}
	if got, want := diff(t, low, up, o), "C /d C /d/young"; got != want {
		t.Errorf("changes %q, want %q", got, want)
	}
}

func TestChangesStopsWhenTold(t *testing.T) {
	testenv.Need(t, testenv.Root)
	root := t.TempDir()
	apply(t, root, archive(t, lower()...))
	stop := errors.New("enough")
	err := layertar.Changes(context.Background(), "", root, layertar.DiffOptions{}, func(layertar.Change) error { return stop })
	if !errors.Is(err, stop) {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err = layertar.Changes(ctx, "", root, layertar.DiffOptions{}, func(layertar.Change) error { return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestImpliedDirectories(t *testing.T) {
	testenv.Need(t, testenv.Root)
	low, up := t.TempDir(), t.TempDir()
	for _, dir := range []string{low, up} {
		apply(t, dir, archive(t, dir2("a", "a/b")...))
	}
	if err := os.WriteFile(up+"/a/b/new", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var got []string
	err := layertar.Changes(context.Background(), low, up, layertar.DiffOptions{}, func(c layertar.Change) error {
		got = append(got, fmt.Sprint(c, " ", c.Implied))
		return nil
	})
	if want := []string{"C /a true", "C /a/b false", "A /a/b/new false"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("changes %q, error %v", got, err)
	}
}

func dir2(names ...string) (entries []entry) {
	for _, name := range names {
		entries = append(entries, dir(name))
	}
	return entries
}

func TestWriteDiffRefusesWhiteoutNames(t *testing.T) {
	testenv.Need(t, testenv.Root)
	up := t.TempDir()
	if err := os.WriteFile(up+"/.wh.x", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := layertar.WriteDiff(context.Background(), io.Discard, "", up, layertar.WriteOptions{})
	if !errors.Is(err, layertar.ErrInvalid) || !strings.Contains(err.Error(), `entry "/.wh.x"`) {
		t.Errorf("error %v", err)
	}
}

func TestWriteDiffLeavesSocketsOut(t *testing.T) {
	testenv.Need(t, testenv.Root)
	up, out := t.TempDir(), t.TempDir()
	if err := unix.Mknod(up+"/socket", unix.S_IFSOCK|0o600, 0); err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := layertar.WriteDiff(context.Background(), &buf, "", up, layertar.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	apply(t, out, buf.Bytes())
	wantList(t, out, "")
}

// TestDeepTree has a path that is longer than a system call takes.
func TestDeepTree(t *testing.T) {
	testenv.Need(t, testenv.Root)
	up := t.TempDir()
	name := strings.Repeat("n", 200)
	fd, err := unix.Open(up, unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 30 {
		if err := unix.Mkdirat(fd, name, 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, name, unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	if got := strings.Count(diff(t, "", up, layertar.DiffOptions{}), "A /"); got != 30 {
		t.Errorf("%d changes", got)
	}
	var buf bytes.Buffer
	if err := layertar.WriteDiff(context.Background(), &buf, "", up, layertar.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := tryApply(t, t.TempDir(), buf.Bytes()); !errors.Is(err, layertar.ErrInvalid) {
		t.Errorf("applying a path of 6,000 bytes: error %v", err)
	}
}
