package layertar

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	copySize = 1 << 20

	// holeSize is the granularity in which zeros become holes: the smallest block of a thin pool, below
	// which a hole saves nothing.
	holeSize = 64 << 10
)

// file makes a regular file.
func (a *applier) file(base string, hdr *tar.Header, sparse bool) error {
	a.stats.Bytes += hdr.Size
	fd := -1
	err := a.create(base, func() (err error) {
		fd, err = unix.Openat(a.at.dir().fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, uint32(hdr.Mode)&0o777)
		return err
	})
	if err != nil {
		return err
	}
	if sparse {
		err = a.fillSparse(fd, hdr)
	} else {
		err = a.fillPlain(fd, hdr.Size)
	}
	if cerr := unix.Close(fd); err == nil {
		err = a.pathError("close", base, cerr)
	}
	if err != nil {
		return err
	}
	return a.finishEntry(base, hdr)
}

// fillPlain writes a file that the archive has from its first byte to its last.
func (a *applier) fillPlain(fd int, size int64) error {
	if err := a.fill(fd, 0, size, a.tr); err != nil || !a.endsInHole {
		return err
	}
	return os.NewSyscallError("ftruncate", unix.Ftruncate(fd, size))
}

// fill writes the next bytes of r to their place in a file. Zeros become holes.
func (a *applier) fill(fd int, off, size int64, r io.Reader) error {
	a.endsInHole = false
	for size > 0 {
		if err := a.ctx.Err(); err != nil {
			return err
		}
		buf := a.buf[:min(size, int64(len(a.buf)))]
		if _, err := io.ReadFull(r, buf); err != nil {
			return unexpected(err)
		}
		size -= int64(len(buf))
		for len(buf) > 0 {
			zeros, n := run(buf)
			if !zeros {
				if err := writeAt(fd, buf[:n], off); err != nil {
					return err
				}
			}
			a.endsInHole = zeros
			buf, off = buf[n:], off+int64(n)
		}
	}
	return nil
}

// unexpected says that an archive ends within a file.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

var zeroChunk [holeSize]byte

// run tells how many bytes at the beginning of buf are written, or left out, in one go.
func run(buf []byte) (zeros bool, n int) {
	for n < len(buf) {
		chunk := buf[n:min(n+holeSize, len(buf))]
		empty := bytes.Equal(chunk, zeroChunk[:len(chunk)])
		if n > 0 && empty != zeros {
			break
		}
		zeros = empty
		n += len(chunk)
	}
	return zeros, n
}

func writeAt(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("pwrite", err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func (a *applier) symlink(base string, hdr *tar.Header) error {
	if hdr.Linkname == "" {
		return invalid("a symbolic link without a target")
	}
	err := a.create(base, func() error { return unix.Symlinkat(hdr.Linkname, a.at.dir().fd, base) })
	if errors.Is(err, unix.ENAMETOOLONG) && len(base) <= unix.NAME_MAX {
		return unsupported("a symbolic link to a name of %d bytes: too long for this file system", len(hdr.Linkname))
	}
	if err != nil {
		return err
	}
	return a.finishEntry(base, hdr)
}

// special makes a device or a fifo.
func (a *applier) special(base string, hdr *tar.Header) error {
	mode, dev := uint32(hdr.Mode)&0o777, 0
	switch hdr.Typeflag {
	case tar.TypeFifo:
		mode |= unix.S_IFIFO
	case tar.TypeChar:
		mode |= unix.S_IFCHR
	case tar.TypeBlock:
		mode |= unix.S_IFBLK
	}
	if hdr.Typeflag != tar.TypeFifo {
		if a.options.ForbidDevices {
			return unsupported("device nodes are forbidden here")
		}
		// What the kernel has bits for.
		if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
			return invalid("device number %d:%d is out of range", hdr.Devmajor, hdr.Devminor)
		}
		dev = int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)))
	}
	if err := a.create(base, func() error { return unix.Mknodat(a.at.dir().fd, base, mode, dev) }); err != nil {
		return err
	}
	return a.finishEntry(base, hdr)
}

// finishEntry gives a new file what it does not have from its creation: owner, special mode bits,
// extended attributes, times.
func (a *applier) finishEntry(base string, hdr *tar.Header) error {
	if err := a.complete(base, hdr); err != nil {
		return err
	}
	return setTimeAt(a.at.dir().fd, base, hdr.ModTime)
}

// complete gives a new entry of the current directory what it did not get from its creation.
func (a *applier) complete(base string, hdr *tar.Header) error {
	inherit := a.at.dir().inherit
	if a.masks || inherit || hdr.Uid != a.owner[0] || hdr.Gid != a.owner[1] || hdr.Mode&0o7000 != 0 {
		return a.attributes(base, hdr, inherit)
	}
	return a.setXattrs(base, hdr)
}

// attributes gives an entry of the current directory the owner, the mode and the extended attributes of
// its header; with replace, it takes others away. The order matters: a change of owner drops mode bits
// and capabilities.
func (a *applier) attributes(base string, hdr *tar.Header, replace bool) error {
	at := a.at.dir()
	if err := unix.Fchownat(at.fd, base, hdr.Uid, hdr.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return a.pathError("chown", base, err)
	}
	if replace {
		if err := removeXattrs(at.proc(base), hdr); err != nil {
			return err
		}
	}
	if hdr.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(at.fd, base, uint32(hdr.Mode)&0o7777, 0); err != nil {
			return a.pathError("chmod", base, err)
		}
	}
	return a.setXattrs(base, hdr)
}
