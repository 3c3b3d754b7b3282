package layertar_test

import (
	"archive/tar"
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

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer/layertar"
)

// recorded applies an archive as a load does, with a recorder beside it.
func recorded(t testing.TB, root string, r io.Reader, o layertar.ApplyOptions) (layertar.Stats, error) {
	t.Helper()
	rec := layertar.NewRecorder(r, io.Discard)
	stats, err := layertar.Apply(context.Background(), root, rec, o)
	if cerr := rec.Close(); err == nil {
		err = cerr
	}
	return stats, err
}

// refused is an archive that must not be applied.
type refused struct {
	name string
	data []byte
	want error
	says string // part of the message, beside the class
}

func with(e entry, change func(e *entry)) entry {
	change(&e)
	return e
}

func attr(name, value string) entry {
	return with(file("some/file", "1"), func(e *entry) { e.xattrs = map[string]string{name: value} })
}

// lies are archives that say what is not so.
func lies(t testing.TB) []refused {
	inv := layertar.ErrInvalid
	ok := raw{name: "some/file", typ: tar.TypeReg, body: "1"}
	// The library refuses most maps, and then there is no name.
	bad := func(name string, data []byte) refused {
		return refused{name, append(ok.bytes(), data...), inv, `entry "s`}
	}
	after := func(name string, rs ...raw) refused {
		return refused{name, tarOf(append([]raw{ok}, rs...)...), inv, `entry "some/file": the header after it: `}
	}
	whole := archive(t, file("some/file", strings.Repeat("x", 3000)))
	return []refused{
		{"size beyond the archive", tarOf(raw{name: "big", typ: tar.TypeReg, size: "77777777777"}), inv, `entry "big"`},
		{"size of 8 EiB", tarOf(raw{name: "big", typ: tar.TypeReg, gnu: true, size: base256(1<<63 - 1)}), inv, `entry "big"`},
		{"size of a directory", tarOf(raw{name: "d", typ: tar.TypeDir, gnu: true, size: base256(1<<63 - 1)}, ok), nil, ""}, // ignored
		after("size below zero", raw{name: "big", typ: tar.TypeReg, gnu: true, size: base256(-1)}),
		after("size beyond 64 bits", raw{name: "big", typ: tar.TypeReg, gnu: true, size: "\x80\xff" + strings.Repeat("\x00", 10)}),
		after("size that is no number", raw{name: "big", typ: tar.TypeReg, size: "some bytes"}),
		after("size in PAX below zero", pax("size", "-1"), ok),
		after("size in PAX that is no number", pax("size", "x"), ok),
		after("PAX record with a wrong length", raw{typ: tar.TypeXHeader, body: "99 path=x\n"}, ok),
		after("PAX record without an end", raw{typ: tar.TypeXHeader, body: "9 path=x"}, ok),
		after("PAX record of a GiB", raw{typ: tar.TypeXHeader, size: octal(1 << 30), body: "1073741824 path="}, ok),
		after("PAX name with NUL", pax("path", "a\x00b"), ok),
		{"PAX headers of nothing", tarOf(slices.Repeat([]raw{pax("path", "x")}, 50)...), nil, ""},
		after("PAX headers without end", append(slices.Repeat([]raw{pax("path", "x")}, 50), raw{typ: tar.TypeXHeader, size: octal(1 << 19)})...),
		after("GNU long name of a GiB", raw{typ: tar.TypeGNULongName, gnu: true, size: octal(1 << 30), body: "x"}),
		after("GNU long names without end", append(slices.Repeat([]raw{{typ: tar.TypeGNULongName, gnu: true, body: "x"}}, 50), raw{name: "x", typ: '0', size: "x"})...),
		after("modification time beyond all", pax("mtime", strings.Repeat("9", 40)), ok),
		{"checksum", slices.Concat(whole[:len(whole)-1024], bytes.Repeat([]byte{'x'}, 1024)), inv, `entry "some/file": the header after it: `},
		{"cut off in the padding", whole[:len(whole)-1024-50], nil, ""}, // as others have it
		{"cut off in the content", whole[:len(whole)-2048], inv, `entry "some/file"`},
		{"owner below zero", archive(t, with(file("some/file", ""), func(e *entry) { e.Uid = -1 })), inv, `entry "some/file"`},

		bad("old GNU map that exceeds the file", sparseOld(100, "0123456789", 95, 10)),
		bad("old GNU map that descends", sparseOld(100, "0123456789", 50, 5, 10, 5)),
		bad("old GNU map that overlaps", sparseOld(100, "0123456789", 0, 5, 4, 5)),
		bad("old GNU map below zero", sparseOld(100, "0123456789", -10, 10)),
		bad("old GNU map that overflows", sparseOld(1<<62, "0123456789", 1<<62, 1<<62)),
		bad("old GNU map with too much data", sparseOld(100, "0123456789", 0, 5)),
		bad("old GNU map with too little data", sparseOld(100, "01234", 0, 10)),
		bad("PAX 0.1 map that overlaps", sparsePAX01("100", "0,5,4,5", "0123456789")),
		bad("PAX 0.1 map of odd length", sparsePAX01("100", "0,5,4", "0123456789")),
		bad("PAX 0.1 map of words", sparsePAX01("100", "a,b", "0123456789")),
		bad("PAX 0.1 with a size below zero", sparsePAX01("-100", "0,10", "0123456789")),
		bad("PAX 1.0 map with too large a count", sparsePAX10("100", "9\n0\n10\n", "0123456789")),
		bad("PAX 1.0 map with too small a count", sparsePAX10("100", "1\n0\n5\n5\n5\n", "0123456789")),
		bad("PAX 1.0 map with a count below zero", sparsePAX10("100", "-1\n0\n10\n", "0123456789")),
		bad("PAX 1.0 map with a giant count", sparsePAX10("100", "4611686018427387904\n0\n10\n", "0123456789")),
		bad("PAX 1.0 map without lines", sparsePAX10("100", strings.Repeat("1", 600), "0123456789")),
		bad("PAX 1.0 map that exceeds the file", sparsePAX10("5", "1\n0\n10\n", "0123456789")),
		bad("old GNU extensions without end", endlessSparse(4000)),
	}
}

