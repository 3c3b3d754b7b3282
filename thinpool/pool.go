package thinpool

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/dmlayer/dmlayer/devmapper"
)

// Pool sends messages to an active pool and reads its status. It holds no
// state but the reference to the pool, and is safe for concurrent use: the
// kernel carries out one message at a time, each with a commit.
type Pool struct {
	client *devmapper.Client
	ref    devmapper.Ref
}

// NewPool is the pool that ref refers to. It asks nothing.
func NewPool(c *devmapper.Client, ref devmapper.Ref) *Pool { return &Pool{c, ref} }

// Ref is the reference that the pool was made with.
func (p *Pool) Ref() devmapper.Ref { return p.ref }

// Status is the pool's state. It never makes the pool commit (the kernel does
// that for a status that is asked for without DM_NOFLUSH_FLAG).
//
// The error is [devmapper.ErrNotFound] where there is no such device,
// [ErrWrongTarget] where it is no pool.
func (p *Pool) Status() (PoolStatus, error) {
	s, _, err := p.StatusInfo()
	return s, err
}

// Commit makes the pool commit what its devices have done, which it does by itself
// only about once a second, and returns its state after it: what was discarded
// is free then. A pool that cannot commit says so by its state alone.
func (p *Pool) Commit() (PoolStatus, error) {
	s, _, err := p.statusInfo(devmapper.StatusOptions{})
	return s, err
}

// StatusInfo is Status and the device's own state of the same moment, in one
// ioctl. Its EventNr grows when the pool runs low or changes its mode.
func (p *Pool) StatusInfo() (PoolStatus, devmapper.Info, error) {
	return p.statusInfo(devmapper.StatusOptions{NoFlush: true})
}

func (p *Pool) statusInfo(o devmapper.StatusOptions) (PoolStatus, devmapper.Info, error) {
	lines, info, err := p.client.StatusInfo(p.ref, o)
	if err != nil {
		return PoolStatus{}, info, opError("pool status", nil, err)
	}
	if len(lines) != 1 || lines[0].Type != PoolTarget {
		return PoolStatus{}, info, fmt.Errorf("thinpool: status of %s: not a live %s: %w", p.ref, PoolTarget, ErrWrongTarget)
	}
	s, err := ParsePoolStatus(lines[0].Status)
	if err != nil {
		return PoolStatus{}, info, fmt.Errorf("thinpool: status of %s: %w", p.ref, err)
	}
	return s, info, nil
}

// Table are the pool's parameters and its length.
func (p *Pool) Table() (PoolTable, devmapper.Sectors, error) {
	target, err := onlyTarget(p.client, p.ref, PoolTarget)
	if err != nil {
		return PoolTable{}, 0, err
	}
	t, err := ParsePoolTable(target.Params)
	if err != nil {
		return PoolTable{}, 0, fmt.Errorf("thinpool: table of %s: %w", p.ref, err)
	}
	return t, target.Length, nil
}

// onlyTarget is the single target of a device, if it has the type.
func onlyTarget(c *devmapper.Client, ref devmapper.Ref, typ string) (devmapper.Target, error) {
	targets, err := c.Table(ref)
	if err != nil {
		return devmapper.Target{}, opError("read table", nil, err)
	}
	if len(targets) != 1 || targets[0].Type != typ {
		return devmapper.Target{}, fmt.Errorf("thinpool: table of %s: not a live %s: %w", ref, typ, ErrWrongTarget)
	}
	return targets[0], nil
}

// CreateThin makes an empty thin device. The error is [ErrExists] where the
// id is taken, and what is said of all messages: [ErrReadOnly],
// [ErrNotCommitted].
func (p *Pool) CreateThin(id ID) error {
	if err := id.check(); err != nil {
		return err
	}
	return p.commit(fmt.Sprintf("create thin %d in pool %s", id, p.ref), fmt.Sprintf("create_thin %d", id))
}

