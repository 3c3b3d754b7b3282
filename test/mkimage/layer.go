package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// A layer is a tar that is being written to a file.
type layer struct {
	comment string
	file    *os.File
	sum     hashWriter
	tw      *tar.Writer
	seen    map[string]bool // names that have an entry
	keep    map[string]*kept
}

// kept is an entry of a package that a later layer wants again.
type kept struct {
	hdr     tar.Header
	content []byte
}

// epoch is the time of entries that have no reason for another one. It has nanoseconds.
var epoch = time.Unix(1_700_000_000, 123_456_789)

func newLayer(dir, comment string) (*layer, error) {
	f, err := os.CreateTemp(dir, "layer")
	if err != nil {
		return nil, err
	}
	l := &layer{comment: comment, file: f, seen: map[string]bool{}, keep: map[string]*kept{}}
	l.sum = hashWriter{w: f, h: sha256.New()}
	l.tw = tar.NewWriter(&l.sum)
	return l, nil
}

// diffID returns the digest of the tar, which must have been closed.
func (l *layer) diffID() string { return l.sum.digest() }

// add writes an entry. Without a time it gets epoch, without a mode 0644 or, as a directory, 0755.
func (l *layer) add(hdr tar.Header, content []byte) error {
	return l.stream(hdr, int64(len(content)), bytes.NewReader(content))
}

func (l *layer) stream(hdr tar.Header, size int64, r io.Reader) error {
	if hdr.ModTime.IsZero() {
		hdr.ModTime = epoch
	}
	if hdr.Typeflag == 0 {
		hdr.Typeflag = tar.TypeReg
	}
	if hdr.Mode == 0 {
		hdr.Mode = 0o644
		if hdr.Typeflag == tar.TypeDir {
			hdr.Mode = 0o755
		}
	}
	hdr.Size = size
	hdr.Uname, hdr.Gname = "", ""
	hdr.AccessTime, hdr.ChangeTime = time.Time{}, time.Time{}
	hdr.Format = tar.FormatPAX
	if err := l.tw.WriteHeader(&hdr); err != nil {
		return fmt.Errorf("%s: %w", hdr.Name, err)
	}
	l.seen[path.Clean(hdr.Name)] = true
	_, err := io.Copy(l.tw, r)
	return err
}

func (l *layer) dir(name string) error {
	return l.add(tar.Header{Name: name + "/", Typeflag: tar.TypeDir}, nil)
}

func (l *layer) text(name, content string) error {
	return l.add(tar.Header{Name: name}, []byte(content))
}

func (l *layer) symlink(name, target string) error {
	return l.add(tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}, nil)
}

func (l *layer) link(name, target string) error {
	return l.add(tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}, nil)
}

// deb adds what a package unpacks, with /bin, /sbin and /lib below /usr.
func (l *layer) deb(file string) error {
	cmd := exec.Command("dpkg-deb", "--fsys-tarfile", file)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	tr := tar.NewReader(pipe)
	err = l.packageEntries(tr)
	if err == nil { // dpkg-deb must not die of a broken pipe
		_, err = io.Copy(io.Discard, pipe)
	}
	if werr := cmd.Wait(); err == nil {
		err = werr
	}
	if err != nil {
		return fmt.Errorf("package %s: %w", filepath.Base(file), err)
	}
	return nil
}

func (l *layer) packageEntries(tr *tar.Reader) error {
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := merged(path.Clean(hdr.Name))
		if name == "." || l.seen[name] {
			if hdr.Typeflag == tar.TypeDir {
				continue // packages share directories
			}
			return fmt.Errorf("%s: is in two packages", name)
		}
		out := tar.Header{
			Typeflag: hdr.Typeflag, Name: name, Linkname: hdr.Linkname, Mode: hdr.Mode, Uid: hdr.Uid, Gid: hdr.Gid,
			ModTime: hdr.ModTime, Devmajor: hdr.Devmajor, Devminor: hdr.Devminor, PAXRecords: hdr.PAXRecords,
		}
		switch hdr.Typeflag {
		case tar.TypeDir:
			out.Name += "/"
		case tar.TypeLink:
			out.Linkname = merged(path.Clean(hdr.Linkname))
		}
		var r io.Reader = tr
		if k := l.keep[name]; k != nil {
			if k.content, err = io.ReadAll(tr); err != nil {
				return err
			}
			k.hdr, r = out, bytes.NewReader(k.content)
		}
		if err := l.stream(out, hdr.Size, r); err != nil {
			return err
		}
	}
}

// merged moves a name into /usr as systems of today have it.
func merged(name string) string {
	top, _, _ := strings.Cut(name, "/")
	switch top {
	case "bin", "sbin", "lib", "lib32", "lib64", "libx32":
		return "usr/" + name
	}
	return name
}

// sparse adds a file with holes in GNU's PAX format 1.0, which archive/tar reads but does not write.
func (l *layer) sparse(name string, size int64, pieces map[int64][]byte, order []int64) error {
	if err := l.tw.Flush(); err != nil {
		return err
	}
	table := fmt.Sprintf("%d\n", len(order)+1)
	var data []byte
	for _, at := range order {
		table += fmt.Sprintf("%d\n%d\n", at, len(pieces[at]))
		data = append(data, pieces[at]...)
	}
	table += fmt.Sprintf("%d\n0\n", size)
	table += strings.Repeat("\x00", (512-len(table)%512)%512)

	var records string
	for _, kv := range [][2]string{
		{"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"}, {"GNU.sparse.name", name},
		{"GNU.sparse.realsize", strconv.FormatInt(size, 10)}, {"mtime", "1700000000.000000001"},
	} {
		records += paxRecord(kv[0], kv[1])
	}
	ext, err := rawEntry("PaxHeaders/"+path.Base(name), 'x', []byte(records))
	if err != nil {
		return err
	}
	main, err := rawEntry("GNUSparseFile.0/"+path.Base(name), '0', append([]byte(table), data...))
	if err != nil {
		return err
	}
	l.seen[name] = true
	_, err = l.sum.Write(append(ext, main...))
	return err
}

// rawEntry returns the bytes of an entry with any type.
func rawEntry(name string, typeflag byte, content []byte) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	hdr := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content)), ModTime: time.Unix(epoch.Unix(), 0), Format: tar.FormatUSTAR}
	if err := w.WriteHeader(hdr); err != nil {
		return nil, err
	}
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	if err := w.Flush(); err != nil {
		return nil, err
	}
	raw := buf.Bytes()
	raw[156] = typeflag
	copy(raw[148:156], "        ")
	sum := 0
	for _, b := range raw[:512] {
		sum += int(b)
	}
	copy(raw[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return raw, nil
}

// paxRecord returns "LENGTH KEY=VALUE\n", where LENGTH counts itself.
func paxRecord(key, value string) string {
	rest := " " + key + "=" + value + "\n"
	n := len(rest)
	for len(strconv.Itoa(n))+len(rest) != n {
		n = len(strconv.Itoa(n)) + len(rest)
	}
	return strconv.Itoa(n) + rest
}

// hashWriter counts and hashes what goes through it.
type hashWriter struct {
	w io.Writer
	h interface {
		io.Writer
		Sum([]byte) []byte
	}
	n int64
}

func (h *hashWriter) Write(p []byte) (int, error) {
	n, err := h.w.Write(p)
	_, _ = h.h.Write(p[:n])
	h.n += int64(n)
	return n, err
}

func (h *hashWriter) digest() string { return "sha256:" + hex.EncodeToString(h.h.Sum(nil)) }