// endlessSparse is an old GNU sparse header of which each block says that there is one more.
func endlessSparse(blocks int) []byte {
	b := raw{name: "sparse", typ: tar.TypeGNUSparse, gnu: true, at: map[int]string{482: "\x01", 483: base256(10)}}.bytes()
	more := make([]byte, 512)
	more[504] = 1
	return append(b, bytes.Repeat(more, blocks)...)
}

// breaches are archives, well-formed ones, that break a limit or a rule: that of the length of paths with folders in so many levels.
func breaches(t testing.TB, levels int) []refused {
	inv, uns := layertar.ErrInvalid, layertar.ErrUnsupported
	deep := strings.Repeat("d/", min(levels, 450)) // xfs takes links of 1023 bytes
	one := func(name string, want error, entries ...entry) refused {
		last := entries[len(entries)-1].Name
		return refused{name, archive(t, entries...), want, `entry "` + last[:min(len(last), 60)]}
	}
	all := []refused{
		one("attribute with a large value", inv, attr("user.x", strings.Repeat("x", 64<<10+1))),
		one("attribute with a long name", inv, attr("user."+strings.Repeat("x", 251), "1")),
		one("attribute without a name", inv, attr("", "1")),
		one("attribute of user without a name", inv, attr("user.", "1")),
		one("capability of no version", inv, attr("security.capability", "nonsense")),
		one("capability of no length", inv, attr("security.capability", "\x01\x00\x00\x02\x00")),
		one("access list of no version", nil, attr("system.posix_acl_access", "\x09\x00\x00\x00")), // left out
		one("access list that is cut off", inv, attr("system.posix_acl_access", acl[:len(acl)-3])),
		one("name of 256 bytes", inv, file("some/"+strings.Repeat("n", 256), "")),
		one("path of 4096 bytes", inv, file(strings.Repeat("d/", 2047)+"ff", "")),
		one("two thousand directories and two thousand more by a link", inv,
			dir(strings.Repeat("d/", levels)+"x"), symlink("l", deep), file("l/"+strings.Repeat("e/", levels)+"x", "1")),
		one("links that add up", inv, symlink("a", deep), symlink("b", "a/"+deep), symlink("c", "b/"+deep), symlink("z", "c/"+deep), symlink("y", "z/"+deep), file("y/x", "1")),
		one("symlink to nothing", inv, symlink("l", "")),
		one("symlink loop of many", inv, symlink("a", "b"), symlink("b", "c"), symlink("c", "a/x"), file("a/x", "1")),
		one("hard link to itself alone", inv, hardlink("l", "l")),
		{"hard links in a circle", archive(t, hardlink("l", "m"), hardlink("m", "l")), inv, `entry "l"`},
		one("hard link to nowhere", inv, hardlink("l", "")),
		one("whiteout of nothing", inv, file(".wh.", "")),
		one("device number too large", inv, entry{Header: tar.Header{Name: "dev", Typeflag: tar.TypeChar, Devmajor: 1 << 12}}),
		{"device number below zero", tarOf(raw{name: "dev", typ: tar.TypeBlock, gnu: true, at: map[int]string{337: "\xff\xff\xff\xff\xff\xff\xff\xff"}}), inv, `entry "dev"`},
	}
	for _, typ := range []byte("VMNIDAZ~\xff") {
		all = append(all, refused{fmt.Sprintf("entry of type %q", typ), tarOf(raw{name: "some/file", typ: typ}), inv, `entry "some/file"`})
	}
	return append(all, refused{"many attributes", archive(t, manyAttributes()), uns, `entry "some/file"`})
}

