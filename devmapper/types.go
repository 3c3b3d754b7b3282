package devmapper

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
)

// SectorSize is the device-mapper's unit of length in bytes, whatever the
// block size of the devices below.
const SectorSize = 512

// Sectors counts units of 512 bytes.
type Sectors uint64

// Bytes is the length in bytes. It wraps around above 2^55 sectors, which no
// device has.
func (s Sectors) Bytes() uint64 { return uint64(s) * SectorSize }

// SectorsOf is the number of whole sectors in a number of bytes.
func SectorsOf(bytes uint64) Sectors { return Sectors(bytes / SectorSize) }

const (
	maxName = nameLen - 1
	maxUUID = uuidLen - 1
)

// Name is the name of a device: 1 to 127 bytes without '/' and NUL, and none
// of "control", "." and "..". It is checked by [NewName], and once more
// whenever it is sent: the kernel itself would cut a long one silently.
type Name string

// NewName checks a name. The error is [ErrInvalid].
func NewName(s string) (Name, error) {
	n := Name(s)
	if err := n.check(); err != nil {
		return "", err
	}
	return n, nil
}

func (n Name) check() error {
	switch {
	case n == "":
		return fmt.Errorf("devmapper: empty device name: %w", ErrInvalid)
	case len(n) > maxName:
		return fmt.Errorf("devmapper: device name %q has %d bytes, at most %d are allowed: %w", string(n), len(n), maxName, ErrInvalid)
	case strings.ContainsAny(string(n), "/\x00"):
		return fmt.Errorf("devmapper: device name %q contains '/' or NUL: %w", string(n), ErrInvalid)
	case n == "control" || n == "." || n == "..":
		return fmt.Errorf("devmapper: device name %q is reserved: %w", string(n), ErrInvalid)
	}
	return nil
}

// UUID is the second, optional name of a device: 1 to 128 bytes of any text
// without NUL. It can be set once and never changed, and no two devices have
// the same one. By convention it starts with the owner's name in capitals.
type UUID string

// NewUUID checks a uuid. The error is [ErrInvalid].
func NewUUID(s string) (UUID, error) {
	u := UUID(s)
	if s == "" {
		return "", fmt.Errorf("devmapper: empty device uuid: %w", ErrInvalid)
	}
	if err := u.check(); err != nil {
		return "", err
	}
	return u, nil
}

// check accepts the empty uuid, which means "none".
func (u UUID) check() error {
	switch {
	case len(u) > maxUUID:
		return fmt.Errorf("devmapper: device uuid %q has %d bytes, at most %d are allowed: %w", string(u), len(u), maxUUID, ErrInvalid)
	case strings.Contains(string(u), "\x00"):
		return fmt.Errorf("devmapper: device uuid %q contains NUL: %w", string(u), ErrInvalid)
	}
	return nil
}

// DevNum is the number of a block device.
type DevNum struct {
	Major, Minor uint32
}

// The kernel packs a number into 12 bits of major and 20 of minor
// (include/linux/kdev_t.h, new_encode_dev).
const (
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
)

// String is "major:minor", the form that every target understands in a table.
func (d DevNum) String() string {
	return strconv.FormatUint(uint64(d.Major), 10) + ":" + strconv.FormatUint(uint64(d.Minor), 10)
}

// IsZero reports whether d is 0:0, which is no device.
func (d DevNum) IsZero() bool { return d == DevNum{} }

// ParseDevNum reads "major:minor". The error is [ErrInvalid].
func ParseDevNum(s string) (DevNum, error) {
	major, minor, ok := strings.Cut(s, ":")
	if ok {
		maj, err1 := strconv.ParseUint(major, 10, 32)
		min, err2 := strconv.ParseUint(minor, 10, 32)
		if err1 == nil && err2 == nil && maj <= maxMajor && min <= maxMinor {
			return DevNum{uint32(maj), uint32(min)}, nil
		}
	}
	return DevNum{}, fmt.Errorf("devmapper: device number %q is not major:minor: %w", s, ErrInvalid)
}

// DecodeDevNum takes a number out of the form that the kernel uses in this
// interface and, for the numbers that exist, in stat's st_rdev.
func DecodeDevNum(dev uint64) DevNum {
	return DevNum{
		Major: uint32(dev >> 8 & maxMajor),
		Minor: uint32(dev&0xff | dev>>12&0xfff00),
	}
}

func (d DevNum) encode() uint64 {
	return uint64(d.Minor&0xff) | uint64(d.Major)<<8 | uint64(d.Minor&^0xff)<<12
}

func (d DevNum) check() error {
	if d.Major > maxMajor || d.Minor > maxMinor {
		return fmt.Errorf("devmapper: device number %s is out of range: %w", d, ErrInvalid)
	}
	return nil
}

// Version is a version of the kernel's interface or of a target.
type Version struct {
	Major, Minor, Patch uint32
}

func (v Version) String() string {
	return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch)
}

// AtLeast reports whether v is w or newer, within one major version.
func (v Version) AtLeast(w Version) bool {
	return v.Major == w.Major && (v.Minor > w.Minor || v.Minor == w.Minor && v.Patch >= w.Patch)
}

func decodeVersion(b []byte) Version {
	ne := binary.NativeEndian
	return Version{ne.Uint32(b), ne.Uint32(b[4:]), ne.Uint32(b[8:])}
}

// Ref names a device for one request. The zero Ref names none and is refused.
type Ref struct {
	name Name
	uuid UUID
	dev  DevNum
}

// ByName refers to the device that has this name.
func ByName(n Name) Ref { return Ref{name: n} }

// ByUUID refers to the device that has this uuid.
func ByUUID(u UUID) Ref { return Ref{uuid: u} }

// ByDev refers to the device that has this number. The kernel hands numbers
// out again at once when a device is removed: a name or, better, a uuid is the
// safer reference.
func ByDev(d DevNum) Ref { return Ref{dev: d} }

// String names the device in messages.
func (r Ref) String() string {
	switch {
	case r.name != "":
		return strconv.Quote(string(r.name))
	case r.uuid != "":
		return "uuid " + strconv.Quote(string(r.uuid))
	default:
		return r.dev.String()
	}
}

func (r Ref) check() error {
	switch {
	case r.name != "":
		return r.name.check()
	case r.uuid != "":
		return r.uuid.check()
	case r.dev.IsZero():
		return fmt.Errorf("devmapper: no device named: %w", ErrInvalid)
	}
	return r.dev.check()
}
