package layertar_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer/layertar"
)

// TestApplyLayers applies layers one after the other and looks at what is there.
func TestApplyLayers(t *testing.T) {
	tests := []struct {
		name   string
		layers [][]entry
		want   string
	}{
		{"replace content", [][]entry{{file("a", "1"), file("b", "2")}, {file("a", "3")}}, "a=3 b=2"},
		{"whiteout", [][]entry{{file("a", "1"), dir("d"), file("d/x", "2")}, {file(".wh.a", ""), file("d/.wh.x", "")}}, "d/"},
		{"whiteout of a directory", [][]entry{{dir("d"), file("d/x", "2")}, {file(".wh.d", "")}}, ""},
		{"whiteout of nothing", [][]entry{{file("a", "1")}, {file(".wh.b", "")}}, "a=1"},
		{"whiteout before its replacement", [][]entry{{dir("d"), file("d/x", "1")}, {file(".wh.d", ""), dir("d"), file("d/y", "2")}}, "d/ d/y=2"},
		{"whiteout after its replacement", [][]entry{{dir("d"), file("d/x", "1")}, {dir("d"), file("d/y", "2"), file(".wh.d", "")}}, "d/ d/y=2"},
		{"whiteout spares the same layer", [][]entry{{file("a", "1")}, {file("a", "2"), file(".wh.a", "")}}, "a=2"},
		{"opaque", [][]entry{{dir("d"), file("d/x", "1"), dir("d/e"), file("d/e/y", "2")}, {dir("d"), file("d/.wh..wh..opq", ""), file("d/z", "3")}}, "d/ d/z=3"},
		{"opaque at the end", [][]entry{{dir("d"), file("d/x", "1")}, {file("d/z", "3"), file("d/.wh..wh..opq", "")}}, "d/ d/z=3"},
		{"opaque below what is implied", [][]entry{
			{dir("d"), dir("d/e"), file("d/e/x", "1")},
			{file("d/e/y", "2"), file("d/.wh..wh..opq", "")},
		}, "d/ d/e/ d/e/y=2"},
		{"opaque root", [][]entry{{file("a", "1"), dir("d")}, {file("b", "2"), file(".wh..wh..opq", "")}}, "b=2"},
		{"file to directory", [][]entry{{file("a", "1")}, {dir("a"), file("a/b", "2")}}, "a/ a/b=2"},
		{"file to directory that is not named", [][]entry{{file("a", "1")}, {file("a/b/c", "2")}}, "a/ a/b/ a/b/c=2"},
		{"directory to file and back", [][]entry{{dir("a"), file("a/b", "1")}, {file("a", "2")}, {dir("a"), file("a/c", "3")}}, "a/ a/c=3"},
		{"directory to symlink", [][]entry{{dir("a"), file("a/b", "1"), dir("c")}, {symlink("a", "c"), file("a/x", "2")}}, "a->c c/ c/x=2"},
		{"symlink to directory", [][]entry{{dir("c"), file("c/x", "1"), symlink("a", "c")}, {dir("a"), file("a/y", "2")}}, "a/ a/y=2 c/ c/x=1"},
		{"file over fifo", [][]entry{{{Header: tar.Header{Name: "f", Typeflag: tar.TypeFifo}}}, {file("f", "1")}}, "f=1"},
		{"missing parents", [][]entry{{file("a/b/c/d", "1")}}, "a/ a/b/ a/b/c/ a/b/c/d=1"},
		{"through a symlink", [][]entry{{dir("usr/lib"), symlink("lib", "usr/lib")}, {file("lib/x", "1")}}, "lib->usr/lib usr/ usr/lib/ usr/lib/x=1"},
		{"through an absolute symlink", [][]entry{{dir("usr/lib"), symlink("lib", "/usr/lib")}, {file("lib/x", "1")}}, "lib->/usr/lib usr/ usr/lib/ usr/lib/x=1"},
		{"through a dangling symlink", [][]entry{{symlink("lib", "/no/where")}, {file("lib/x", "1")}}, "lib->/no/where no/ no/where/ no/where/x=1"},
		{"through a symlink that changes", [][]entry{{dir("p"), dir("q"), symlink("l", "p"), file("l/x", "1"), symlink("l", "q"), file("l/y", "2")}}, "l->q p/ p/x=1 q/ q/y=2"},
		{"hard link", [][]entry{{file("a", "1"), dir("d"), hardlink("d/b", "a")}}, "a=1 d/ d/b=1"},
		{"hard link to the layer below", [][]entry{{file("a", "1")}, {hardlink("b", "/a")}}, "a=1 b=1"},
		{"hard link over a file", [][]entry{{file("a", "1"), file("b", "2")}, {hardlink("b", "a")}}, "a=1 b=1"},
		{"hard link to itself", [][]entry{{file("a", "1"), hardlink("a", "./a")}}, "a=1"},
		{"hard link to a symlink", [][]entry{{symlink("s", "/etc/passwd"), hardlink("t", "s")}}, "s->/etc/passwd t->/etc/passwd"},
		{"same path twice", [][]entry{{file("a", "1"), dir("a"), file("a/x", "2"), file("a", "3")}}, "a=3"},
		{"directory gone again", [][]entry{{dir("a"), dir("a/b"), symlink("a", "/tmp")}}, "a->/tmp"},
		{"names that lead up", [][]entry{{file("../../a", "1"), file("/b", "2"), file("d/../../c", "3")}}, "a=1 b=2 c=3"},
		{"AUFS's own", [][]entry{{dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "x"), file(".wh..wh.aufs", ""), file("a", "1")}}, "a=1"},
		{"odd names", [][]entry{{file("a b\n\x80", "1"), file("-rf", "2"), file(strings.Repeat("n", 255), "3")}}, "-rf=2 a b\n\x80=1 " + strings.Repeat("n", 255) + "=3"},
	}
	eachDisk(t, func(t *testing.T, d *disk) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				root := d.tree(t)
				for _, layer := range tt.layers {
					apply(t, root, archive(t, layer...))
				}
				wantList(t, root, tt.want)
			})
		}
	})
}