// manyAttributes is more than a block of ext4 holds.
func manyAttributes() entry {
	e := file("some/file", "1")
	e.xattrs = map[string]string{}
	for i := range 1000 {
		e.xattrs[fmt.Sprintf("user.attribute%d", i)] = strings.Repeat("x", 20)
	}
	return e
}

func TestHostileRefused(t *testing.T) {
	eachDisk(t, func(t *testing.T, d *disk) {
		for _, tt := range slices.Concat(lies(t), breaches(t, 2000)) {
			t.Run(tt.name, func(t *testing.T) {
				if tt.name == "many attributes" && d.fs == "xfs" {
					tt.want = nil // which takes them
				}
				c := newCanary(t, d.tree(t))
				_, err := recorded(t, c.root, bytes.NewReader(tt.data), layertar.ApplyOptions{})
				if errs.Class(err) != tt.want || tt.want == nil && err != nil {
					t.Errorf("error %v, want class %v", err, tt.want)
				}
				if err != nil && (!strings.Contains(err.Error(), tt.says) || len(err.Error()) > 6000) {
					t.Errorf("%d bytes of error %.1000v, want %q", len(err.Error()), err, tt.says)
				}
				c.check(t)
			})
		}
	})
}

func TestHostileDevicesForbidden(t *testing.T) {
	testenv.Need(t, testenv.Root)
	for _, typ := range []byte{tar.TypeChar, tar.TypeBlock, tar.TypeFifo} {
		root := t.TempDir()
		data := archive(t, entry{Header: tar.Header{Name: "dev/x", Typeflag: typ, Devmajor: 1, Devminor: 3}})
		_, err := recorded(t, root, bytes.NewReader(data), layertar.ApplyOptions{ForbidDevices: true})
		if typ == tar.TypeFifo {
			if err != nil {
				t.Errorf("a fifo: %v", err)
			}
			continue
		}
		if !errors.Is(err, layertar.ErrUnsupported) || !strings.Contains(err.Error(), `entry "dev/x"`) {
			t.Errorf("%q: error %v", typ, err)
		}
		if _, err := os.Lstat(filepath.Join(root, "dev/x")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%q: was made (%v)", typ, err)
		}
	}
}

