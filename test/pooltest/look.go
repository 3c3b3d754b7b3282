package pooltest

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
)

// Node returns a node's record.
func (e *Env) Node(ctx context.Context, name string) (n metadata.Node, err error) {
	store := metadata.New(e.Store(), noLock{})
	defer store.Close()
	err = store.View(ctx, func(tx *metadata.Tx) (err error) {
		n, err = tx.Node(name)
		return err
	})
	return n, err
}

// Tombstones returns the thin ids that are being deleted.
func (e *Env) Tombstones(ctx context.Context) (ids []metadata.ThinID, err error) {
	r, err := e.read(ctx)
	if err != nil {
		return nil, err
	}
	for id := range r.tombs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids, nil
}

// Window returns the marks between which thin ids may be in flight.
func (e *Env) Window(ctx context.Context) (low, high metadata.ThinID, err error) {
	r, err := e.read(ctx)
	if err != nil {
		return 0, 0, err
	}
	return r.pool.LowID, r.pool.HighID, nil
}

// DeviceUUID returns the dm UUID of a thin device, or "" where the store cannot be read.
func (e *Env) DeviceUUID(ctx context.Context, id metadata.ThinID) devmapper.UUID {
	r, err := e.read(ctx)
	if err != nil {
		return ""
	}
	return devmapper.UUID("DMLAYER-" + r.pool.UUID + "-" + strconv.FormatUint(uint64(id), 10))
}

// Thins stops the pool and returns the thin devices that are in it.
func (e *Env) Thins(ctx context.Context) (ids []metadata.ThinID, err error) {
	if err := pool.Stop(ctx, e.Dirs, e.Name); err != nil {
		return nil, err
	}
	dump, err := dumpThins(ctx, e.Metadata())
	if err != nil {
		return nil, err
	}
	for _, d := range dump.Devices {
		ids = append(ids, metadata.ThinID(d.ID))
	}
	return ids, nil
}

// Checksum returns a checksum of what a device or file holds.
func Checksum(path string) (uint32, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, f, make([]byte, 1<<20)); err != nil {
		return 0, fmt.Errorf("read %s: %w", path, err)
	}
	return h.Sum32(), nil
}

// CopySparse copies a file over another, which stays the same file, and leaves holes holes.
func CopySparse(from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	fi, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	if err := errors.Join(dst.Truncate(0), dst.Truncate(fi.Size())); err != nil {
		return err
	}
	for at := int64(0); ; {
		at, err = unix.Seek(int(src.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return dst.Sync()
		}
		if err != nil {
			return fmt.Errorf("seek in %s: %w", from, err)
		}
		end, err := unix.Seek(int(src.Fd()), at, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("seek in %s: %w", from, err)
		}
		part := io.NewSectionReader(src, at, end-at)
		if _, err := io.Copy(io.NewOffsetWriter(dst, at), part); err != nil {
			return err
		}
		at = end
	}
}

// Tamper changes the records behind everybody's back. No store may be open that could remember them otherwise.
func (e *Env) Tamper(ctx context.Context, fn func(*metadata.Tx) error) error {
	store := metadata.New(e.Store(), noLock{})
	defer store.Close()
	return store.Update(ctx, fn)
}

// MarkLost records that a node has lost blocks, as a repair of the metadata does.
func (e *Env) MarkLost(ctx context.Context, name string) error {
	return e.Tamper(ctx, func(tx *metadata.Tx) error {
		n, err := tx.Node(name)
		if err != nil {
			return err
		}
		n.Lost = &metadata.Loss{Blocks: 3, Of: 17, Since: time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)}
		return tx.PutNode(n)
	})
}