// capability is a valid security.capability of version 2: cap_net_bind_service, effective and permitted.
const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// acl is a valid system.posix_acl_access: user::rw-, user:1:r--, group::r--, mask::r--, other::r--.
const acl = "\x02\x00\x00\x00" +
	"\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\x01\x00\x00\x00" + "\x04\x00\x04\x00\xff\xff\xff\xff" +
	"\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x04\x00\xff\xff\xff\xff"

// everything is a layer with all that a layer can hold.
func everything() []entry {
	with := func(e entry, change func(*entry)) entry { change(&e); return e }
	return []entry{
		with(dir("."), func(e *entry) { e.Mode, e.Uid = 0o750, 7 }),
		with(dir("d"), func(e *entry) {
			e.Mode, e.Uid, e.Gid = 0o3775, 1000, 4_000_000_000
			e.ModTime = time.Unix(1_500_000_000, 1)
			e.xattrs = map[string]string{"user.dir": "yes"}
		}),
		with(file("d/setuid", "s"), func(e *entry) { e.Mode, e.Uid, e.Gid = 0o6711, 1, 2 }),
		with(file("d/cap", "c"), func(e *entry) {
			e.Uid, e.xattrs = 5, map[string]string{"security.capability": capability, "user.x": "a\x00b", "user.empty": ""}
		}),
		with(hardlink("caplink", "d/cap"), func(e *entry) { e.Mode, e.Uid = 0o600, 99 }),
		with(file("acl", "a"), func(e *entry) { e.Mode, e.xattrs = 0o644, map[string]string{"system.posix_acl_access": acl} }),
		with(file("old", ""), func(e *entry) { e.ModTime = time.Unix(-1_000_000_000, 5) }),
		with(symlink("sym", "nowhere/at all"), func(e *entry) { e.Uid = 12 }),
		{Header: tar.Header{Name: "chr", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}},
		{Header: tar.Header{Name: "blk", Typeflag: tar.TypeBlock, Devmajor: 259, Devminor: 70000, Mode: 0o660, Gid: 6}},
		{Header: tar.Header{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o622}},
		file("big", strings.Repeat("0123456789abcdef", 20_000)),
	}
}

