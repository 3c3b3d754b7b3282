package fsutil

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// FinishGrowth brings what a power cut left behind the growth of the file system mounted writable at dir, whose
// superblock says that it has its size. xfs writes the copies of its superblock in the other allocation groups after the growth
// has been logged, and replays nothing of that: no mount reads them, but xfs_repair calls the file system damaged. They
// are looked at, a sector of each group, and written again if one is old. ext4 has nothing to finish.
//
// XFS_IOC_FSGROWFSDATA with the present size writes the copies and nothing else (xfs_growfs_data, Linux 4.19 and later).
func FinishGrowth(ctx context.Context, dir string) error {
	return onXFS(ctx, "finish growth of file system at", dir, (*mounted).finishXFS)
}

// onXFS runs fn on the file system mounted at dir, if that is an xfs.
func onXFS(ctx context.Context, what, dir string, fn func(*mounted) error) error {
	if err := context.Cause(ctx); err != nil {
		return fail(what, dir, err)
	}
	m, err := openMounted(dir)
	if err != nil {
		return fail(what, dir, err)
	}
	defer m.close()
	if m.typ != XFS {
		return nil
	}
	return fail(what, dir, fn(m))
}

func (m *mounted) finishXFS() error {
	var geo xfsGeometryV1
	if err := ioctl(int(m.dir.Fd()), reqXFSGeometryV1, &geo); err != nil {
		return fmt.Errorf("XFS_IOC_FSGEOMETRY: %w", err)
	}
	path, err := devicePath(m.dev)
	if err != nil {
		return err
	}
	// Past the page cache of the device, which the file system does not use.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	old, err := hasOldSuperblocks(f, geo)
	if err != nil || !old {
		return err
	}
	return m.growTo(geo.dataBlocks)
}

// hasOldSuperblocks tells whether a copy of the superblock is of another size than the file system.
func hasOldSuperblocks(f *os.File, geo xfsGeometryV1) (bool, error) {
	sector := alignedSector(max(int(geo.sectSize), xfsSuperSector))
	for ag := uint32(1); ag < geo.agCount; ag++ {
		if _, err := f.ReadAt(sector, int64(ag)*int64(geo.agBlocks)*int64(geo.blockSize)); err != nil {
			return false, err
		}
		be := binary.BigEndian
		current := bytes.HasPrefix(sector, []byte(xfsMagic)) &&
			be.Uint64(sector[xfsDataBlocks:]) == geo.dataBlocks && be.Uint32(sector[xfsAGCount:]) == geo.agCount
		if !current {
			return true, nil
		}
	}
	return false, nil
}

// alignedSector returns a buffer for direct reads of a sector.
func alignedSector(size int) []byte {
	b := make([]byte, 2*size)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (size - 1)
	return b[skip : skip+size]
}