// TestHostileTaken applies what is odd and yet right.
func TestHostileTaken(t *testing.T) {
	n255, deep := strings.Repeat("n", 255), strings.Repeat("d/", 2000)
	long := strings.Repeat(strings.Repeat("p", 254)+"/", 16)
	long += strings.Repeat("f", 4095-1-len(long))
	chain := []entry{file("l0", "1")}
	for i := range 1000 {
		chain = append(chain, hardlink(fmt.Sprintf("l%d", i+1), fmt.Sprintf("l%d", i)))
	}
	odd := "line\nbreak \x1b[31mred\x1b[0m \x7f\x80\xff \u202e"
	tests := []struct {
		name   string
		layers [][]entry
		path   string // holds "1"
	}{
		{"name of 255 bytes", [][]entry{{file(n255, "1")}}, n255},
		{"path of 4094 bytes", [][]entry{{file(long, "1")}}, ""},
		{"two thousand directories", [][]entry{{file(deep+"f", "1")}}, ""},
		{"two thousand directories, and away", [][]entry{{file(deep+"f", "1")}, {file(".wh.d", ""), file("f", "1")}}, "f"},
		{"names of any bytes", [][]entry{{file(odd, "1")}}, odd},
		{"chain of hard links", [][]entry{chain}, "l1000"},
		{"directory that becomes a symlink", [][]entry{{dir("a"), file("a/x", "0"), symlink("a", "b"), file("a/x", "1")}}, "b/x"},
		{"whiteout of where the archive stands", [][]entry{{dir("d"), file("d/old", "0")}, {dir("d"), file("d/x", "1"), file(".wh.d", ""), file("d/y", "2")}}, "d/x"},
		{"whiteout through a link of where the archive stands", [][]entry{{dir("d"), symlink("l", ".")}, {dir("d"), file("d/x", "1"), file("l/.wh.d", ""), file("l/d/y", "1")}}, "d/y"},
		{"kinds in turn", [][]entry{{file("a", "0"), dir("a"), file("a/x", "0"), symlink("a", "b"), file("a", "1"), hardlink("c", "a"), dir("a")}}, "c"},
		{"no entries", [][]entry{{}, {file("a", "1")}, {}}, "a"},
	}
	eachDisk(t, func(t *testing.T, d *disk) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				c := newCanary(t, d.tree(t))
				for _, layer := range tt.layers {
					if _, err := recorded(t, c.root, bytes.NewReader(archive(t, layer...)), layertar.ApplyOptions{}); err != nil {
						t.Fatal(err)
					}
				}
				if data, err := os.ReadFile(filepath.Join(c.root, tt.path)); tt.path != "" && (err != nil || string(data) != "1") {
					t.Errorf("%q (%v)", data, err)
				}
				c.check(t)
			})
		}
	})
}

