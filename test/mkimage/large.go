package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Files of packages that later layers change, and so need the content of.
const (
	lowerVersion = "etc/debian_version"
	lowerSetuid  = "usr/bin/passwd"
)

// large is a small Debian with nginx and python, and layers with whatever a layer can hold.
func large(img *image, base, nginx, python string) error {
	lower := map[string]*kept{lowerVersion: {}, lowerSetuid: {}}
	for _, step := range []struct {
		comment string
		fill    func(*layer) error
	}{
		{"minbase", func(l *layer) error {
			l.keep = lower
			return minbase(l, base)
		}},
		{"nginx-light", packages(nginx)},
		{"python3", packages(python)},
		{"every kind of entry", func(l *layer) error { return everyKind(l, 16<<20, 100<<20+7) }},
		{"many small files", manyFiles},
		{"deletions", deletions},
		{"replacements", func(l *layer) error { return replacements(l, lower) }},
		{"replacements back", replacementsBack},
	} {
		if err := img.layer(step.comment, step.fill); err != nil {
			return err
		}
	}
	return nil
}

const xattr = "SCHILY.xattr."

// A capability and an access control list, as the kernel stores them: cap_net_bind_service=ep, and user 1 may read.
const (
	capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	acl        = "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\x01\x00\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff" +
		"\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"
)

