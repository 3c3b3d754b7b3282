package layertar

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	paxXattr   = "SCHILY.xattr." // starts the PAX records that carry extended attributes
	aclDefault = "system.posix_acl_default"
)

// layerXattr tells whether an attribute is part of a layer. What the host keeps for itself is not:
// trusted.* belongs to its file systems, security.selinux to its policy.
func layerXattr(name string) bool {
	return !strings.HasPrefix(name, "trusted.") && name != "security.selinux"
}

// headerXattrs returns the extended attributes that a header carries.
func headerXattrs(hdr *tar.Header) map[string]string {
	var set map[string]string
	for k, v := range hdr.PAXRecords {
		if name, ok := strings.CutPrefix(k, paxXattr); ok {
			if set == nil {
				set = make(map[string]string)
			}
			set[name] = v
		}
	}
	return set
}

// readXattrs returns the attributes of path that are part of a layer; a symbolic link is not
// followed. A file system without extended attributes has none.
func readXattrs(path string) (map[string]string, error) {
	names, err := listXattrs(path)
	if err != nil {
		return nil, err
	}
	var set map[string]string
	for _, name := range names {
		if !layerXattr(name) {
			continue
		}
		v, err := getXattr(path, name)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if set == nil {
			set = make(map[string]string)
		}
		set[name] = v
	}
	return set, nil
}

func listXattrs(path string) ([]string, error) {
	raw, err := growing(func(buf []byte) (int, error) { return unix.Llistxattr(path, buf) })
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: path, Err: err}
	}
	var names []string
	for _, name := range strings.Split(string(raw), "\x00") {
		if name != "" {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names, nil
}

func getXattr(path, name string) (string, error) {
	v, err := growing(func(buf []byte) (int, error) { return unix.Lgetxattr(path, name, buf) })
	if err != nil {
		return "", &os.PathError{Op: "getxattr " + name, Path: path, Err: err}
	}
	return string(v), nil
}

// growing calls read with a buffer that is large enough for what there is.
func growing(read func([]byte) (int, error)) ([]byte, error) {
	buf := make([]byte, 256)
	for {
		n, err := read(buf)
		if err == nil {
			return buf[:n], nil
		}
		if !errors.Is(err, unix.ERANGE) || len(buf) > 1<<20 {
			return nil, err
		}
		buf = make([]byte, 4*len(buf))
	}
}

// removeXattrs takes the attributes from path that its header does not have, apart from those that are
// not part of a layer.
func removeXattrs(path string, hdr *tar.Header) error {
	names, err := listXattrs(path)
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, keep := hdr.PAXRecords[paxXattr+name]; keep || !layerXattr(name) {
			continue
		}
		if err := unix.Lremovexattr(path, name); err != nil && !errors.Is(err, unix.ENODATA) {
			return &os.PathError{Op: "removexattr " + name, Path: path, Err: err}
		}
	}
	return nil
}

// setXattrs gives an entry of the current directory the extended attributes of its header.
func (a *applier) setXattrs(base string, hdr *tar.Header) error {
	for name, value := range headerXattrs(hdr) {
		err := unix.Lsetxattr(a.at.dir().proc(base), name, []byte(value), 0)
		if err == nil {
			continue
		}
		if a.leaveOut(hdr, err) {
			a.warn(fmt.Sprintf("left out: extended attribute %.300q", name))
			continue
		}
		return a.xattrError(name, value, err)
	}
	return nil
}

// leaveOut tells whether an attribute was refused because no file of that kind has such ones here.
func (a *applier) leaveOut(hdr *tar.Header, err error) bool {
	ordinary := hdr.Typeflag == tar.TypeReg || hdr.Typeflag == tar.TypeDir
	return errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) && !ordinary
}

// xattrError tells an attribute that breaks a limit from a disk that is full: ext4 says ENOSPC for both.
func (a *applier) xattrError(name, value string, err error) error {
	text := fmt.Sprintf("extended attribute %.300q of %d bytes", name, len(value))
	switch {
	case errors.Is(err, unix.E2BIG), errors.Is(err, unix.ERANGE), errors.Is(err, unix.EINVAL):
		return invalid("%s: %w", text, err)
	case errors.Is(err, unix.ENOSPC) && a.hasRoom():
		return unsupported("%s: too large for this file system: %w", text, err)
	}
	return fmt.Errorf("%s: %w", text, err)
}

// hasRoom reports whether the disk has room for what an attribute can take.
func (a *applier) hasRoom() bool {
	var st unix.Statfs_t
	err := unix.Fstatfs(a.at.dir().fd, &st)
	return err == nil && st.Bavail*uint64(st.Bsize) > 1<<20
}
