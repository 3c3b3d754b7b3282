package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

var (
	pointSuperblockKept   = fault.New("pool.superblock.kept")
	pointSuperblockUnkept = fault.New("pool.superblock.unkept")
)

// The superblock is the one block of the metadata that leads to all others, and that nothing else can be made of. A copy of it is kept while the pool is
// stopped. It is worth something for just as long: it goes, for good, before the kernel gets the metadata, and whoever finds one finds what the kernel wrote last.
func (f files) keptSuperblock() string { return f.metadata() + ".superblock" }

// besideMetadata are the files that a pool has beside its metadata.
func (f files) besideMetadata() []string {
	return append(f.damagedCopies(), f.salvaged(), f.spare(), f.keptSuperblock())
}

// keepSuperblock copies the superblock of a pool that has just been deactivated. A pool that cannot have one is stopped without it.
func (s *Session) keepSuperblock() error {
	p := s.p
	info, err := p.dm.Info(devmapper.ByUUID(deviceUUID(p.record.UUID, suffixMetadata)))
	if err != nil || !info.Active || info.Suspended { // who reads what is suspended waits
		return nil
	}
	block, _, err := p.readLiveBlock(info.Dev)
	if err == nil {
		err = writeBlock(p.files.keptSuperblock(), block)
	}
	if err != nil {
		p.log.Warn("no copy of the superblock is kept", "pool", p.files.name, "error", err)
		return removeFiles(p.files.keptSuperblock())
	}
	return pointSuperblockKept.Hit()
}

// writeBlock writes a file. One that is torn is seen by its checksum.
func writeBlock(path string, block []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(block)
	return errors.Join(err, f.Sync(), f.Close())
}

// unkeepSuperblock removes the copy before the kernel can write another superblock.
func (p *Pool) unkeepSuperblock() error {
	err := unix.Unlink(p.files.keptSuperblock())
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EROFS) { // what can be read stays readable
		return nil
	}
	if err == nil {
		err = fsutil.SyncDir(p.files.dir())
	}
	if err != nil {
		return fmt.Errorf("copy of the superblock of pool %q: %w", p.files.name, err)
	}
	return pointSuperblockUnkept.Hit()
}

// install puts other metadata in the place of what there is, of which the copy was.
func (f files) install(ctx context.Context, b backing, path string) error {
	if err := removeFiles(f.keptSuperblock()); err != nil {
		return err
	}
	return b.install(ctx, path)
}

// restoreSuperblock puts the kept copy in the place of a superblock that is lost, and tells whether there was one.
func (p *Pool) restoreSuperblock(metadata thinmeta.Storage) (bool, error) {
	block, err := os.ReadFile(p.files.keptSuperblock())
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if _, err := thinmeta.ReadSuperblock(bytes.NewReader(block)); err != nil {
		return false, nil // torn
	}
	_, err = metadata.WriteAt(block[:thinmeta.BlockSize], 0)
	return err == nil, err
}

// superblockLost tells whether metadata begins with something else than a superblock.
func superblockLost(metadata io.ReaderAt) bool {
	_, err := thinmeta.ReadSuperblock(metadata)
	return err != nil
}
