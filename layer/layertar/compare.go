package layertar

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"

	"golang.org/x/sys/unix"
)

// sameFile compares two files of one kind by what a layer holds of them.
func sameFile(ctx context.Context, l, u *node) (bool, error) {
	a, b := &l.st, &u.st
	if a.Mtim != b.Mtim || a.Rdev != b.Rdev || !l.isDir() && a.Size != b.Size {
		return false, nil
	}
	if same, err := sameOwnerAndMode(l, u); !same || err != nil {
		return false, err
	}
	switch l.kind() {
	case unix.S_IFLNK:
		t1, err := l.readlink()
		if err != nil {
			return false, err
		}
		t2, err := u.readlink()
		return t1 == t2, err
	case unix.S_IFREG:
		return sameContent(ctx, l, u)
	}
	return true, nil
}

// sameOwnerAndMode compares mode, owner and extended attributes.
func sameOwnerAndMode(l, u *node) (bool, error) {
	if l.st.Mode != u.st.Mode || l.st.Uid != u.st.Uid || l.st.Gid != u.st.Gid {
		return false, nil
	}
	x1, err := l.xattrs()
	if err != nil {
		return false, err
	}
	x2, err := u.xattrs()
	return maps.Equal(x1, x2), err
}

func sameContent(ctx context.Context, l, u *node) (bool, error) {
	if l.st.Size == 0 {
		return true, nil
	}
	f1, err := l.content()
	if err != nil {
		return false, err
	}
	defer f1.Close()
	f2, err := u.content()
	if err != nil {
		return false, err
	}
	defer f2.Close()

	sparse := l.sparse() && u.sparse()
	buf1, buf2 := make([]byte, 64<<10), make([]byte, 64<<10)
	for off := int64(0); off < l.st.Size; {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if sparse {
			if off = min(dataAfter(f1, off, l.st.Size), dataAfter(f2, off, u.st.Size)); off == l.st.Size {
				break
			}
		}
		n1, err1 := f1.ReadAt(buf1, off)
		n2, err2 := f2.ReadAt(buf2, off)
		for _, err := range []error{err1, err2} {
			if err != nil && err != io.EOF {
				return false, fmt.Errorf("compare %q: %w", u.rel, err)
			}
		}
		if !bytes.Equal(buf1[:n1], buf2[:n2]) || err1 != err2 {
			return false, nil
		}
		off += int64(n1)
		if err1 == io.EOF {
			break
		}
	}
	return true, nil
}

// dataAfter returns where the first data at or behind off begin, the file's size if there are none. A file
// system that knows no holes has data everywhere.
func dataAfter(f *os.File, off, size int64) int64 {
	at, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size
	case err != nil:
		return off
	}
	return at
}
