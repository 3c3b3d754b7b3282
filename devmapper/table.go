package devmapper

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
)

// Target is one line of a table.
type Target struct {
	Start  Sectors
	Length Sectors
	Type   string // "linear", "thin-pool" ...
	Params string // in the target's own words
}

// String is the line as dmsetup prints it.
func (t Target) String() string { return lineString(t.Start, t.Length, t.Type, t.Params) }

// TargetStatus is the state of one target of a live table.
type TargetStatus struct {
	Start  Sectors
	Length Sectors
	Type   string
	Status string // in the target's own words
}

// String is the line as dmsetup prints it.
func (t TargetStatus) String() string { return lineString(t.Start, t.Length, t.Type, t.Status) }

func lineString(start, length Sectors, typ, text string) string {
	return strings.TrimRight(fmt.Sprintf("%d %d %s %s", start, length, typ, text), " ")
}

// LoadOptions are the options of [Client.Load].
type LoadOptions struct {
	// ReadOnly makes a read-only device. Some targets (thin-pool) refuse it.
	ReadOnly bool
	// Secure makes the kernel wipe its copies of the request: for parameters
	// that contain keys.
	Secure bool
}

// Load stages a table: targets without gaps, from sector 0 upwards. It takes
// the place of a table staged before; [Client.Resume] makes it live. The
// kernel loads the modules of the targets that it lacks.
//
// The error is [ErrBusy] where a device below is held exclusively by somebody,
// [ErrInvalid] for an unknown target or parameters that it refuses; targets
// answer with many others.
func (c *Client) Load(ref Ref, o LoadOptions, targets ...Target) error {
	r, err := refRequest(CmdTableLoad, opLoad, ref)
	if err != nil {
		return err
	}
	if r.payload, err = encodeTargets(targets); err != nil {
		return r.fail(err)
	}
	r.targets = uint32(len(targets))
	if o.ReadOnly {
		r.flags |= flagReadOnly
	}
	if o.Secure {
		r.flags |= flagSecureData
	}
	_, err = c.do(context.Background(), r)
	return err
}

// encodeTargets writes the specifications one after the other, each with the
// distance to the next; the kernel does not look at the last one's.
func encodeTargets(targets []Target) ([]byte, error) {
	if len(targets) == 0 {
		return nil, fmt.Errorf("table without targets: %w", ErrInvalid)
	}
	var b []byte
	for i, t := range targets {
		if err := t.check(); err != nil {
			return nil, fmt.Errorf("target %d: %w", i, err)
		}
		spec := make([]byte, align8(specSize+len(t.Params)+1))
		ne := binary.NativeEndian
		ne.PutUint64(spec[0:], uint64(t.Start))
		ne.PutUint64(spec[8:], uint64(t.Length))
		ne.PutUint32(spec[20:], uint32(len(spec)))
		copy(spec[24:24+typeLen-1], t.Type)
		copy(spec[specSize:], t.Params)
		b = append(b, spec...)
		if len(b) > maxBuffer-headerSize {
			return nil, fmt.Errorf("table of more than %d bytes: %w", maxBuffer, ErrInvalid)
		}
	}
	return b, nil
}

func (t Target) check() error {
	switch {
	case t.Type == "" || len(t.Type) >= typeLen || strings.ContainsRune(t.Type, 0):
		return fmt.Errorf("type %q: 1 to %d bytes are allowed: %w", t.Type, typeLen-1, ErrInvalid)
	case t.Length == 0:
		return fmt.Errorf("%s target of length 0: %w", t.Type, ErrInvalid)
	case strings.ContainsRune(t.Params, 0):
		return fmt.Errorf("NUL in the parameters of a %s target: %w", t.Type, ErrInvalid)
	}
	return nil
}

// Clear drops the staged table, if there is one.
func (c *Client) Clear(ref Ref) error {
	_, err := c.run(CmdTableClear, opClear, ref, 0, noEventNr)
	return err
}

// Table is the live table; empty where there is none.
func (c *Client) Table(ref Ref) ([]Target, error) {
	lines, _, err := c.lines(opTable, ref, flagStatusTable)
	return tableOf(lines), err
}

// InactiveTable is the staged table; empty where there is none.
func (c *Client) InactiveTable(ref Ref) ([]Target, error) {
	lines, info, err := c.lines(opTable, ref, flagStatusTable|flagQueryInactive)
	if err != nil || !info.Inactive {
		return nil, err
	}
	return tableOf(lines), nil
}

func tableOf(lines []TargetStatus) []Target {
	var targets []Target
	for _, l := range lines {
		// Targets end their parameters with a blank or not, as they like.
		targets = append(targets, Target{l.Start, l.Length, l.Type, strings.TrimRight(l.Status, " ")})
	}
	return targets
}

// StatusOptions are the options of [Client.Status].
type StatusOptions struct {
	// NoFlush keeps targets from writing anything out first. A thin pool
	// commits its metadata for a status without it.
	NoFlush bool
}

