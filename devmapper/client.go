package devmapper

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
)

// Transport carries requests to a kernel, or to something that behaves like
// one. It must be safe for concurrent use.
type Transport interface {
	// Ioctl issues one command. buf holds the request, struct dm_ioctl and
	// its payload in the machine's byte order, and is overwritten with the
	// reply. The error is a [syscall.Errno], or the context's error.
	//
	// The context is a wish: a transport may be unable to interrupt a call,
	// and it must return nil if the call succeeded in spite of it.
	Ioctl(ctx context.Context, cmd Command, buf []byte) error
	// Events opens a new source of events.
	Events() (EventSource, error)
	// Close releases the transport. Calls in flight finish unharmed.
	Close() error
}

// EventSource tells when something has happened in the device-mapper since it
// was last armed.
type EventSource interface {
	// Arm forgets what has happened so far.
	Arm() error
	// Wait returns nil when something has happened since Arm, at once if it
	// already has, and an error when the context ends.
	Wait(ctx context.Context) error
	Close() error
}

// Client issues the commands of the device-mapper. It is safe for concurrent
// use; the kernel runs commands for different devices side by side.
type Client struct {
	transport Transport
	udev      UdevFlags
	version   atomic.Pointer[Version]
	stats     [numCommands]atomic.Uint64
	// background counts suspends that outlived their context and are being
	// undone.
	background sync.WaitGroup
}

// Option changes how a client works.
type Option func(*Client)

// WithUdevFlags replaces [DefaultUdevFlags].
func WithUdevFlags(f UdevFlags) Option { return func(c *Client) { c.udev = f } }

// New makes a client that uses t. It asks nothing; [Open] is for the kernel.
func New(t Transport, opts ...Option) *Client {
	c := &Client{transport: t, udev: DefaultUdevFlags}
	for _, o := range opts {
		o(c)
	}
	return c
}

// Open opens the kernel's control node and asks for its version.
//
// The error is [ErrUnsupported] where the kernel has no device-mapper or the
// node is missing (it says which), and [ErrPermission] without CAP_SYS_ADMIN.
func Open(opts ...Option) (*Client, error) {
	t, err := openControl()
	if err != nil {
		return nil, err
	}
	c := New(t, opts...)
	v, err := c.Version()
	if err == nil && v.Major != requestMajor {
		err = &Error{Op: opOpen, Device: controlPath, Err: ErrUnsupported, Hint: "interface version " + v.String()}
	}
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return c, nil
}

// Close waits for cancelled suspends that are still being undone (see
// [Client.Suspend]) and closes the control node.
func (c *Client) Close() error {
	c.background.Wait()
	return c.transport.Close()
}

// Version is the version of the kernel's interface. It costs an ioctl only
// before the first other one.
func (c *Client) Version() (Version, error) {
	if v := c.version.Load(); v != nil {
		return *v, nil
	}
	r, err := c.do(context.Background(), &request{cmd: CmdVersion, op: opVersion})
	return r.version, err
}

// Stats is the number of ioctls issued since the client was made, by command.
// Commands never issued are left out. Suspend and resume are one command to
// the kernel ("suspend/resume"), and so are table and status ("table/status").
func (c *Client) Stats() map[string]uint64 {
	m := make(map[string]uint64)
	for i := range c.stats {
		if n := c.stats[i].Load(); n != 0 {
			m[Command(i).String()] = n
		}
	}
	return m
}

// need is an error unless the kernel's interface is at least v.
func (c *Client) need(v Version, r *request) error {
	have, err := c.Version()
	if err != nil {
		return err
	}
	if !have.AtLeast(v) {
		return &Error{Op: r.op, Device: r.device(), Err: ErrUnsupported,
			Hint: fmt.Sprintf("needs device-mapper interface %s, the kernel has %s", v, have)}
	}
	return nil
}

// do issues a request, again with a larger buffer for as long as the kernel
// says that the reply did not fit.
func (c *Client) do(ctx context.Context, r *request) (reply, error) {
	size := headerSize
	if r.reply {
		size = firstBuffer
	}
	if r.short {
		size = shortBuffer
	}
	for {
		buf := r.encode(size)
		rep, err := c.issue(ctx, r, buf)
		if err != nil {
			return rep, err
		}
		if rep.flags&flagBufferFull == 0 {
			return rep, nil
		}
		if r.once || len(buf) >= maxBuffer {
			return rep, &Error{Op: r.op, Device: r.device(), Err: ErrBadReply,
				Hint: fmt.Sprintf("the answer does not fit into %d bytes", len(buf))}
		}
		size = 2 * len(buf)
	}
}

func (c *Client) issue(ctx context.Context, r *request, buf []byte) (reply, error) {
	c.stats[r.cmd].Add(1)
	err := c.transport.Ioctl(ctx, r.cmd, buf)
	c.learnVersion(buf)
	if err != nil {
		return reply{}, r.fail(err)
	}
	rep, err := decodeReply(buf)
	if err != nil {
		return reply{}, r.fail(err)
	}
	return rep, nil
}

// learnVersion keeps the kernel's version, which it writes into every reply,
// even a failed one.
func (c *Client) learnVersion(buf []byte) {
	if c.version.Load() != nil {
		return
	}
	// A transport that did not get through to the kernel leaves ours.
	v := decodeVersion(buf[offVersion:])
	if v != (Version{requestMajor, requestMinor, requestPatch}) && v != (Version{}) {
		c.version.Store(&v)
	}
}

func (r *request) fail(err error) error {
	e := &Error{Op: r.op, Device: r.device()}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		e.Errno, e.Hint = errno, r.hint(errno)
	} else {
		e.Err = err
	}
	return e
}

// hint is for the errno that the kernel has for everything that it does not
// like about a table. It explains itself in its log only.
func (r *request) hint(errno syscall.Errno) string {
	switch {
	case r.cmd == CmdTargetMessage:
		return fmt.Sprintf("message %q", r.text)
	case errno == syscall.EINVAL && (r.cmd == CmdTableLoad || r.op == opResume):
		return "the kernel's log says why"
	}
	return ""
}

// refRequest is a request about one device.
func refRequest(cmd Command, op string, ref Ref) (*request, error) {
	r := &request{cmd: cmd, op: op, ref: ref}
	if err := ref.check(); err != nil {
		return nil, r.fail(err)
	}
	return r, nil
}

// run issues a request about one device that brings nothing but its state.
func (c *Client) run(cmd Command, op string, ref Ref, flags, eventNr uint32) (Info, error) {
	r, err := refRequest(cmd, op, ref)
	if err != nil {
		return Info{}, err
	}
	r.flags, r.eventNr = flags, eventNr
	rep, err := c.do(context.Background(), r)
	return rep.info(), err
}

// nativeUint32 and nativeUint64 read what the kernel wrote.
func nativeUint32(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }
func nativeUint64(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }
