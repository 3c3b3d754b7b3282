package devmapper

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"
)

// Info is the state of a device.
type Info struct {
	Name      Name
	UUID      UUID
	Dev       DevNum
	OpenCount int32  // openers of the block device; mounts and other tables count
	EventNr   uint32 // grows with every event of a target, rename and removal
	// TargetCount is the number of targets in the live table.
	TargetCount uint32
	ReadOnly    bool
	// Suspended is set from Suspend to Resume, and after a Resume that failed.
	// A device that never had a live table is not suspended: see Active.
	Suspended bool
	// InternalSuspended is set while the kernel itself holds the device's I/O
	// back, a thin device's while its pool is suspended.
	InternalSuspended bool
	Active            bool // there is a live table
	Inactive          bool // there is a staged table
	DeferredRemove    bool // it goes when the last opener closes it
}

// Create makes a device without a table; uuid may be empty. It has a number
// but no node in /dev yet, and it stays, also after the death of the process,
// until it is removed: where a later step fails, remove it.
//
// The error is [ErrExists] where the name or the uuid is taken.
func (c *Client) Create(name Name, uuid UUID) (Info, error) {
	r := &request{cmd: CmdCreate, op: opCreate, name: name, uuid: uuid}
	if err := errors.Join(name.check(), uuid.check()); err != nil {
		return Info{}, r.fail(err)
	}
	rep, err := c.do(context.Background(), r)
	return rep.info(), err
}

// RemoveOptions are the options of [Client.Remove].
type RemoveOptions struct {
	// Deferred removes a device that is in use when its last user closes it,
	// instead of failing with [ErrBusy]. Needs interface 4.27 (Linux 3.13).
	Deferred bool
}

// Remove removes a device. deferred reports that it was in use and goes later;
// that can be cancelled with [Client.CancelDeferredRemove].
//
// The error is [ErrBusy] where the device is in use and Deferred is not set.
// Removing a suspended device fails the I/O that it holds back; do not remove
// one deferred, whoever opens it hangs.
func (c *Client) Remove(ref Ref, o RemoveOptions) (deferred bool, err error) {
	r, err := refRequest(CmdRemove, opRemove, ref)
	if err != nil {
		return false, err
	}
	r.eventNr = c.udev.cookie()
	if o.Deferred {
		if err := c.need(versionDeferredRemove, r); err != nil {
			return false, err
		}
		r.flags |= flagDeferredRemove
	}
	rep, err := c.do(context.Background(), r)
	return rep.flags&flagDeferredRemove != 0, err
}

// CancelDeferredRemove calls off a deferred removal; without one it does
// nothing. The error is [ErrBusy] where the removal has begun. Needs interface
// 4.27.
func (c *Client) CancelDeferredRemove(ref Ref) error {
	if err := c.need(versionDeferredRemove, &request{op: opCancelRemove, ref: ref}); err != nil {
		return err
	}
	_, err := c.message(opCancelRemove, ref, 0, "@cancel_deferred_remove")
	return err
}

// Rename gives a device another name. The error is [ErrExists] where that is
// taken. The kernel finds the device by its name only.
func (c *Client) Rename(name, newName Name) error {
	r := &request{cmd: CmdRename, op: opRename, ref: ByName(name), eventNr: c.udev.cookie()}
	if err := errors.Join(name.check(), newName.check()); err != nil {
		return r.fail(err)
	}
	r.payload = append([]byte(newName), 0)
	_, err := c.do(context.Background(), r)
	return err
}

// SetUUID gives a uuid to a device that was created without one. The error is
// [ErrExists] where another device has it, [ErrInvalid] where the device has
// one already. The kernel finds the device by its name only.
func (c *Client) SetUUID(name Name, uuid UUID) error {
	r := &request{cmd: CmdRename, op: opSetUUID, ref: ByName(name), flags: flagUUID, eventNr: c.udev.cookie()}
	_, err := NewUUID(string(uuid))
	if err := errors.Join(name.check(), err); err != nil {
		return r.fail(err)
	}
	r.payload = append([]byte(uuid), 0)
	_, err = c.do(context.Background(), r)
	return err
}

// Info is the state of a device.
func (c *Client) Info(ref Ref) (Info, error) {
	return c.run(CmdDevStatus, opInfo, ref, 0, noEventNr)
}

// SuspendOptions are the options of [Client.Suspend], and of the suspension
// that [Client.Resume] makes for itself to replace a table.
type SuspendOptions struct {
	// NoLockFS leaves a mounted file system unfrozen: what it has in memory
	// is not written first.
	NoLockFS bool
	// NoFlush does not wait for I/O that the target holds in a queue, but
	// takes it back to be sent again after the resume. Implies NoLockFS. Not
	// every target can.
	NoFlush bool
}

func (o SuspendOptions) flags() uint32 {
	var f uint32
	if o.NoLockFS {
		f |= flagSkipLockFS
	}
	if o.NoFlush {
		f |= flagNoFlush
	}
	return f
}

