package fsutil

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Request numbers that x/sys does not have, from linux/fs.h, linux/ext4.h and xfs_fs.h. They are put together
// as asm-generic/ioctl.h does; powerpc, mips and sparc do it differently.
const (
	ioWrite = 1 << 30
	ioRead  = 2 << 30

	reqFITRIM         = ioRead | ioWrite | 24<<16 | 'X'<<8 | 121 // struct fstrim_range
	reqExt4ResizeFS   = ioWrite | 8<<16 | 'f'<<8 | 16            // __u64
	reqXFSGeometryV1  = ioRead | 112<<16 | 'X'<<8 | 100          // struct xfs_fsop_geom_v1
	reqXFSGrowFSData  = ioWrite | 16<<16 | 'X'<<8 | 110          // struct xfs_growfs_data
	reqXFSFreeEOF     = ioRead | 128<<16 | 'X'<<8 | 58           // struct xfs_fs_eofblocks
	reqBLKDISCARD     = 0x12<<8 | 119                            // __u64[2]
	reqBLKGETSIZE64   = ioRead | 8<<16 | 0x12<<8 | 114           // __u64
	reqLoopCtlAdd     = 0x4c80
	reqLoopCtlGetFree = 0x4c82
)

type fstrimRange struct{ start, length, minlen uint64 }

type xfsGeometryV1 struct {
	blockSize, rtExtSize, agBlocks, agCount uint32
	logBlocks, sectSize, inodeSize, imaxPct uint32
	dataBlocks, rtBlocks, rtExtents         uint64
	logStart                                uint64
	uuid                                    [16]byte
	sunit, swidth                           uint32
	version                                 int32
	flags, logSectSize, rtSectSize          uint32
	dirBlockSize                            uint32
}

type xfsFreeEOF struct {
	version, flags uint32
	_              [120]byte // which inodes: all of them
}

const (
	xfsFreeEOFVersion = 1
	xfsFreeEOFSync    = 1
)

// What is looked at of the superblocks of an xfs: struct xfs_dsb.
const (
	xfsMagic       = "XFSB"
	xfsDataBlocks  = 8  // be64
	xfsAGCount     = 88 // be32
	xfsSuperSector = 512
)

type xfsGrowFSData struct {
	newBlocks uint64
	imaxPct   uint32
	_         uint32
}

// ioctl is the one place in this package that hands a pointer to the kernel.
func ioctl[T any](fd int, req uintptr, arg *T) error {
	return retryEINTR(func() error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(arg)))
		if errno != 0 {
			return errno
		}
		return nil
	})
}

// ioctlNumber is for requests whose argument and result are small numbers.
func ioctlNumber(fd int, req, arg uintptr) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return -1, errno
	}
}