func TestApplyAttributes(t *testing.T) {
	eachDisk(t, func(t *testing.T, d *disk) {
		root := d.tree(t)
		old := unix.Umask(0o077)
		stats := apply(t, root, archive(t, everything()...))
		unix.Umask(old)
		if len(stats.Warnings) > 0 {
			t.Errorf("warnings %q", stats.Warnings)
		}
		if stats.Entries != len(everything()) || stats.Bytes != 320_003 {
			t.Errorf("stats %+v", stats)
		}
		tests := []struct {
			name     string
			mode     uint32
			uid, gid uint32
			rdev     uint64
			mtime    time.Time
		}{
			{".", unix.S_IFDIR | 0o750, 7, 0, 0, noon},
			{"d", unix.S_IFDIR | 0o3775, 1000, 4_000_000_000, 0, time.Unix(1_500_000_000, 1)},
			{"d/setuid", unix.S_IFREG | 0o6711, 1, 2, 0, noon},
			{"d/cap", unix.S_IFREG | 0o755, 5, 0, 0, noon},
			{"caplink", unix.S_IFREG | 0o755, 5, 0, 0, noon},
			{"acl", unix.S_IFREG | 0o644, 0, 0, 0, noon},
			{"old", unix.S_IFREG | 0o755, 0, 0, 0, time.Unix(-1_000_000_000, 5)},
			{"sym", unix.S_IFLNK | 0o777, 12, 0, 0, noon},
			{"chr", unix.S_IFCHR | 0o666, 0, 0, unix.Mkdev(1, 3), noon},
			{"blk", unix.S_IFBLK | 0o660, 0, 6, unix.Mkdev(259, 70000), noon},
			{"fifo", unix.S_IFIFO | 0o622, 0, 0, 0, noon},
		}
		for _, tt := range tests {
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join(root, tt.name), &st); err != nil {
				t.Error(err)
				continue
			}
			if st.Mode != tt.mode || st.Uid != tt.uid || st.Gid != tt.gid || st.Rdev != tt.rdev {
				t.Errorf("%s: mode %#o, owner %d:%d, device %#x", tt.name, st.Mode, st.Uid, st.Gid, st.Rdev)
			}
			if got := time.Unix(st.Mtim.Unix()); !got.Equal(tt.mtime) {
				t.Errorf("%s: modified %v, want %v", tt.name, got, tt.mtime)
			}
		}
		for name, want := range map[string]map[string]string{
			"d":       {"user.dir": "yes"},
			"caplink": {"security.capability": capability, "user.x": "a\x00b", "user.empty": ""},
			"acl":     {"system.posix_acl_access": acl},
		} {
			for key, value := range want {
				if got := xattr(t, filepath.Join(root, name), key); got != value {
					t.Errorf("%s: attribute %s is %q", name, key, got)
				}
			}
		}
	})
}

func xattr(t *testing.T, path, name string) string {
	t.Helper()
	buf := make([]byte, 1024)
	n, err := unix.Lgetxattr(path, name, buf)
	if err != nil {
		return err.Error()
	}
	return string(buf[:n])
}

// TestApplyDirectoryAgain replaces the attributes of a directory and leaves its content alone.
func TestApplyDirectoryAgain(t *testing.T) {
	eachDisk(t, func(t *testing.T, d *disk) {
		root := d.tree(t)
		first := dir("d")
		first.xattrs = map[string]string{"user.old": "1", "user.both": "1"}
		apply(t, root, archive(t, first, file("d/x", "1")))
		second := dir("d")
		second.Mode, second.Uid, second.xattrs = 0o700, 3, map[string]string{"user.both": "2"}
		apply(t, root, archive(t, second))
		p := filepath.Join(root, "d")
		if got := xattr(t, p, "user.old"); got != unix.ENODATA.Error() {
			t.Errorf("attribute of the lower layer is %q", got)
		}
		if got := xattr(t, p, "user.both"); got != "2" {
			t.Errorf("attribute is %q", got)
		}
		if fi, _ := os.Stat(p); fi.Mode().Perm() != 0o700 {
			t.Errorf("mode %v", fi.Mode())
		}
		wantList(t, root, "d/ d/x=1")
	})
}

