package devmapper

import (
	"encoding/binary"
	"fmt"
)

// What the kernel fixes in include/uapi/linux/dm-ioctl.h. The constants are
// repeated here rather than taken from x/sys so that the package compiles on
// every system; abi_test.go compares them with x/sys and with literals.

// Command is the number of a command of the interface. Only those who write a
// [Transport] need them.
type Command uint8

// The commands that the client uses.
const (
	CmdVersion          Command = 0
	CmdListDevices      Command = 2
	CmdCreate           Command = 3
	CmdRemove           Command = 4
	CmdRename           Command = 5
	CmdSuspend          Command = 6 // and resume: the flag decides
	CmdDevStatus        Command = 7
	CmdTableLoad        Command = 9
	CmdTableClear       Command = 10
	CmdTableDeps        Command = 11
	CmdTableStatus      Command = 12
	CmdListVersions     Command = 13
	CmdTargetMessage    Command = 14
	CmdArmPoll          Command = 16
	CmdGetTargetVersion Command = 17

	numCommands = 18
)

var commandNames = [numCommands]string{
	0: "version", 1: "remove all", 2: "list devices", 3: "create", 4: "remove", 5: "rename", 6: "suspend/resume",
	7: "info", 8: "wait", 9: "load", 10: "clear", 11: "deps", 12: "table/status", 13: "list versions",
	14: "message", 15: "set geometry", 16: "arm poll", 17: "target version",
}

// String is the command's name, the key in [Client.Stats].
func (c Command) String() string {
	if int(c) < len(commandNames) {
		return commandNames[c]
	}
	return fmt.Sprintf("command %d", uint8(c))
}

// Request is the command's ioctl number, _IOWR(0xfd, c, struct dm_ioctl).
// Architectures disagree about the bits for reading and for writing, but both
// together are the same everywhere.
func (c Command) Request() uint32 { return 3<<30 | headerSize<<16 | 0xfd<<8 | uint32(c) }

const (
	headerSize = 312 // sizeof(struct dm_ioctl)
	specSize   = 40  // sizeof(struct dm_target_spec)
	nameLen    = 128
	uuidLen    = 129
	typeLen    = 16

	offVersion     = 0
	offDataSize    = 12
	offDataStart   = 16
	offTargetCount = 20
	offOpenCount   = 24
	offFlags       = 28
	offEventNr     = 32
	offDev         = 40
	offName        = 48
	offUUID        = 176
	offData        = 305 // where the kernel's copy of the header ends
)

const (
	flagReadOnly        = 1 << 0
	flagSuspend         = 1 << 1
	flagStatusTable     = 1 << 4
	flagActivePresent   = 1 << 5
	flagInactivePresent = 1 << 6
	flagBufferFull      = 1 << 8
	flagSkipLockFS      = 1 << 10
	flagNoFlush         = 1 << 11
	flagQueryInactive   = 1 << 12
	flagUUID            = 1 << 14
	flagSecureData      = 1 << 15
	flagDataOut         = 1 << 16
	flagDeferredRemove  = 1 << 17
	flagInternalSuspend = 1 << 18
	listFlagHasUUID     = 1
	listFlagDoesntHave  = 2
	firstBuffer         = 16 << 10
	shortBuffer         = 2 << 10 // the lines of one or two targets
	maxBuffer           = 1 << 30 // the kernel refuses more
	requestMajor        = 4
	requestMinor        = 0
	requestPatch        = 0
	noEventNr           = 0
)

// Versions of the interface that brought what the package uses.
var (
	versionDeferredRemove = Version{4, 27, 0}
	versionArmPoll        = Version{4, 37, 0}
	versionTargetVersion  = Version{4, 41, 0}
)

// request is one command before it is put into bytes.
type request struct {
	cmd     Command
	op      string // for messages; a command may serve several operations
	ref     Ref
	name    Name // create only, where name and uuid are sent together
	uuid    UUID
	flags   uint32
	eventNr uint32
	targets uint32
	text    string // of a message
	payload []byte
	reply   bool // a payload comes back
	short   bool // which is mostly short
	once    bool // must not be repeated with a larger buffer
}

