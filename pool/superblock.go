package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

// Few blocks lead to all others, the superblock first, then the trees that know the devices, and they can be made of nothing else. A copy of them is kept while the
// pool is stopped. It is worth something for just as long: it goes, for good, before the kernel gets the metadata, and whoever finds one finds what the kernel wrote last.
func (f files) keptSuperblock() string { return f.metadata() + ".superblock" }

// besideMetadata are the files that a pool has beside its metadata.
func (f files) besideMetadata() []string {
	return append(f.damagedCopies(), f.salvaged(), f.spare(), f.keptSuperblock())
}

// keepSuperblock copies the superblock of a pool that has just been deactivated, and what leads from there to its devices. A pool that cannot have a copy is stopped
// without it.
func (s *Session) keepSuperblock(ctx context.Context) error {
	p := s.p
	info, err := p.dm.Info(devmapper.ByUUID(deviceUUID(p.record.UUID, suffixMetadata)))
	if err != nil || !info.Active || info.Suspended { // who reads what is suspended waits
		return nil
	}
	var head []byte
	path, err := p.DeviceNode(info.Dev)
	if err == nil {
		err = withMetadata(path, thinmeta.Options{}, func(m *thinmeta.Metadata) (err error) {
			head, err = m.Head(ctx)
			return err
		})
	}
	if err == nil {
		err = writeBlocks(p.files.keptSuperblock(), head)
	}
	if err != nil {
		_, uerr := p.unkeepSuperblock() // one that stays is of what is there: the pool was not written
		p.log.Warn("no copy of the superblock is kept", "pool", p.files.name, "error", errors.Join(err, uerr))
		return nil
	}
	return pointSuperblockKept.Hit()
}

// writeBlocks writes a file. Where it is torn is seen by the checksums.
func writeBlocks(path string, blocks []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(blocks)
	return errors.Join(err, f.Sync(), f.Close())
}

// unkeepSuperblock removes the copy before the kernel can write another superblock. Where it cannot, on a file system that is read-only, the pool must not write
// either: stays says so.
func (p *Pool) unkeepSuperblock() (stays bool, err error) {
	path := p.files.keptSuperblock()
	err = unix.Unlink(path)
	switch {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case errors.Is(err, unix.EROFS):
		return exists(path), nil
	case err == nil:
		err = fsutil.SyncDir(p.files.dir())
	}
	if err != nil {
		return false, fmt.Errorf("copy of the superblock of pool %q: %w", p.files.name, err)
	}
	return false, pointSuperblockUnkept.Hit()
}

// install puts other metadata in the place of what there is, of which the copy was.
func (f files) install(ctx context.Context, b backing, path string) error {
	if err := removeFiles(f.keptSuperblock()); err != nil {
		return err
	}
	return b.install(ctx, path)
}

// restoreSuperblock puts what the kept copy has in the place of what is lost of it. A copy of another time than the metadata and the records is as good as none.
func (p *Pool) restoreSuperblock(metadata thinmeta.Storage) error {
	head, err := os.ReadFile(p.files.keptSuperblock())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	kept, err := thinmeta.ReadSuperblock(bytes.NewReader(head))
	if err != nil {
		return nil // torn
	}
	if !p.ofRecords(kept) {
		p.log.Warn("the copy of the superblock is of another time than the records, and not used", "pool", p.files.name, "transaction", kept.TransactionID)
		return nil
	}
	n, err := thinmeta.RestoreHead(metadata, head)
	if errors.Is(err, thinmeta.ErrMismatch) {
		p.log.Warn("the copy of the superblock is not used", "pool", p.files.name, "error", err)
		return nil
	}
	if n > 0 {
		p.log.Info("put back what leads to the thin devices", "pool", p.files.name, "blocks", n)
	}
	return err
}

// ofRecords tells whether a superblock is of the transaction that the records are of.
func (p *Pool) ofRecords(super thinmeta.Superblock) bool {
	t, record := super.TransactionID, p.record
	return t == record.TransactionID || record.Pending && t == previous(record)
}
