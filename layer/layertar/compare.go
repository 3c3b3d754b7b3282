package layertar

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"

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

	buf1, buf2 := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n1, err1 := io.ReadFull(f1, buf1)
		n2, err2 := io.ReadFull(f2, buf2)
		if !bytes.Equal(buf1[:n1], buf2[:n2]) {
			return false, nil
		}
		for _, err := range []error{err1, err2} {
			if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
				return false, fmt.Errorf("compare %q: %w", u.rel, err)
			}
		}
		if err1 != nil || err2 != nil {
			return err1 == err2, nil
		}
	}
}
