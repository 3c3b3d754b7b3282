package thinmeta

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
)

var (
	// ErrHeld is returned by [Renew] for metadata with a metadata snapshot.
	ErrHeld = errors.New("metadata has a metadata snapshot")
	// ErrSpent is returned by [Renew] for metadata whose clock has gone beyond
	// 2^24, so that the kernel has mixed up blocks.
	ErrSpent = errors.New("metadata has taken too many snapshots")
)

// Storage is a file or device that is rewritten.
type Storage interface {
	io.ReaderAt
	io.WriterAt
}

// Renewal says how [Renew] rewrites metadata.
type Renewal struct {
	// IDs are the ids that are in use, rising. The device with the i-th of
	// them becomes device i. Each device of the pool must be among them.
	IDs []uint64
	// TransactionID is what the pool says from then on, and all its devices of
	// when they were made.
	TransactionID uint64
}

// Renew rewrites the metadata of a pool that is not active, in place: its clock
// and its device ids begin anew. Times are compressed so that what the kernel
// held for shared stays so, and what it did not, does not; data, mappings and
// which devices share which nodes stay as they are, and so does every block's
// place.
//
// Do it on a copy: when it fails, or the machine does, half of it has been
// done. Metadata that [Metadata.Check] finds damaged is not touched; the
// error is then the damage. Others are ErrHeld, ErrSpent, ErrNoDevice for
// a device that IDs does not have, and what reading and writing gave.
func Renew(ctx context.Context, f Storage, o Renewal) (Superblock, error) {
	m, err := Open(f, Options{})
	if err != nil {
		return Superblock{}, err
	}
	switch {
	case m.super.HeldRoot != 0:
		return Superblock{}, fmt.Errorf("thinmeta: renew: %w", ErrHeld)
	case m.super.Time > timeMask:
		return Superblock{}, fmt.Errorf("thinmeta: renew: %d snapshots: %w", m.super.Time, ErrSpent)
	}
	report, err := m.Check(ctx)
	if err == nil {
		err = report.Err()
	}
	if err != nil {
		return Superblock{}, err
	}
	r := renewer{m: m, f: f, ids: o.IDs, transaction: o.TransactionID, seen: map[uint64]bool{}}
	if err := r.readTimes(ctx); err != nil {
		return Superblock{}, err
	}
	if err := r.rewrite(ctx); err != nil {
		return Superblock{}, fmt.Errorf("thinmeta: renew: %w", err)
	}
	if err := r.superblock(o.TransactionID); err != nil { // last: it tells what was done
		return Superblock{}, fmt.Errorf("thinmeta: renew: %w", err)
	}
	return ReadSuperblock(f)
}

// renewer is a visitor that writes each node anew.
type renewer struct {
	m     *Metadata
	f     io.WriterAt
	ids   []uint64 // rising
	times []uint32 // at which some device had a snapshot taken, rising
	seen  map[uint64]bool
	roots []uint64 // of the devices' mappings
	err   error

	transaction uint64
}

// readTimes collects all that times are ever compared with.
func (r *renewer) readTimes(ctx context.Context) error {
	for d, err := range r.m.Devices(ctx) {
		if err != nil {
			return err
		}
		if _, ok := slices.BinarySearch(r.ids, d.ID); !ok {
			return fmt.Errorf("thinmeta: renew: device %d is not among the ids: %w", d.ID, ErrNoDevice)
		}
		r.times = append(r.times, d.SnapshotTime)
	}
	slices.Sort(r.times)
	r.times = slices.Compact(r.times)
	return nil
}

// time returns how many of the compared times a time has reached. A mapping is
// held for shared if its time is before the device's: of t < s, s counts for
// s and not for t; of t >= s, t has reached all that s has.
func (r *renewer) time(t uint32) uint32 {
	return uint32(sort.Search(len(r.times), func(i int) bool { return r.times[i] > t }))
}

// id returns how many ids are less. Keys of internal nodes may be of no device
// any more; as each child has devices, they stay in order.
func (r *renewer) id(key uint64) uint64 {
	i, _ := slices.BinarySearch(r.ids, key)
	return uint64(i)
}

func (r *renewer) rewrite(ctx context.Context) error {
	w := walker{m: r.m, ctx: ctx, v: r}
	if _, err := w.walk(r.m.super.DetailsRoot, detailsTree, 0); err != nil {
		return err
	}
	if _, err := w.walk(r.m.super.MappingRoot, deviceTree, 0); err != nil {
		return err
	}
	for _, root := range r.roots {
		if _, err := w.walk(root, mappingTree, 0); err != nil {
			return err
		}
	}
	return r.err
}

// reference enters each node once, whoever shares it.
func (r *renewer) reference(block uint64, _ place) (bool, uint64) {
	enter := !r.seen[block] && r.err == nil
	r.seen[block] = true
	return enter, 0
}

func (r *renewer) lost(d *Damage) { r.err = errors.Join(r.err, d) }

func (r *renewer) done(uint64, uint64) {}

func (r *renewer) node(n node, at place) {
	fresh := n
	fresh.b = slices.Clone(n.b)
	switch {
	case at.tree == detailsTree:
		fresh.setKeys(r.id)
		if n.leaf {
			r.details(fresh)
		}
	case at.tree == deviceTree:
		fresh.setKeys(r.id)
		if n.leaf {
			for i := range n.n {
				r.roots = append(r.roots, n.uint64(i))
			}
		}
	case n.leaf:
		r.mappings(fresh)
	default:
		return
	}
	r.write(n.block, fresh.b, salts[kindNode])
}

func (n node) setKeys(change func(uint64) uint64) {
	for i := range n.n {
		binary.LittleEndian.PutUint64(n.b[nodeHeader+8*i:], change(n.key(i)))
	}
}

// details gives devices the transaction and the time of their making, and the time of their last snapshot.
func (r *renewer) details(n node) {
	le := binary.LittleEndian
	for i := range n.n {
		v := n.value(i)
		le.PutUint64(v[8:], r.transaction)
		le.PutUint32(v[16:], r.time(le.Uint32(v[16:])))
		le.PutUint32(v[20:], r.time(le.Uint32(v[20:])))
	}
}

func (r *renewer) mappings(n node) {
	for i := range n.n {
		v := n.uint64(i)
		binary.LittleEndian.PutUint64(n.value(i), v&^timeMask|uint64(r.time(uint32(v&timeMask))))
	}
}

func (r *renewer) superblock(transactionID uint64) error {
	b := alignedBytes(BlockSize)
	if _, err := r.m.blocks.r.ReadAt(b, 0); err != nil {
		return err
	}
	binary.LittleEndian.PutUint32(b[44:], r.time(r.m.super.Time))
	binary.LittleEndian.PutUint64(b[48:], transactionID)
	r.write(0, b, superblockSalt)
	return r.err
}

func (r *renewer) write(block uint64, b []byte, salt uint32) {
	binary.LittleEndian.PutUint32(b, checksum(b, salt))
	if _, err := r.f.WriteAt(b, int64(block*BlockSize)); err != nil && r.err == nil {
		r.err = err
	}
}