// TestApplyKeepsTimes: directories that an archive only passes through keep their time, and
// those that it takes for granted get one that does not depend on the clock.
func TestApplyKeepsTimes(t *testing.T) {
	eachDisk(t, func(t *testing.T, d *disk) {
		root := d.tree(t)
		early := dir("d")
		early.ModTime = time.Unix(1000, 1)
		top := dir(".")
		top.ModTime = time.Unix(500, 1)
		apply(t, root, archive(t, top, early, file("d/x", "1")))
		apply(t, root, archive(t, file("d/.wh.x", ""), file("d/y", "2"), file("new/z", "3"), hardlink("d/z", "new/z")))
		for name, want := range map[string]time.Time{".": time.Unix(500, 1), "d": early.ModTime, "new": noon} {
			fi, err := os.Stat(filepath.Join(root, name))
			if err != nil || !fi.ModTime().Equal(want) {
				t.Errorf("%s: modified %v, want %v, error %v", name, fi.ModTime(), want, err)
			}
		}
	})
}

// TestApplyStaysInside applies what tries to get out, and looks whether it did.
func TestApplyStaysInside(t *testing.T) {
	testenv.Need(t, testenv.Root)
	for _, tt := range hostile() {
		t.Run(tt.name, func(t *testing.T) {
			c := newCanary(t, t.TempDir())
			_, err := tryApply(t, c.root, archive(t, tt.entries(c.outside)...))
			if (err != nil) != tt.refused {
				t.Errorf("error %v", err)
			}
			if err != nil && !errors.Is(err, layertar.ErrInvalid) {
				t.Errorf("error %v is not invalid", err)
			}
			c.check(t)
		})
	}
}

type attack struct {
	name    string
	refused bool
	entries func(outside string) []entry
}

// hostile returns archives that try to write to, link to, or remove the files in a directory outside.
func hostile() []attack {
	return []attack{
		{"dots", false, func(o string) []entry { return []entry{file("../../../../../.."+o+"/canary", "x")} }},
		{"absolute", false, func(o string) []entry { return []entry{file(o+"/canary", "x")} }},
		{"symlinked parent", false, func(o string) []entry { return []entry{symlink("l", o), file("l/canary", "x")} }},
		{"relative symlinked parent", false, func(o string) []entry { return []entry{symlink("l", "../outside"), file("l/canary", "x")} }},
		{"chain of symlinks", false, func(o string) []entry {
			return []entry{symlink("a", ".."), symlink("b", "a/outside"), file("b/canary", "x")}
		}},
		{"write through a symlink", false, func(o string) []entry { return []entry{symlink("l", o+"/canary"), file("l", "x")} }},
		{"mode through a symlink", false, func(o string) []entry { return []entry{symlink("l", o+"/canary"), hardlink("m", "l")} }},
		{"hard link out", true, func(o string) []entry { return []entry{hardlink("l", o+"/canary"), file("l", "x")} }},
		{"hard link out by dots", true, func(o string) []entry { return []entry{hardlink("l", "../outside/canary")} }},
		{"hard link out by symlink", true, func(o string) []entry { return []entry{symlink("s", o), hardlink("l", "s/canary")} }},
		{"whiteout by symlink", false, func(o string) []entry { return []entry{symlink("s", o), file("s/.wh.canary", "")} }},
		{"whiteout by dots", false, func(o string) []entry { return []entry{file("../outside/.wh.canary", "")} }},
		{"whiteout of dots", true, func(o string) []entry { return []entry{dir("d"), file("d/.wh...", "")} }},
		{"whiteout of itself", true, func(o string) []entry { return []entry{dir("d"), file("d/.wh..", "")} }},
		{"opaque by symlink", false, func(o string) []entry { return []entry{symlink("s", o), file("s/.wh..wh..opq", "")} }},
		{"opaque dots", false, func(o string) []entry { return []entry{file("../outside/.wh..wh..opq", "")} }},
		{"directory by symlink", false, func(o string) []entry {
			d := dir("s/.")
			d.Mode = 0o777
			return []entry{symlink("s", o), d}
		}},
		{"time of a directory that became a symlink", false, func(o string) []entry {
			return []entry{dir("a"), dir("a/sub"), file(".wh.a", ""), symlink("a", o)}
		}},
		{"root as a symlink", true, func(o string) []entry { return []entry{symlink(".", o), file("canary", "x")} }},
		{"root as a file", true, func(o string) []entry { return []entry{file("..", "x")} }},
		{"below a whiteout", true, func(o string) []entry { return []entry{file(".wh.a/b", "x")} }},
		{"file used as a directory", true, func(o string) []entry { return []entry{file("a", "1"), file("a/b", "2")} }},
		{"symlink loop", true, func(o string) []entry { return []entry{symlink("a", "b"), symlink("b", "a"), file("a/x", "1")} }},
		{"hard link to a directory", true, func(o string) []entry { return []entry{dir("d"), hardlink("l", "d")} }},
		{"hard link to the root", true, func(o string) []entry { return []entry{hardlink("l", "..")} }},
		{"endless name", true, func(o string) []entry { return []entry{file(strings.Repeat("a/", 4000)+"x", "1")} }},
		{"owner -1", true, func(o string) []entry {
			e := file("a", "1")
			e.Uid = 1<<32 - 1
			return []entry{e}
		}},
		{"unknown type", true, func(o string) []entry { return []entry{{Header: tar.Header{Name: "a", Typeflag: 'V'}}} }},
	}
}

