package fsutil

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// Sizes are a mounted file system's and its device's, in bytes.
type Sizes struct {
	FS, Device uint64
	BlockSize  uint32 // of the file system
}

// Behind says whether the file system can grow: the device has more whole blocks.
func (s Sizes) Behind() bool { return s.Device/uint64(s.BlockSize)*uint64(s.BlockSize) > s.FS }

// mounted is an open directory of a mounted ext4 or xfs.
type mounted struct {
	dir *os.File
	typ Type
	dev DevNum
}

// Magic numbers of statfs(2).
const (
	ext4SuperMagic = unix.EXT4_SUPER_MAGIC
	xfsSuperMagic  = unix.XFS_SUPER_MAGIC
)

func openMounted(dir string) (*mounted, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	m := &mounted{dir: f}
	if err := m.look(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return m, nil
}

func (m *mounted) look() error {
	fd := int(m.dir.Fd())
	var sf unix.Statfs_t
	if err := retryEINTR(func() error { return unix.Fstatfs(fd, &sf) }); err != nil {
		return err
	}
	switch int64(sf.Type) {
	case ext4SuperMagic: // ext2 and ext3 too
		m.typ = Ext4
	case xfsSuperMagic:
		m.typ = XFS
	default:
		return fmt.Errorf("file system type %#x: %w", sf.Type, errs.ErrUnsupported)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	m.dev = devNum(uint64(st.Dev))
	return nil
}

func (m *mounted) close() { _ = m.dir.Close() }

func (m *mounted) sizes() (Sizes, error) {
	dev, err := openByNumber(m.dev)
	if err != nil {
		return Sizes{}, err
	}
	defer dev.Close()
	size, err := SizeOf(dev)
	if err != nil {
		return Sizes{}, err
	}
	if m.typ == XFS {
		var geo xfsGeometryV1
		if err := ioctl(int(m.dir.Fd()), reqXFSGeometryV1, &geo); err != nil {
			return Sizes{}, fmt.Errorf("XFS_IOC_FSGEOMETRY: %w", err)
		}
		return Sizes{FS: geo.dataBlocks * uint64(geo.blockSize), Device: size, BlockSize: geo.blockSize}, nil
	}
	fs, err := ReadFS(dev)
	if err != nil {
		return Sizes{}, err
	}
	return Sizes{FS: fs.Size, Device: size, BlockSize: fs.BlockSize}, nil
}

// Size returns the sizes of the ext4 or xfs mounted at dir and of its device.
func Size(ctx context.Context, dir string) (Sizes, error) {
	if err := context.Cause(ctx); err != nil {
		return Sizes{}, fail("size of file system at", dir, err)
	}
	m, err := openMounted(dir)
	if err != nil {
		return Sizes{}, fail("size of file system at", dir, err)
	}
	defer m.close()
	s, err := m.sizes()
	return s, fail("size of file system at", dir, err)
}

// Grow makes the ext4 or xfs mounted writable at dir as large as its device, while it is in use and without
// a program. It does nothing where it is as large already. ext4 may stay short of the device by less than a block
// group. The growth is durable when Grow returns, as far as the journal is; SyncFS makes it so.
//
// EXT4_IOC_RESIZE_FS (Linux 3.3), XFS_IOC_FSGROWFSDATA.
func Grow(ctx context.Context, dir string) error {
	const what = "grow file system at"
	if err := context.Cause(ctx); err != nil {
		return fail(what, dir, err)
	}
	m, err := openMounted(dir)
	if err != nil {
		return fail(what, dir, err)
	}
	defer m.close()
	s, err := m.sizes()
	if err != nil {
		return fail(what, dir, err)
	}
	if !s.Behind() {
		return nil
	}
	return fail(what, dir, m.growTo(s.Device/uint64(s.BlockSize)))
}

func (m *mounted) growTo(blocks uint64) error {
	fd := int(m.dir.Fd())
	if m.typ == Ext4 {
		return m.growExt4(blocks)
	}
	var geo xfsGeometryV1
	if err := ioctl(fd, reqXFSGeometryV1, &geo); err != nil {
		return err
	}
	return ioctl(fd, reqXFSGrowFSData, &xfsGrowFSData{newBlocks: blocks, imaxPct: geo.imaxPct})
}

// growExt4 grows with init_itable, where the mount has the noinit_itable that Mount gives it: without, the kernel writes
// the inode tables of the new part at once (setup_new_flex_group_blocks), 16 MiB a GiB, and a thin device has to
// keep all those zeros. With it, they are left to a background thread that the second change
// stops before it begins.
func (m *mounted) growExt4(blocks uint64) error {
	grow := func() error { return ioctl(int(m.dir.Fd()), reqExt4ResizeFS, &blocks) }
	var err error
	if m.hasExt4Option("noinit_itable") && m.reconfigure("init_itable") == nil {
		err = errors.Join(grow(), m.reconfigure("noinit_itable"))
	} else {
		err = grow() // costs more, and works as well
	}
	if errors.Is(err, unix.EPERM) {
		return errs.WithHint(fmt.Errorf("%w: %w", errs.ErrUnsupported, err),
			"growing ext4 needs CAP_SYS_RESOURCE, and a file system without recorded errors: check it")
	}
	return err
}

// hasExt4Option looks for an option of the mounted ext4, which mountinfo shows neither for a detached mount nor
// where it is a default.
func (m *mounted) hasExt4Option(name string) bool {
	device, err := deviceName(m.dev)
	if err != nil {
		return false
	}
	options, err := os.ReadFile("/proc/fs/ext4/" + device + "/options")
	return err == nil && slices.Contains(strings.Split(string(options), "\n"), name)
}

// reconfigure sets one option of the mounted file system and leaves the others as they are (fspick(2)).
func (m *mounted) reconfigure(option string) error {
	config, err := unix.Fspick(int(m.dir.Fd()), "", unix.FSPICK_EMPTY_PATH|unix.FSPICK_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fspick: %w", err)
	}
	defer unix.Close(config)
	if err := unix.FsconfigSetFlag(config, option); err != nil {
		return fmt.Errorf("option %s: %w", option, withKernelLog(config, err))
	}
	if err := retryEINTR(func() error { return unix.FsconfigReconfigure(config) }); err != nil {
		return fmt.Errorf("option %s: %w", option, withKernelLog(config, err))
	}
	return nil
}
