package dmtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/dmlayer/dmlayer/devmapper"
)

// Flags are the flags of a request or a reply (include/uapi/linux/dm-ioctl.h).
type Flags uint32

// The flags that devmapper uses.
const (
	ReadOnly        Flags = 1 << 0
	Suspend         Flags = 1 << 1
	StatusTable     Flags = 1 << 4
	ActivePresent   Flags = 1 << 5
	InactivePresent Flags = 1 << 6
	bufferFull      Flags = 1 << 8
	SkipLockFS      Flags = 1 << 10
	NoFlush         Flags = 1 << 11
	QueryInactive   Flags = 1 << 12
	UeventGenerated Flags = 1 << 13
	UUIDFlag        Flags = 1 << 14
	SecureData      Flags = 1 << 15
	dataOut         Flags = 1 << 16
	DeferredRemove  Flags = 1 << 17
	InternalSuspend Flags = 1 << 18
)

// KernelVersion is the version that replies carry unless they say otherwise.
var KernelVersion = devmapper.Version{Major: 4, Minor: 47, Patch: 0}

// Request is a request as the kernel sees it.
type Request struct {
	Cmd     devmapper.Command
	Version devmapper.Version
	Flags   Flags
	EventNr uint32 // the udev cookie, where the command takes one
	Dev     devmapper.DevNum
	Name    string
	UUID    string

	Targets []devmapper.Target // of a load
	Sector  devmapper.Sectors  // of a message
	Text    string             // of a message or a rename
}

// Reply is the answer to a request. A test fills in what the command brings.
type Reply struct {
	Version devmapper.Version // KernelVersion if zero
	Info    devmapper.Info
	// UeventGenerated tells that udev was told.
	UeventGenerated bool

	Status   []devmapper.TargetStatus  // of table and status
	List     []devmapper.ListEntry     // of list devices
	NoUUIDs  bool                      // list as kernels before 5.13 do
	Deps     []devmapper.DevNum        // of deps
	Versions []devmapper.TargetVersion // of list versions and target version
	Text     string                    // of a message
}

// New makes a client whose requests f answers. An error of f should be a
// [syscall.Errno], as the kernel's is.
func New(f func(Request) (Reply, error), opts ...devmapper.Option) *devmapper.Client {
	return devmapper.New(&transport{handle: func(_ context.Context, r Request) (Reply, error) { return f(r) }}, opts...)
}

type transport struct {
	handle func(context.Context, Request) (Reply, error)
	events func() devmapper.EventSource
}

func (t *transport) Close() error { return nil }

func (t *transport) Events() (devmapper.EventSource, error) {
	if t.events == nil {
		return nil, syscall.ENOTTY
	}
	return t.events(), nil
}

func (t *transport) Ioctl(ctx context.Context, cmd devmapper.Command, buf []byte) error {
	req, err := Decode(cmd, buf)
	if err != nil {
		if len(buf) >= headerSize {
			putVersion(buf, KernelVersion)
		}
		return syscall.EINVAL
	}
	rep, err := t.handle(ctx, req)
	if rep.Version == (devmapper.Version{}) {
		rep.Version = KernelVersion
	}
	putVersion(buf, rep.Version) // the kernel does so even when it fails
	if err != nil {
		return err
	}
	rep.encode(req, buf)
	return nil
}

const (
	headerSize = 312
	headerCopy = 305
)

var errRequest = errors.New("dmtest: malformed request")

// Decode reads the bytes of a request and is as strict as the strictest
// kernel about lengths, alignment and terminating NULs.
func Decode(cmd devmapper.Command, buf []byte) (Request, error) {
	ne := binary.NativeEndian
	if len(buf) < headerSize || int(ne.Uint32(buf[12:])) != len(buf) || ne.Uint32(buf[16:]) != headerSize {
		return Request{}, fmt.Errorf("%w: header", errRequest)
	}
	r := Request{
		Cmd:     cmd,
		Version: devmapper.Version{Major: ne.Uint32(buf), Minor: ne.Uint32(buf[4:]), Patch: ne.Uint32(buf[8:])},
		Flags:   Flags(ne.Uint32(buf[28:])),
		EventNr: ne.Uint32(buf[32:]),
		Dev:     devmapper.DecodeDevNum(ne.Uint64(buf[40:])),
		Name:    text(buf[48:176]),
		UUID:    text(buf[176:305]),
	}
	if r.Version.Major != 4 || r.Version.Minor > KernelVersion.Minor {
		return Request{}, fmt.Errorf("%w: version %s", errRequest, r.Version)
	}
	payload := buf[headerSize:]
	var err error
	switch cmd {
	case devmapper.CmdTableLoad:
		r.Targets, err = decodeTargets(payload, int(ne.Uint32(buf[20:])))
	case devmapper.CmdTargetMessage:
		if len(payload) < 9 || bytes.IndexByte(payload[8:], 0) < 0 {
			return Request{}, fmt.Errorf("%w: message", errRequest)
		}
		r.Sector, r.Text = devmapper.Sectors(ne.Uint64(payload)), text(payload[8:])
	case devmapper.CmdRename:
		if bytes.IndexByte(payload, 0) < 1 {
			return Request{}, fmt.Errorf("%w: new name", errRequest)
		}
		r.Text = text(payload)
	}
	return r, err
}

