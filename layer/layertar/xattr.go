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

// paxXattr starts the PAX records that carry extended attributes.
const paxXattr = "SCHILY.xattr."

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

// replaceXattrs gives path exactly the attributes in set, apart from those that are not part of a
// layer. It returns the names that the file system does not take.
func replaceXattrs(path string, set map[string]string) (refused []string, err error) {
	names, err := listXattrs(path)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if _, keep := set[name]; keep || !layerXattr(name) {
			continue
		}
		if err := unix.Lremovexattr(path, name); err != nil && !errors.Is(err, unix.ENODATA) {
			return nil, &os.PathError{Op: "removexattr " + name, Path: path, Err: err}
		}
	}
	for name, value := range set {
		err := unix.Lsetxattr(path, name, []byte(value), 0)
		switch {
		case errors.Is(err, unix.ENOTSUP):
			refused = append(refused, fmt.Sprintf("extended attribute %q", name))
		case err != nil:
			return nil, &os.PathError{Op: "setxattr " + name, Path: path, Err: err}
		}
	}
	sort.Strings(refused)
	return refused, nil
}