func (r *request) device() string {
	switch {
	case r.name != "":
		return Ref{name: r.name}.String()
	case r.ref != (Ref{}):
		return r.ref.String()
	}
	return ""
}

// encode puts the request into a buffer of at least size bytes.
func (r *request) encode(size int) []byte {
	if min := align8(headerSize + len(r.payload)); size < min {
		size = min
	}
	b := make([]byte, size)
	ne := binary.NativeEndian
	ne.PutUint32(b[offVersion:], requestMajor)
	ne.PutUint32(b[offVersion+4:], requestMinor)
	ne.PutUint32(b[offVersion+8:], requestPatch)
	ne.PutUint32(b[offDataSize:], uint32(size))
	ne.PutUint32(b[offDataStart:], headerSize)
	ne.PutUint32(b[offTargetCount:], r.targets)
	ne.PutUint32(b[offFlags:], r.flags)
	ne.PutUint32(b[offEventNr:], r.eventNr)
	ne.PutUint64(b[offDev:], r.ref.dev.encode())
	copy(b[offName:offName+maxName], string(r.name)+string(r.ref.name))
	copy(b[offUUID:offUUID+maxUUID], string(r.uuid)+string(r.ref.uuid))
	copy(b[headerSize:], r.payload)
	return b
}

// reply is the kernel's answer.
type reply struct {
	version   Version
	targets   uint32
	openCount int32
	flags     uint32
	eventNr   uint32
	dev       DevNum
	name      string
	uuid      string
	payload   []byte // aliases the buffer
}

// decodeReply takes an answer apart. It trusts no length in it.
func decodeReply(b []byte) (reply, error) {
	if len(b) < headerSize {
		return reply{}, fmt.Errorf("reply of %d bytes is shorter than its header: %w", len(b), ErrBadReply)
	}
	ne := binary.NativeEndian
	r := reply{
		version:   decodeVersion(b),
		targets:   ne.Uint32(b[offTargetCount:]),
		openCount: int32(ne.Uint32(b[offOpenCount:])),
		flags:     ne.Uint32(b[offFlags:]),
		eventNr:   ne.Uint32(b[offEventNr:]),
		dev:       DecodeDevNum(ne.Uint64(b[offDev:])),
		name:      cString(b[offName : offName+nameLen]),
		uuid:      cString(b[offUUID : offUUID+uuidLen]),
	}
	size, start := ne.Uint32(b[offDataSize:]), ne.Uint32(b[offDataStart:])
	if uint64(size) > uint64(len(b)) {
		return reply{}, fmt.Errorf("reply claims %d bytes in a buffer of %d: %w", size, len(b), ErrBadReply)
	}
	// Without a payload the kernel says 305, the end of its own copy.
	if size > start {
		if start < offData {
			return reply{}, fmt.Errorf("payload of the reply starts at %d, inside the header: %w", start, ErrBadReply)
		}
		r.payload = b[start:size]
	}
	return r, nil
}

func (r reply) info() Info {
	return Info{
		Name:              Name(r.name),
		UUID:              UUID(r.uuid),
		Dev:               r.dev,
		OpenCount:         r.openCount,
		EventNr:           r.eventNr,
		TargetCount:       r.targets,
		ReadOnly:          r.flags&flagReadOnly != 0,
		Suspended:         r.flags&flagSuspend != 0,
		InternalSuspended: r.flags&flagInternalSuspend != 0,
		Active:            r.flags&flagActivePresent != 0,
		Inactive:          r.flags&flagInactivePresent != 0,
		DeferredRemove:    r.flags&flagDeferredRemove != 0,
	}
}

// cString is the text before the first NUL, or all of b where there is none.
func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

func align8(n int) int { return (n + 7) &^ 7 }