// everyKind adds an entry of each kind, one with random bytes and one with holes among them.
func everyKind(l *layer, randomSize, sparseSize int64) error {
	headers := []tar.Header{
		{Name: "kinds/", Typeflag: tar.TypeDir},
		{Name: "kinds/sticky/", Typeflag: tar.TypeDir, Mode: 0o1777},
		{Name: "kinds/setgid/", Typeflag: tar.TypeDir, Mode: 0o2775, Gid: 33},
		{Name: "kinds/attributes/", Typeflag: tar.TypeDir, PAXRecords: map[string]string{xattr + "user.dir": "of a directory"}},
		{Name: "kinds/fifo", Typeflag: tar.TypeFifo, Mode: 0o622},
		{Name: "kinds/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666},
		{Name: "kinds/disk", Typeflag: tar.TypeBlock, Devmajor: 259, Devminor: 70000, Mode: 0o660, Gid: 6},
		{Name: "kinds/absolute", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd", Mode: 0o777},
		{Name: "kinds/relative", Typeflag: tar.TypeSymlink, Linkname: "../etc/group", Mode: 0o777, Uid: 33},
		{Name: "kinds/dangling", Typeflag: tar.TypeSymlink, Linkname: "/no/such/file", Mode: 0o777},
		{Name: "kinds/upwards", Typeflag: tar.TypeSymlink, Linkname: "../../../../etc/group", Mode: 0o777},
		{Name: "kinds/round", Typeflag: tar.TypeSymlink, Linkname: "round", Mode: 0o777},
		{Name: "kinds/old", ModTime: time.Unix(1, 1)},
		{Name: "kinds/future", ModTime: time.Unix(4_000_000_000, 999_999_999)},
		{Name: "kinds/unreadable", Mode: 0o1000},
		{Name: "kinds/large-owner", Uid: 4_000_000_000, Gid: 4_000_000_001},
	}
	for _, hdr := range headers {
		if err := l.add(hdr, nil); err != nil {
			return err
		}
	}
	files := []tar.Header{
		{Name: "kinds/setuid", Mode: 0o4755},
		{Name: "kinds/setgid-file", Mode: 0o2755, Gid: 42},
		{Name: "kinds/capability", Mode: 0o755, Uid: 33, PAXRecords: map[string]string{xattr + "security.capability": capability}},
		{Name: "kinds/user-attributes", PAXRecords: map[string]string{
			xattr + "user.text": "some text", xattr + "user.binary": "a\x00\xff\nb",
		}},
		{Name: "kinds/acl", PAXRecords: map[string]string{xattr + "system.posix_acl_access": acl}},
		{Name: "kinds/linked", Mode: 0o600},
	}
	for _, name := range oddNames {
		files = append(files, tar.Header{Name: "kinds/" + name})
	}
	for _, hdr := range files {
		if err := l.add(hdr, []byte("content of "+hdr.Name+"\n")); err != nil {
			return err
		}
	}
	return all(
		func() error { return l.link("kinds/linked-here", "kinds/linked") },
		func() error { return l.link("kinds/sticky/linked-there", "/kinds/linked") },
		func() error { return l.link("kinds/setgid/capability-too", "kinds/capability") },
		func() error {
			return l.sparse("kinds/sparse", sparseSize, map[int64][]byte{0: random(2, 4096), sparseSize / 2: random(3, 1<<16)}, []int64{0, sparseSize / 2})
		},
		func() error { return l.add(tar.Header{Name: "kinds/random"}, random(4, int(randomSize))) },
		func() error { return l.text("no/parent/is/named/file", "deep\n") },
	)
}

var oddNames = []string{
	" ", "a b", "-rf", "#", "new\nline", "tab\tbed", "quote'\"", "back\\slash", "dollar$(x)", "umlaut-\u00e4\u00f6\u00fc", "snowman-\u2603",
	"bytes-\xff\xfe", "...", ".hidden", "*", "?", "wh.", ".whatever", strings.Repeat("long", 63),
}

// manyFiles has 4,000 files, every tenth of which has a hard link in another directory.
func manyFiles(l *layer) error {
	if err := l.dir("many"); err != nil {
		return err
	}
	for d := range 40 {
		if err := l.dir(fmt.Sprintf("many/d%02d", d)); err != nil {
			return err
		}
		for f := range 100 {
			name := fmt.Sprintf("many/d%02d/f%02d", d, f)
			hdr := tar.Header{Name: name, ModTime: epoch.Add(time.Duration(d*100+f) * 1001), Uid: f % 3}
			if err := l.add(hdr, []byte(strings.Repeat(name+"\n", f%50))); err != nil {
				return err
			}
			if f%10 == 0 && d > 0 {
				if err := l.link(fmt.Sprintf("many/d%02d/link%02d", d-1, f), name); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func deletions(l *layer) error {
	steps := []func() error{
		func() error { return l.text("usr/share/.wh.man", "") },
		func() error { return l.text("usr/share/.wh.no-such-thing", "") },
		func() error { return l.dir("usr/share/doc") },
		func() error { return l.text("usr/share/doc/.wh..wh..opq", "") },
		func() error { return l.text("usr/share/doc/README", "there was documentation\n") },
		func() error { return l.text("many/.wh.d07", "") },
		func() error { return l.text("kinds/.wh.fifo", "") },
		func() error { return l.text("kinds/.wh.absolute", "") },
		// The marker comes last, and spares what this layer brought before.
		func() error { return l.dir("many/d08") },
		func() error { return l.text("many/d08/new", "new\n") },
		func() error { return l.text("many/d08/.wh..wh..opq", "") },
		// Removed and made again in one layer.
		func() error { return l.text("many/.wh.d09", "") },
		func() error { return l.dir("many/d09") },
		func() error { return l.text("many/d09/again", "again\n") },
	}
	for f := range 50 {
		steps = append(steps, func() error { return l.text(fmt.Sprintf("many/d10/.wh.f%02d", f), "") })
	}
	return all(steps...)
}

func replacements(l *layer, lower map[string]*kept) error {
	version, setuid := lower[lowerVersion], lower[lowerSetuid]
	if version.content == nil || setuid.content == nil {
		return errors.New("a file that this layer changes is in no package")
	}
	version.hdr.Mode = 0o600
	setuid.hdr.Mode = 0o755
	return all(
		func() error { return l.add(version.hdr, version.content) },
		func() error { return l.add(setuid.hdr, setuid.content) },
		// file -> directory
		func() error { return l.dir("many/d20/f00") },
		func() error { return l.text("many/d20/f00/inside", "1\n") },
		// directory -> file
		func() error { return l.text("many/d21", "was a directory\n") },
		// symbolic link -> directory
		func() error { return l.dir("kinds/relative") },
		func() error { return l.text("kinds/relative/inside", "2\n") },
		// directory -> symbolic link
		func() error { return l.symlink("many/d22", "d23") },
		// device -> file, file -> fifo
		func() error { return l.text("kinds/null", "no device\n") },
		func() error { return l.add(tar.Header{Name: "kinds/old", Typeflag: tar.TypeFifo, Mode: 0o600}, nil) },
		// another mode and owner for a directory, whose attributes go
		func() error {
			return l.add(tar.Header{Name: "kinds/attributes/", Typeflag: tar.TypeDir, Mode: 0o711, Uid: 5}, nil)
		},
		// one of several hard links changes
		func() error { return l.text("kinds/linked-here", "on its own\n") },
		// a hard link to a file of a lower layer
		func() error { return l.link("many/d24/from-below", "many/d24/f01") },
	)
}

func replacementsBack(l *layer) error {
	return all(
		func() error { return l.text("many/d20/f00", "a file again\n") },
		func() error { return l.dir("many/d21") },
		func() error { return l.text("many/d21/inside", "3\n") },
		func() error { return l.symlink("kinds/relative", "../etc/group") },
		func() error { return l.dir("many/d22") },
		func() error {
			return l.add(tar.Header{Name: "kinds/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o600}, nil)
		},
	)
}