// interruptGrace is how long an operation whose context has ended is waited
// for after it was interrupted: enough for a kernel that can give up at once.
const interruptGrace = 250 * time.Millisecond

// Suspend freezes the file system that is mounted from the device, if any,
// holds new I/O back and waits for what is in flight. Suspending a suspended
// device does nothing.
//
// When the context ends, the wait for I/O is interrupted: the kernel undoes
// the suspension, the device is active, and the error wraps [ErrInterrupted]
// and the context's error. The freezing of a file system cannot be
// interrupted (the kernel writes its dirty data, and waits for a pool that is
// out of space). Where the kernel is still in it a quarter of a second after
// the end of the context, Suspend returns the same error with the hint that
// the call is still running; should it succeed after all, the client resumes
// the device at once. Only a process that dies in between leaves the device
// suspended. A suspension that won the race against the context is reported
// as a success.
//
// The error is [ErrBusy] where somebody else has frozen the file system.
func (c *Client) Suspend(ctx context.Context, ref Ref, o SuspendOptions) error {
	r, err := refRequest(CmdSuspend, opSuspend, ref)
	if err != nil {
		return err
	}
	r.flags = flagSuspend | o.flags()
	_, err = c.interruptible(ctx, r, "the kernel has not returned yet; what it does will be undone", c.undoSuspend)
	return err
}

// undoSuspend resumes a device whose suspension nobody waits for any more. It
// goes by the uuid, which no other device can have taken meanwhile.
func (c *Client) undoSuspend(rep reply) {
	ref := ByDev(rep.dev)
	if rep.uuid != "" {
		ref = ByUUID(UUID(rep.uuid))
	}
	// There is nobody left to tell; ENXIO means that it was removed.
	_, _ = c.Resume(ref, ResumeOptions{})
}

// ResumeOptions are the options of [Client.Resume].
type ResumeOptions = SuspendOptions

// Resume makes a staged table live, if there is one, and lets I/O run. On a
// running device it suspends first, by the options given; on a running device
// without a staged table it does nothing.
//
// Where it fails the device may be suspended, even with the new table live
// (the targets refuse a table only then): load a right one and resume again.
func (c *Client) Resume(ref Ref, o ResumeOptions) (Info, error) {
	return c.ResumeContext(context.Background(), ref, o)
}

// ResumeContext is [Client.Resume] with a bound for the suspension that
// replacing a table takes. When the context ends before it is done, the device
// keeps its old table and runs on, the staged table stays where it was (before
// Linux 6.1 it may be gone; Info tells), and the error wraps [ErrInterrupted].
// What is said of freezing at [Client.Suspend] holds here too, except that a
// call that is still running when ResumeContext returns may succeed later.
func (c *Client) ResumeContext(ctx context.Context, ref Ref, o ResumeOptions) (Info, error) {
	r, err := refRequest(CmdSuspend, opResume, ref)
	if err != nil {
		return Info{}, err
	}
	r.flags, r.eventNr = o.flags(), c.udev.cookie()
	rep, err := c.interruptible(ctx, r, "the kernel has not returned yet and may still do it", func(reply) {})
	return rep.info(), err
}

// interruptible issues r in a goroutine of its own where ctx can end. If the
// call does not return soon after ctx has ended, the error has the hint, and
// late is called with the reply should there be one.
func (c *Client) interruptible(ctx context.Context, r *request, hint string, late func(reply)) (reply, error) {
	if err := ctx.Err(); err != nil {
		return reply{}, r.interrupted(ctx, "")
	}
	if ctx.Done() == nil {
		return c.do(ctx, r)
	}
	type result struct {
		rep reply
		err error
	}
	done := make(chan result, 1)
	c.background.Add(1)
	go func() {
		rep, err := c.do(ctx, r)
		done <- result{rep, err}
	}()
	finish := func(res result) (reply, error) {
		c.background.Done()
		if res.err != nil && ctx.Err() != nil && wasInterrupted(res.err) {
			return reply{}, r.interrupted(ctx, "")
		}
		return res.rep, res.err
	}
	select {
	case res := <-done:
		return finish(res)
	case <-ctx.Done():
	}
	grace := time.NewTimer(interruptGrace)
	defer grace.Stop()
	select {
	case res := <-done:
		return finish(res)
	case <-grace.C:
	}
	go func() {
		defer c.background.Done()
		if res := <-done; res.err == nil {
			late(res.rep)
		}
	}()
	return reply{}, r.interrupted(ctx, hint)
}

// wasInterrupted tells the end of a call by its context from a failure of its
// own.
func wasInterrupted(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, syscall.EINTR)
}

func (r *request) interrupted(ctx context.Context, hint string) error {
	err := fmt.Errorf("%w: %w", ErrInterrupted, ctx.Err())
	if cause := context.Cause(ctx); !errors.Is(ctx.Err(), cause) {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	return &Error{Op: r.op, Device: r.device(), Err: err, Hint: hint}
}
