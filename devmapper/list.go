package devmapper

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// ListEntry is one device of [Client.List].
type ListEntry struct {
	Name    Name
	UUID    UUID // empty where the device has none
	Dev     DevNum
	EventNr uint32
}

// List are the devices whose uuid begins with prefix, all for the empty one,
// in no particular order. It costs one ioctl; before Linux 5.13, whose kernel
// does not tell uuids in the list, one more for each device.
func (c *Client) List(prefix UUID) ([]ListEntry, error) {
	r := &request{cmd: CmdListDevices, op: opList, uuid: prefix, flags: flagUUID, reply: true}
	if err := prefix.check(); err != nil {
		return nil, r.fail(err)
	}
	rep, err := c.do(context.Background(), r)
	if err != nil {
		return nil, err
	}
	records, err := decodeNames(rep.payload)
	if err != nil {
		return nil, r.fail(err)
	}
	var entries []ListEntry
	for _, e := range records {
		if !e.uuidKnown {
			// Gone since the list was made: not listed.
			info, err := c.Info(ByName(e.Name))
			if errors.Is(err, ErrNotFound) {
				continue
			} else if err != nil {
				return nil, err
			}
			e.ListEntry = ListEntry{info.Name, info.UUID, info.Dev, info.EventNr}
		}
		// Old kernels do not filter.
		if strings.HasPrefix(string(e.UUID), string(prefix)) {
			entries = append(entries, e.ListEntry)
		}
	}
	return entries, nil
}

type nameRecord struct {
	ListEntry
	uuidKnown bool
}

const nameRecordHead = 12 // struct dm_name_list before its name

// decodeNames reads the chain of struct dm_name_list, each of which holds the
// distance to the next. Behind the name, aligned, follow the event number, the
// flags and the uuid, as far as the kernel sends them.
func decodeNames(b []byte) ([]nameRecord, error) {
	var records []nameRecord
	for at := 0; at < len(b); {
		rec := b[at:]
		if len(rec) < nameRecordHead {
			return nil, fmt.Errorf("record of a device in %d bytes: %w", len(rec), ErrBadReply)
		}
		dev, next := nativeUint64(rec), int64(nativeUint32(rec[8:]))
		if dev == 0 {
			break // an empty list
		}
		if next != 0 {
			if next <= nameRecordHead || next > int64(len(rec)) {
				return nil, fmt.Errorf("record of a device says that the next is at byte %d of %d: %w", next, len(rec), ErrBadReply)
			}
			rec = rec[:next]
		}
		records = append(records, decodeName(dev, rec))
		if next == 0 {
			break
		}
		at += int(next)
	}
	return records, nil
}

func decodeName(dev uint64, rec []byte) nameRecord {
	name := cString(rec[nameRecordHead:])
	e := nameRecord{ListEntry: ListEntry{Name: Name(name), Dev: DecodeDevNum(dev)}}
	tail := align8(nameRecordHead + len(name) + 1)
	if tail+4 > len(rec) {
		return e
	}
	e.EventNr = nativeUint32(rec[tail:])
	if tail+8 > len(rec) {
		return e
	}
	switch flags := nativeUint32(rec[tail+4:]); {
	case flags&listFlagHasUUID != 0:
		e.UUID, e.uuidKnown = UUID(cString(rec[tail+8:])), true
	case flags&listFlagDoesntHave != 0:
		e.uuidKnown = true
	}
	return e
}

// TargetVersion is a target that the kernel has in memory.
type TargetVersion struct {
	Type    string
	Version Version
}

// TargetVersions are the targets that are built in or loaded as modules now.
func (c *Client) TargetVersions() ([]TargetVersion, error) {
	r := &request{cmd: CmdListVersions, op: opTargetVersions, reply: true}
	rep, err := c.do(context.Background(), r)
	if err != nil {
		return nil, err
	}
	versions, err := decodeVersions(rep.payload)
	if err != nil {
		return nil, r.fail(err)
	}
	return versions, nil
}

// TargetVersion is the version of one target, whose module is loaded for it.
// The error is [ErrUnsupported] where the kernel has no such target. Before
// interface 4.41 (Linux 5.5) only targets in memory are found.
func (c *Client) TargetVersion(typ string) (Version, error) {
	r := &request{cmd: CmdGetTargetVersion, op: opTargetVersion, name: Name(typ), reply: true}
	if typ == "" || len(typ) >= typeLen || strings.ContainsRune(typ, 0) {
		return Version{}, r.fail(fmt.Errorf("1 to %d bytes are allowed: %w", typeLen-1, ErrInvalid))
	}
	have, err := c.Version()
	if err != nil {
		return Version{}, err
	}
	var versions []TargetVersion
	if have.AtLeast(versionTargetVersion) {
		rep, err := c.do(context.Background(), r)
		if err != nil {
			return Version{}, err
		}
		if versions, err = decodeVersions(rep.payload); err != nil {
			return Version{}, r.fail(err)
		}
	} else if versions, err = c.TargetVersions(); err != nil {
		return Version{}, err
	}
	for _, v := range versions {
		if v.Type == typ {
			return v.Version, nil
		}
	}
	return Version{}, r.fail(fmt.Errorf("no such target: %w", ErrUnsupported))
}

const versionRecordHead = 16 // struct dm_target_versions before its name

func decodeVersions(b []byte) ([]TargetVersion, error) {
	var versions []TargetVersion
	for len(b) > 0 {
		if len(b) < versionRecordHead {
			return nil, fmt.Errorf("record of a target in %d bytes: %w", len(b), ErrBadReply)
		}
		rec, next := b, int64(nativeUint32(b))
		if next != 0 {
			if next <= versionRecordHead || next > int64(len(b)) {
				return nil, fmt.Errorf("record of a target says that the next is at byte %d of %d: %w", next, len(b), ErrBadReply)
			}
			rec = b[:next]
		}
		versions = append(versions, TargetVersion{cString(rec[versionRecordHead:]), decodeVersion(rec[4:])})
		if next == 0 {
			break
		}
		b = b[next:]
	}
	return versions, nil
}
