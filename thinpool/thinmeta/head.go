package thinmeta

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
)

// This file keeps what leads to the devices of a pool. Few blocks do, and all is lost with them: nothing else says which mappings are whose.

// Head returns a copy of what leads to the devices: the superblock, and behind it
// the nodes of the device tree and of the details, as far as they can be read.
// Each has its number and checksum, so that a copy that is cut off is good for
// what there is of it. The error is the context's, or what reading the
// superblock gave.
func (m *Metadata) Head(ctx context.Context) ([]byte, error) {
	super, err := m.blocks.raw(m.super.Block)
	if err != nil {
		return nil, fmt.Errorf("thinmeta: read superblock: %w", err)
	}
	h := head{seen: map[uint64]bool{}, b: bytes.Clone(super)}
	w := walker{m: m, ctx: ctx, v: &h}
	for _, tree := range []struct {
		root uint64
		treeType
	}{{m.super.MappingRoot, deviceTree}, {m.super.DetailsRoot, detailsTree}} {
		if _, err := w.walk(tree.root, tree.treeType, 0); err != nil {
			return nil, err
		}
	}
	return h.b, nil
}

// head collects nodes. It is a [visitor].
type head struct {
	seen map[uint64]bool
	b    []byte
}

func (h *head) reference(block uint64, _ place) (bool, uint64) {
	seen := h.seen[block]
	h.seen[block] = true
	return !seen, 0
}

func (h *head) node(n node, _ place) { h.b = append(h.b, n.b...) }

func (h *head) lost(*Damage) {}

func (h *head) done(uint64, uint64) {}

// RestoreHead puts back of a copy that [Metadata.Head] has made what of the metadata
// is not as it was, and returns how many blocks those are. The pool must not have
// been active since: a superblock that can be read must be the same, but for
// the mark that asks for a check, else the error is ErrMismatch and nothing is
// written. The copy's superblock must be whole, else the errors are those of
// [ReadSuperblock].
func RestoreHead(f Storage, copied []byte) (int, error) {
	kept, err := ReadSuperblock(bytes.NewReader(copied))
	if err != nil {
		return 0, err
	}
	now, err := ReadSuperblock(f)
	lost := errors.Is(err, ErrBlank) || errors.Is(err, ErrNotThin) || errors.Is(err, ErrChecksum)
	switch {
	case err != nil && !lost:
		return 0, err
	case !lost && !sameState(now, kept):
		return 0, fmt.Errorf("thinmeta: the copy is of transaction %#x at another moment than the metadata: %w", kept.TransactionID, ErrMismatch)
	}
	restored := 0
	if lost {
		if err := restore(f, 0, copied[:BlockSize]); err != nil {
			return 0, err
		}
		restored++
	}
	b := alignedBytes(BlockSize)
	for rest := copied[BlockSize:]; len(rest) >= BlockSize; rest = rest[BlockSize:] {
		node := rest[:BlockSize]
		block := binary.LittleEndian.Uint64(node[8:])
		if block == 0 || block >= min(kept.MetadataSpace.Blocks, blockLimit) || verify(node, block, salts[kindNode]) != nil {
			continue // torn
		}
		if _, err := f.ReadAt(b, int64(block*BlockSize)); err == nil && bytes.Equal(b, node) {
			continue
		}
		if err := restore(f, block, node); err != nil {
			return restored, err
		}
		restored++
	}
	return restored, nil
}

// sameState tells whether nothing was written between two superblocks.
func sameState(a, b Superblock) bool {
	for _, s := range []*Superblock{&a, &b} {
		s.Flags, s.NeedsCheck = 0, false
	}
	return a == b
}

func restore(f Storage, block uint64, b []byte) error {
	if _, err := f.WriteAt(b, int64(block*BlockSize)); err != nil {
		return fmt.Errorf("thinmeta: write block %d: %w", block, err)
	}
	return nil
}