// Status is the state of the targets of the live table; empty where there is
// none.
func (c *Client) Status(ref Ref, o StatusOptions) ([]TargetStatus, error) {
	status, _, err := c.StatusInfo(ref, o)
	return status, err
}

// StatusInfo is [Client.Status] and [Client.Info] of the same moment, in one
// ioctl.
func (c *Client) StatusInfo(ref Ref, o StatusOptions) ([]TargetStatus, Info, error) {
	var flags uint32
	if o.NoFlush {
		flags |= flagNoFlush
	}
	return c.lines(opStatus, ref, flags)
}

func (c *Client) lines(op string, ref Ref, flags uint32) ([]TargetStatus, Info, error) {
	r, err := refRequest(CmdTableStatus, op, ref)
	if err != nil {
		return nil, Info{}, err
	}
	r.flags, r.reply, r.short = flags, true, true
	rep, err := c.do(context.Background(), r)
	if err != nil {
		return nil, Info{}, err
	}
	lines, err := decodeTargets(rep.payload, rep.targets)
	if err != nil {
		return nil, Info{}, r.fail(err)
	}
	return lines, rep.info(), nil
}

// decodeTargets reads n specifications. Other than in a request, each holds
// the distance of the next one from the first.
func decodeTargets(b []byte, n uint32) ([]TargetStatus, error) {
	if uint64(n)*specSize > uint64(len(b)) {
		// No table: some kernels count targets but send nothing.
		if len(b) == 0 {
			return nil, nil
		}
		return nil, fmt.Errorf("%d targets in %d bytes: %w", n, len(b), ErrBadReply)
	}
	lines := make([]TargetStatus, 0, n)
	at := 0
	for i := range n {
		if at+specSize > len(b) {
			return nil, fmt.Errorf("target %d starts at byte %d of %d: %w", i, at, len(b), ErrBadReply)
		}
		spec := b[at:]
		next := nativeUint32(spec[20:])
		end := len(b)
		if i < n-1 {
			if uint64(next) < uint64(at+specSize) || uint64(next) > uint64(len(b)) {
				return nil, fmt.Errorf("target %d says that the next is at byte %d of %d: %w", i, next, len(b), ErrBadReply)
			}
			end = int(next)
		}
		lines = append(lines, TargetStatus{
			Start:  Sectors(nativeUint64(spec[0:])),
			Length: Sectors(nativeUint64(spec[8:])),
			Type:   cString(spec[24 : 24+typeLen]),
			Status: cString(b[at+specSize : end]),
		})
		at = end
	}
	return lines, nil
}

// Deps are the devices that the live table lies on, each once.
func (c *Client) Deps(ref Ref) ([]DevNum, error) {
	r, err := refRequest(CmdTableDeps, opDeps, ref)
	if err != nil {
		return nil, err
	}
	r.reply, r.short = true, true
	rep, err := c.do(context.Background(), r)
	if err != nil {
		return nil, err
	}
	devs, err := decodeDeps(rep.payload)
	if err != nil {
		return nil, r.fail(err)
	}
	return devs, nil
}

func decodeDeps(b []byte) ([]DevNum, error) {
	if len(b) == 0 {
		return nil, nil
	}
	if len(b) < 8 {
		return nil, fmt.Errorf("list of devices in %d bytes: %w", len(b), ErrBadReply)
	}
	n := nativeUint32(b)
	if uint64(n)*8 > uint64(len(b)-8) {
		return nil, fmt.Errorf("%d devices in %d bytes: %w", n, len(b), ErrBadReply)
	}
	devs := make([]DevNum, n)
	for i := range devs {
		devs[i] = DecodeDevNum(nativeUint64(b[8+8*i:]))
	}
	return devs, nil
}

// Message sends a text to the target that holds the sector and returns the
// answer, which most messages do not have. The request is sent once, never
// repeated: an answer that does not fit into 16 KiB is an error although the
// target has done what it was told.
//
// Messages that begin with '@' go to the device-mapper itself.
func (c *Client) Message(ref Ref, sector Sectors, text string) (string, error) {
	return c.message(opMessage, ref, sector, text)
}

func (c *Client) message(op string, ref Ref, sector Sectors, text string) (string, error) {
	r, err := refRequest(CmdTargetMessage, op, ref)
	if err != nil {
		return "", err
	}
	if text == "" || strings.ContainsRune(text, 0) {
		return "", r.fail(fmt.Errorf("message %q is empty or contains NUL: %w", text, ErrInvalid))
	}
	if len(text) > maxBuffer/2 {
		return "", r.fail(fmt.Errorf("message of %d bytes: %w", len(text), ErrInvalid))
	}
	r.text = text
	r.payload = binary.NativeEndian.AppendUint64(nil, uint64(sector))
	r.payload = append(append(r.payload, text...), 0)
	r.reply, r.once = true, true
	rep, err := c.do(context.Background(), r)
	if err != nil {
		return "", err
	}
	if rep.flags&flagDataOut == 0 {
		return "", nil
	}
	return cString(rep.payload), nil
}