// TestHostileHoles has files that are large and hold nothing.
func TestHostileHoles(t *testing.T) {
	zeros := func(size int64) io.Reader {
		h := raw{name: "zeros", typ: tar.TypeReg, gnu: true, size: base256(size)}
		return io.MultiReader(bytes.NewReader(h.bytes()), io.LimitReader(zeroReader{}, size+1024))
	}
	many := []byte(nil)
	for i := range 24 {
		h := raw{name: fmt.Sprintf("sparse%d", i), typ: tar.TypeGNUSparse, gnu: true, at: map[int]string{483: base256(1 << 40)}}
		many = append(many, h.bytes()...)
	}
	eachDisk(t, func(t *testing.T, d *disk) {
		for _, tt := range []struct {
			name string
			data io.Reader
			may  error
		}{
			{"a gigabyte of zeros", zeros(1 << 30), nil},
			{"terabytes by the dozen", bytes.NewReader(append(many, make([]byte, 1024)...)), nil},
			{"8 EiB", bytes.NewReader(sparseOld(1<<63-1, "")), layertar.ErrUnsupported},
		} {
			root := d.tree(t)
			var before, after unix.Statfs_t
			_ = unix.Statfs(root, &before)
			_, err := recorded(t, root, tt.data, layertar.ApplyOptions{})
			if err != nil && (tt.may == nil || errs.Class(err) != tt.may) {
				t.Errorf("%s: %v", tt.name, err)
			}
			if err := unix.Statfs(root, &after); err != nil {
				t.Fatal(err)
			}
			if d.fs != "" && before.Bfree > after.Bfree+(4<<20)/uint64(after.Bsize) {
				t.Errorf("%s: takes %d blocks", tt.name, before.Bfree-after.Bfree)
			}
		}
	})
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestHostileLinks makes more hard links to a file than ext4 can count.
func TestHostileLinks(t *testing.T) {
	entries := []entry{file("f", "1")}
	for i := range 70_000 {
		entries = append(entries, with(hardlink(fmt.Sprintf("l%d", i), "f"), func(e *entry) { e.Format = tar.FormatUSTAR }))
	}
	data := archive(t, entries...)
	eachDisk(t, func(t *testing.T, d *disk) {
		if d.fs == "" {
			t.Skip("what it has is not known")
		}
		_, err := recorded(t, d.tree(t), bytes.NewReader(data), layertar.ApplyOptions{})
		if d.fs == "xfs" && err != nil || d.fs == "ext4" && (errs.Class(err) != layertar.ErrUnsupported || !strings.Contains(err.Error(), `hard link to "f"`)) {
			t.Errorf("error %v", err)
		}
	})
}

// TestHostileInheritance has directories of a lower layer that would pass on what the archive does not say.
func TestHostileInheritance(t *testing.T) {
	eachDisk(t, func(t *testing.T, d *disk) {
		root := d.tree(t)
		parents := []entry{
			with(dir("setgid"), func(e *entry) { e.Mode, e.Gid = 0o2777, 77 }),
			with(dir("acl"), func(e *entry) { e.Mode, e.xattrs = 0o755, map[string]string{"system.posix_acl_default": acl} }),
		}
		apply(t, root, archive(t, parents...))
		var children []entry
		for _, p := range []string{"setgid/", "acl/"} {
			children = append(children,
				with(file(p+"file", "1"), func(e *entry) { e.Mode = 0o666 }), with(dir(p+"dir"), func(e *entry) { e.Mode = 0o777 }),
				file(p+"implied/file", "1"), symlink(p+"link", "x"), entry{Header: tar.Header{Name: p + "fifo", Typeflag: tar.TypeFifo, Mode: 0o666}},
				with(file(p+"dir/file", "1"), func(e *entry) { e.Mode = 0o666 }))
		}
		apply(t, root, archive(t, children...))
		modes := map[string]uint32{
			"file": unix.S_IFREG | 0o666, "dir": unix.S_IFDIR | 0o777, "implied": unix.S_IFDIR | 0o755, "link": unix.S_IFLNK | 0o777,
			"fifo": unix.S_IFIFO | 0o666, "dir/file": unix.S_IFREG | 0o666, "implied/file": unix.S_IFREG | 0o755,
		}
		for _, p := range []string{"setgid", "acl"} {
			for name, mode := range modes {
				path := filepath.Join(root, p, name)
				var st unix.Stat_t
				if err := unix.Lstat(path, &st); err != nil || st.Mode != mode || st.Gid != 0 {
					t.Errorf("%s/%s: mode %#o, group %d (%v)", p, name, st.Mode, st.Gid, err)
				}
				if n, _ := unix.Llistxattr(path, nil); n > 0 {
					t.Errorf("%s/%s has attributes", p, name)
				}
			}
		}
	})
}
