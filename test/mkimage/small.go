package main

import (
	"archive/tar"
	"errors"
)

// applets are the names under which busybox is linked.
var applets = []string{
	"ash", "base64", "basename", "cat", "chmod", "chown", "cmp", "cp", "cut", "date", "dd", "df", "diff", "du", "echo", "env",
	"false", "find", "grep", "head", "id", "ln", "ls", "md5sum", "mkdir", "mkfifo", "mknod", "mktemp", "mount", "mv", "od", "ps", "pwd",
	"readlink", "rm", "rmdir", "sed", "seq", "sh", "sha256sum", "sleep", "sort", "stat", "sync", "tail", "tar", "tee", "test", "touch",
	"tr", "true", "umount", "uname", "uniq", "wc", "xargs", "yes",
}

// small is busybox with a little configuration: four layers, one of them with whiteouts.
func small(img *image, debs []string) error {
	if len(debs) != 1 {
		return errors.New("small: give the package of busybox-static")
	}
	for _, step := range []struct {
		comment string
		fill    func(*layer) error
	}{
		{"busybox", func(l *layer) error { return smallRoot(l, debs[0]) }},
		{"configuration", smallConfig},
		{"deletions", smallDeletions},
		{"more data", smallData},
	} {
		if err := img.layer(step.comment, step.fill); err != nil {
			return err
		}
	}
	return nil
}

func smallRoot(l *layer, deb string) error {
	if err := skeleton(l, "etc", "usr", "usr/bin", "usr/sbin", "usr/lib", "var", "var/log", "dev", "proc", "sys", "run"); err != nil {
		return err
	}
	if err := l.deb(deb); err != nil {
		return err
	}
	for i, name := range applets {
		var err error
		if i%2 == 0 {
			err = l.symlink("usr/bin/"+name, "busybox")
		} else {
			// With the mode of the file: dockerd gives it to the file again.
			err = l.add(tar.Header{Name: "usr/bin/" + name, Typeflag: tar.TypeLink, Linkname: "usr/bin/busybox", Mode: 0o755}, nil)
		}
		if err != nil {
			return err
		}
	}
	if err := accounts.each(l.text); err != nil {
		return err
	}
	return l.text("etc/motd", "remove me\n")
}

func smallConfig(l *layer) error {
	return all(
		func() error { return l.dir("etc") },
		func() error { return l.text("etc/profile", "PS1='$ '\n") },
		func() error { return l.dir("etc/conf.d") },
		func() error { return l.text("etc/conf.d/a", "a=1\n") },
		func() error { return l.text("etc/conf.d/b", "b=1\n") },
		func() error {
			return l.add(tar.Header{Name: "etc/shadow", Mode: 0o640, Gid: 42}, []byte("root:*:::::::\n"))
		},
		func() error { return l.text("etc/hostname", "small\n") },
	)
}

func smallDeletions(l *layer) error {
	return all(
		func() error { return l.dir("etc") },
		func() error { return l.text("etc/.wh.motd", "") },
		func() error { return l.text("etc/hostname", "changed\n") },
		func() error { return l.text("usr/share/.wh.doc", "") },
		func() error { return l.dir("etc/conf.d") },
		func() error { return l.text("etc/conf.d/.wh..wh..opq", "") },
		func() error { return l.text("etc/conf.d/c", "c=1\n") },
	)
}

func smallData(l *layer) error {
	return all(
		func() error { return l.dir("data") },
		func() error { return l.add(tar.Header{Name: "data/random"}, random(1, 1<<20)) },
		func() error { return l.link("data/link", "data/random") },
		func() error { return l.symlink("data/profile", "/etc/profile") },
	)
}

// accounts are the files that name users and groups, which no package unpacks.
var accounts = ordered{
	"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n",
	"etc/group":  "root:x:0:\nshadow:x:42:\nwww-data:x:33:\nnogroup:x:65534:\n",
}
