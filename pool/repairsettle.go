package pool

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

var pointRepairSettled = fault.New("pool.repair.settled")

// settleLosses lets the marks stand that a repair has made, where the repaired metadata is in its place, and takes them back where it is not and does not come there any more. What
// was prepared is finished; the start/stop lock is held exclusively and the pool does not run: so nobody has seen what is taken back.
func (s *Session) settleLosses(ctx context.Context, b backing) error {
	var repair *metadata.Repair
	err := s.Records.View(ctx, func(tx *metadata.Tx) error {
		p, err := tx.Pool()
		repair = p.Repair
		return err
	})
	if err != nil || repair == nil || exists(s.p.files.repaired()) { // that is yet to be finished
		return err
	}
	if err := fsutil.SyncDir(s.p.files.dir()); err != nil { // what somebody renamed who died
		return err
	}
	replaced, err := s.tookPlace(ctx, b, repair.Metadata)
	if err != nil {
		return err
	}
	err = s.Records.Update(ctx, func(tx *metadata.Tx) error {
		if err := s.CheckLocks(); err != nil {
			return err
		}
		p, err := tx.Pool()
		if err != nil {
			return err
		}
		for _, before := range repair.Before {
			if replaced {
				break
			}
			if err := unmark(tx, before); err != nil {
				return err
			}
		}
		p.Repair = nil
		return tx.PutPool(p)
	})
	if errors.Is(err, unix.EROFS) { // nothing can be made of the nodes either, and the UUID stays
		s.p.log.Warn("what a repair has lost cannot be recorded", "pool", s.p.files.name, "error", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("settle what a repair has lost: %w", err)
	}
	return pointRepairSettled.Hit()
}

// tookPlace tells whether the metadata is what a repair made, which has this UUID. Where the superblock is lost the spare tells: it has the repaired metadata for as long as that is
// not in its place.
func (s *Session) tookPlace(ctx context.Context, b backing, uuid string) (is bool, err error) {
	m, err := b.open(ctx, false)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if have, ok := metadataUUID(m.metadata); ok {
		return have == uuid, nil
	}
	spare, err := os.Open(s.p.files.spare())
	if err != nil {
		return true, nil // a mark too many is taken off by a person, of one too few nobody knows
	}
	defer spare.Close()
	have, _ := metadataUUID(spare)
	return have != uuid, nil
}

// metadataUUID is the UUID in a superblock, if that can be read.
func metadataUUID(r io.ReaderAt) (string, bool) {
	sb, err := thinmeta.ReadSuperblock(r)
	return hex.EncodeToString(sb.UUID[:]), err == nil
}

// unmark makes a node what it was before a repair that did not come about. A record that cannot be read any more says nothing of it.
func unmark(tx *metadata.Tx, before metadata.BeforeRepair) error {
	n, err := tx.NodeByID(before.ID)
	if errors.Is(err, errs.ErrNotFound) || errors.Is(err, errs.ErrDamaged) {
		return nil
	}
	if err != nil {
		return err
	}
	n.Lost = before.Lost
	if SetAside(n) {
		n.Name = before.Name
	}
	return tx.PutNode(n)
}