// A canary is a tree beside which a file and a directory must not change.
type canary struct {
	root, outside string
	before        []unix.Stat_t
}

func newCanary(t testing.TB, base string) *canary {
	t.Helper()
	c := &canary{root: filepath.Join(base, "root"), outside: filepath.Join(base, "outside")}
	for _, dir := range []string{c.root, filepath.Join(c.outside, "sub")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(c.outside, "canary"), []byte("alive"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.before = c.look(t)
	return c
}

func (c *canary) look(t testing.TB) []unix.Stat_t {
	t.Helper()
	var all []unix.Stat_t
	for _, p := range []string{filepath.Dir(c.root), c.outside, c.outside + "/sub", c.outside + "/canary"} {
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			t.Fatal(err)
		}
		st.Atim = unix.Timespec{}
		all = append(all, st)
	}
	return all
}

func (c *canary) check(t testing.TB) {
	t.Helper()
	for i, st := range c.look(t) {
		if st != c.before[i] {
			t.Errorf("something outside the tree changed:\n%+v\n%+v", c.before[i], st)
		}
	}
	data, err := os.ReadFile(c.outside + "/canary")
	if err != nil || string(data) != "alive" {
		t.Errorf("canary is %q, error %v", data, err)
	}
}

func TestApplyNamesTheEntry(t *testing.T) {
	testenv.Need(t, testenv.Root)
	data := archive(t, file("a", "1"), file("some/file", strings.Repeat("x", 10_000)), file("z", ""))
	full := archive(t, file("a", "1"), hardlink("some/link", "missing"))
	tests := []struct {
		name string
		data io.Reader
		want string
		is   error
	}{
		{"cut in a file", bytes.NewReader(data[:len(data)-8000]), `entry "some/file"`, io.ErrUnexpectedEOF},
		{"cut in a file is invalid", bytes.NewReader(data[:len(data)-8000]), `entry "some/file"`, layertar.ErrInvalid},
		{"missing target", bytes.NewReader(full), `entry "some/link": hard link to "missing"`, layertar.ErrInvalid},
		{"no tar", strings.NewReader(strings.Repeat("no tar ", 1000)), "apply layer: archive/tar", layertar.ErrInvalid},
		{"reader fails", io.MultiReader(bytes.NewReader(data[:6000]), iotest.ErrReader(os.ErrClosed)), `entry "some/file"`, os.ErrClosed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := layertar.Apply(context.Background(), t.TempDir(), tt.data, layertar.ApplyOptions{})
			if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestApplySourceIsNotBlamedOnTheArchive(t *testing.T) {
	_, err := layertar.Apply(context.Background(), t.TempDir(), iotest.ErrReader(io.ErrUnexpectedEOF), layertar.ApplyOptions{})
	if !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, layertar.ErrInvalid) {
		t.Errorf("error %v", err)
	}
}

func TestApplyFullDisk(t *testing.T) {
	testenv.Need(t, testenv.Root)
	dir := t.TempDir()
	command(t, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", dir)
	defer umount(t, dir)
	_, err := tryApply(t, dir, archive(t, file("a", "1"), file("big", strings.Repeat("x", 2<<20))))
	if !errors.Is(err, layertar.ErrNoSpace) || !strings.Contains(err.Error(), `entry "big"`) {
		t.Errorf("error %v", err)
	}
}

func TestApplyCancelled(t *testing.T) {
	testenv.Need(t, testenv.Root)
	ctx, cancel := context.WithCancel(context.Background())
	data := archive(t, file("a", "1"), file("b", strings.Repeat("x", 1<<20)))
	progress := func(layertar.Stats) { cancel() }
	_, err := layertar.Apply(ctx, t.TempDir(), bytes.NewReader(data), layertar.ApplyOptions{Progress: progress})
	if !errors.Is(err, context.Canceled) || errors.Is(err, layertar.ErrInvalid) {
		t.Errorf("error %v", err)
	}
}

// TestApplyReadsToTheEnd: what follows the end marker belongs to the digest.
func TestApplyReadsToTheEnd(t *testing.T) {
	testenv.Need(t, testenv.Root)
	data := append(archive(t, file("a", "1")), make([]byte, 100_000)...)
	r := bytes.NewReader(data)
	if _, err := layertar.Apply(context.Background(), t.TempDir(), r, layertar.ApplyOptions{}); err != nil || r.Len() > 0 {
		t.Errorf("error %v, %d bytes left", err, r.Len())
	}
}

func TestApplyBadRoot(t *testing.T) {
	f := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(f, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := layertar.Apply(context.Background(), f, strings.NewReader(""), layertar.ApplyOptions{}); !errors.Is(err, layertar.ErrInvalid) {
		t.Errorf("a file: error %v", err)
	}
	if _, err := layertar.Apply(context.Background(), f+"x", strings.NewReader(""), layertar.ApplyOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing: error %v", err)
	}
}

// TestApplyWarns: what a file system cannot hold is left out, and said.
func TestApplyWarns(t *testing.T) {
	eachDisk(t, func(t *testing.T, d *disk) {
		f, e := file("f", "1"), dir("d")
		f.xattrs = map[string]string{"nonsense.x": "1", "trusted.overlay.opaque": "y"}
		e.xattrs = map[string]string{"nonsense.y": "1"}
		stats := apply(t, d.tree(t), archive(t, f, e))
		if len(stats.Warnings) != 2 || !strings.Contains(stats.Warnings[0], "nonsense.x") || !strings.Contains(stats.Warnings[1], "nonsense.y") {
			t.Errorf("warnings %q", stats.Warnings)
		}
	})
}

// TestApplySparse: GNU tar's sparse files become files with holes.
func TestApplySparse(t *testing.T) {
	testenv.Need(t, testenv.Root)
	for _, format := range []string{"--format=gnu", "--format=posix"} {
		t.Run(format, func(t *testing.T) {
			src, root := t.TempDir(), t.TempDir()
			sparseFile(t, filepath.Join(src, "sparse"))
			out := filepath.Join(t.TempDir(), "tar")
			command(t, "tar", "-C", src, format, "--sparse", "--numeric-owner", "-cf", out, ".")
			data, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			if len(data) > 1<<20 {
				t.Fatalf("tar made no sparse entry: %d bytes", len(data))
			}
			apply(t, root, data)
			if format == "--format=gnu" { // which has whole seconds only
				_ = os.Chtimes(filepath.Join(src, "sparse"), time.Time{}, noon)
				_ = os.Chtimes(filepath.Join(root, "sparse"), time.Time{}, noon)
				_ = os.Chtimes(src, time.Time{}, noon)
				_ = os.Chtimes(root, time.Time{}, noon)
			}
			wantEqual(t, src, root)
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(root, "sparse"), &st); err != nil || st.Blocks*512 > 1<<20 {
				t.Errorf("%d bytes are allocated, error %v", st.Blocks*512, err)
			}
		})
	}
}

// sparseFile makes a file of 8 MiB and a bit with little in it.
func sparseFile(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []int64{0, 3 << 20, 8<<20 + 5} {
		if _, err := f.WriteAt([]byte("data"), at); err != nil {
			t.Fatal(err)
		}
	}
}