func decodeTargets(b []byte, n int) ([]devmapper.Target, error) {
	ne := binary.NativeEndian
	var targets []devmapper.Target
	for i := range n {
		if len(b) < 41 || bytes.IndexByte(b[40:], 0) < 0 {
			return nil, fmt.Errorf("%w: target %d", errRequest, i)
		}
		t := devmapper.Target{
			Start:  devmapper.Sectors(ne.Uint64(b)),
			Length: devmapper.Sectors(ne.Uint64(b[8:])),
			Type:   text(b[24:40]),
			Params: text(b[40:]),
		}
		targets = append(targets, t)
		next := int(ne.Uint32(b[20:]))
		if i == n-1 {
			break
		}
		if next%8 != 0 || next < 41+len(t.Params) || next > len(b) {
			return nil, fmt.Errorf("%w: target %d", errRequest, i)
		}
		b = b[next:]
	}
	return targets, nil
}

// encode writes a reply over the request, or as much as fits with the flag
// that says so.
func (r Reply) encode(req Request, buf []byte) {
	ne := binary.NativeEndian
	flags := req.Flags &^ (ReadOnly | Suspend | ActivePresent | InactivePresent | bufferFull | UeventGenerated |
		dataOut | DeferredRemove | InternalSuspend)
	for _, f := range []struct {
		on   bool
		flag Flags
	}{
		{r.Info.ReadOnly, ReadOnly}, {r.Info.Suspended, Suspend}, {r.Info.InternalSuspended, InternalSuspend},
		{r.Info.Active, ActivePresent}, {r.Info.Inactive, InactivePresent}, {r.Info.DeferredRemove, DeferredRemove},
		{r.UeventGenerated, UeventGenerated}, {r.Text != "", dataOut},
	} {
		if f.on {
			flags |= f.flag
		}
	}
	payload := r.payload(req)
	room := len(buf) - headerSize
	size := headerCopy
	switch {
	case len(payload) > room:
		flags |= bufferFull
		size = len(buf)
	case len(payload) > 0:
		size = headerSize + copy(buf[headerSize:], payload)
	}
	ne.PutUint32(buf[12:], uint32(size))
	ne.PutUint32(buf[16:], headerSize)
	targets := r.Info.TargetCount
	if req.Cmd == devmapper.CmdTableStatus {
		targets = uint32(len(r.Status))
	}
	ne.PutUint32(buf[20:], targets)
	ne.PutUint32(buf[24:], uint32(r.Info.OpenCount))
	ne.PutUint32(buf[28:], uint32(flags))
	ne.PutUint32(buf[32:], r.Info.EventNr)
	ne.PutUint64(buf[40:], hugeDev(r.Info.Dev))
	clear(buf[48:headerCopy])
	copy(buf[48:175], r.Info.Name)
	copy(buf[176:304], r.Info.UUID)
}

func (r Reply) payload(req Request) []byte {
	switch req.Cmd {
	case devmapper.CmdTableStatus:
		return encodeStatus(r.Status)
	case devmapper.CmdListDevices:
		return encodeList(r.List, !r.NoUUIDs && req.Flags&UUIDFlag != 0)
	case devmapper.CmdTableDeps:
		b := binary.NativeEndian.AppendUint64(nil, 0)
		binary.NativeEndian.PutUint32(b, uint32(len(r.Deps)))
		for _, d := range r.Deps {
			b = binary.NativeEndian.AppendUint64(b, hugeDev(d))
		}
		return b
	case devmapper.CmdListVersions, devmapper.CmdGetTargetVersion:
		return encodeVersions(r.Versions)
	case devmapper.CmdTargetMessage:
		if r.Text != "" {
			return append([]byte(r.Text), 0)
		}
	}
	return nil
}

func encodeStatus(status []devmapper.TargetStatus) []byte {
	ne := binary.NativeEndian
	var b []byte
	for _, s := range status {
		spec := make([]byte, align8(40+len(s.Status)+1))
		ne.PutUint64(spec, uint64(s.Start))
		ne.PutUint64(spec[8:], uint64(s.Length))
		ne.PutUint32(spec[20:], uint32(len(b)+len(spec))) // from the first one
		copy(spec[24:39], s.Type)
		copy(spec[40:], s.Status)
		b = append(b, spec...)
	}
	return b
}

func encodeList(list []devmapper.ListEntry, uuids bool) []byte {
	ne := binary.NativeEndian
	if len(list) == 0 {
		return make([]byte, 16) // a record of no device
	}
	var b []byte
	for i, e := range list {
		rec := make([]byte, align8(12+len(e.Name)+1))
		ne.PutUint64(rec, hugeDev(e.Dev))
		copy(rec[12:], e.Name)
		rec = ne.AppendUint32(rec, e.EventNr)
		switch {
		case !uuids:
			rec = ne.AppendUint32(rec, 0)
		case e.UUID == "":
			rec = ne.AppendUint32(rec, 2)
		default:
			rec = append(append(ne.AppendUint32(rec, 1), e.UUID...), 0)
		}
		rec = append(rec, make([]byte, align8(len(rec))-len(rec))...)
		if i < len(list)-1 {
			ne.PutUint32(rec[8:], uint32(len(rec)))
		}
		b = append(b, rec...)
	}
	return b
}

func encodeVersions(versions []devmapper.TargetVersion) []byte {
	ne := binary.NativeEndian
	var b []byte
	for i, v := range versions {
		rec := make([]byte, align8(16+len(v.Type)+1))
		if i < len(versions)-1 {
			ne.PutUint32(rec, uint32(len(rec)))
		}
		putVersion(rec[4:], v.Version)
		copy(rec[16:], v.Type)
		b = append(b, rec...)
	}
	return b
}

func putVersion(b []byte, v devmapper.Version) {
	ne := binary.NativeEndian
	ne.PutUint32(b, v.Major)
	ne.PutUint32(b[4:], v.Minor)
	ne.PutUint32(b[8:], v.Patch)
}

func hugeDev(d devmapper.DevNum) uint64 {
	return uint64(d.Minor&0xff | d.Major<<8 | d.Minor&^0xff<<12)
}

func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}

func align8(n int) int { return (n + 7) &^ 7 }