// CreateSnap makes a thin device that has the same contents as origin, from
// which both go their own ways. An origin that is active must be suspended.
// The error is [ErrExists] where the id is taken, [ErrNoDevice] where there is
// no origin, and what is said of all messages.
//
// The pool's clock ticks with every snapshot and has 24 bits; what happens
// after 2^24 of them is silent corruption. The superblock has the clock
// (thinmeta.Superblock.Time), the status does not.
func (p *Pool) CreateSnap(id, origin ID) error {
	_, err := p.CreateSnapStatus(id, origin)
	return err
}

// CreateSnapStatus is CreateSnap, and the pool's status after it, which has been
// looked at in any case.
func (p *Pool) CreateSnapStatus(id, origin ID) (PoolStatus, error) {
	if err := errors.Join(id.check(), origin.check()); err != nil {
		return PoolStatus{}, err
	}
	return p.message(fmt.Sprintf("create snapshot %d of thin %d in pool %s", id, origin, p.ref),
		fmt.Sprintf("create_snap %d %d", id, origin), nil)
}

// Delete removes a thin device from the pool. It discards nothing on the data
// device; see [Discard]. The error is [ErrNoDevice] where there is none,
// [ErrBusy] where it is active or in a staged table, and what is said of all
// messages.
func (p *Pool) Delete(id ID) error {
	if err := id.check(); err != nil {
		return err
	}
	return p.commit(fmt.Sprintf("delete thin %d from pool %s", id, p.ref), fmt.Sprintf("delete %d", id))
}

// SetTransactionID changes the number that the pool keeps for its owner from
// old to new. The error is [ErrTransactionID] where it is not old, and what is
// said of all messages.
func (p *Pool) SetTransactionID(old, new uint64) error {
	_, err := p.message(fmt.Sprintf("set transaction id of pool %s from %d to %d", p.ref, old, new),
		fmt.Sprintf("set_transaction_id %d %d", old, new), ErrTransactionID)
	return err
}

// ReserveMetadataSnap takes a snapshot of the metadata that can be read while
// the pool works, and returns the metadata block with its superblock. Until
// it is released, nothing that it refers to is reused. A pool has one at
// most: the error is [ErrBusy] where there is one already.
func (p *Pool) ReserveMetadataSnap() (root uint64, err error) {
	what := fmt.Sprintf("reserve metadata snapshot of pool %s", p.ref)
	status, err := p.message(what, "reserve_metadata_snap", nil)
	if err != nil {
		return 0, err
	}
	if status.HeldRoot == 0 {
		return 0, opError(what, ErrNotCommitted, errors.New("released by somebody else meanwhile"))
	}
	return status.HeldRoot, nil
}

// ReleaseMetadataSnap gives the metadata snapshot up. The error is
// [ErrNoDevice] where there is none.
func (p *Pool) ReleaseMetadataSnap() error {
	_, err := p.message(fmt.Sprintf("release metadata snapshot of pool %s", p.ref), "release_metadata_snap", ErrNoDevice)
	return err
}

func (p *Pool) commit(what, text string) error {
	_, err := p.message(what, text, nil)
	return err
}

// message sends a message and looks whether the pool can have committed it.
// einval is what EINVAL means in answer to this one.
func (p *Pool) message(what, text string, einval error) (PoolStatus, error) {
	if _, err := p.client.Message(p.ref, 0, text); err != nil {
		class := messageClass(err)
		if errors.Is(err, syscall.EINVAL) {
			class = einval
		}
		if errors.Is(class, ErrReadOnly) {
			// The errno says only that it may not; the status says why.
			if status, serr := p.Status(); serr == nil {
				err = fmt.Errorf("%w: %w", &StateError{status}, err)
			}
		}
		return PoolStatus{}, opError(what, class, err)
	}
	status, err := p.Status()
	if err != nil {
		return PoolStatus{}, opError(what, ErrNotCommitted, err)
	}
	if !status.Commits() {
		return PoolStatus{}, opError(what, ErrNotCommitted, &StateError{status})
	}
	return status, nil
}
