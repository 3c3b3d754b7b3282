//go:build linux

package devmapper

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestRequestNumbers(t *testing.T) {
	for _, tt := range []struct {
		cmd     Command
		literal uint32
		sys     uint32
	}{
		{CmdVersion, 0xc138fd00, unix.DM_VERSION},
		{CmdListDevices, 0xc138fd02, unix.DM_LIST_DEVICES},
		{CmdCreate, 0xc138fd03, unix.DM_DEV_CREATE},
		{CmdRemove, 0xc138fd04, unix.DM_DEV_REMOVE},
		{CmdRename, 0xc138fd05, unix.DM_DEV_RENAME},
		{CmdSuspend, 0xc138fd06, unix.DM_DEV_SUSPEND},
		{CmdDevStatus, 0xc138fd07, unix.DM_DEV_STATUS},
		{CmdTableLoad, 0xc138fd09, unix.DM_TABLE_LOAD},
		{CmdTableClear, 0xc138fd0a, unix.DM_TABLE_CLEAR},
		{CmdTableDeps, 0xc138fd0b, unix.DM_TABLE_DEPS},
		{CmdTableStatus, 0xc138fd0c, unix.DM_TABLE_STATUS},
		{CmdListVersions, 0xc138fd0d, unix.DM_LIST_VERSIONS},
		{CmdTargetMessage, 0xc138fd0e, unix.DM_TARGET_MSG},
		{CmdArmPoll, 0xc138fd10, unix.DM_DEV_ARM_POLL},
		{CmdGetTargetVersion, 0xc138fd11, unix.DM_GET_TARGET_VERSION},
	} {
		if got := tt.cmd.Request(); got != tt.literal || got != tt.sys {
			t.Errorf("%s: request %#x, want %#x (x/sys: %#x)", tt.cmd, got, tt.literal, tt.sys)
		}
	}
}

func TestLayout(t *testing.T) {
	var h unix.DmIoctl
	for _, tt := range []struct {
		what               string
		ours, literal, sys uintptr
	}{
		{"header size", headerSize, 312, unix.SizeofDmIoctl},
		{"version", offVersion, 0, unsafe.Offsetof(h.Version)},
		{"data size", offDataSize, 12, unsafe.Offsetof(h.Data_size)},
		{"data start", offDataStart, 16, unsafe.Offsetof(h.Data_start)},
		{"target count", offTargetCount, 20, unsafe.Offsetof(h.Target_count)},
		{"open count", offOpenCount, 24, unsafe.Offsetof(h.Open_count)},
		{"flags", offFlags, 28, unsafe.Offsetof(h.Flags)},
		{"event nr", offEventNr, 32, unsafe.Offsetof(h.Event_nr)},
		{"dev", offDev, 40, unsafe.Offsetof(h.Dev)},
		{"name", offName, 48, unsafe.Offsetof(h.Name)},
		{"uuid", offUUID, 176, unsafe.Offsetof(h.Uuid)},
		{"data", offData, 305, unsafe.Offsetof(h.Data)},
		{"target spec size", specSize, 40, unix.SizeofDmTargetSpec},
		{"target versions size", versionRecordHead, 16, unsafe.Sizeof(unix.DmTargetVersions{})},
		{"name length", nameLen, 128, unix.DM_NAME_LEN},
		{"uuid length", uuidLen, 129, unix.DM_UUID_LEN},
		{"type length", typeLen, 16, unix.DM_MAX_TYPE_NAME},
	} {
		if tt.ours != tt.literal || tt.ours != tt.sys {
			t.Errorf("%s: %d, want %d (x/sys: %d)", tt.what, tt.ours, tt.literal, tt.sys)
		}
	}
}

func TestFlags(t *testing.T) {
	for _, tt := range []struct {
		what               string
		ours, literal, sys uint32
	}{
		{"readonly", flagReadOnly, 0x1, unix.DM_READONLY_FLAG},
		{"suspend", flagSuspend, 0x2, unix.DM_SUSPEND_FLAG},
		{"status table", flagStatusTable, 0x10, unix.DM_STATUS_TABLE_FLAG},
		{"active present", flagActivePresent, 0x20, unix.DM_ACTIVE_PRESENT_FLAG},
		{"inactive present", flagInactivePresent, 0x40, unix.DM_INACTIVE_PRESENT_FLAG},
		{"buffer full", flagBufferFull, 0x100, unix.DM_BUFFER_FULL_FLAG},
		{"skip lockfs", flagSkipLockFS, 0x400, unix.DM_SKIP_LOCKFS_FLAG},
		{"noflush", flagNoFlush, 0x800, unix.DM_NOFLUSH_FLAG},
		{"query inactive", flagQueryInactive, 0x1000, unix.DM_QUERY_INACTIVE_TABLE_FLAG},
		{"uuid", flagUUID, 0x4000, unix.DM_UUID_FLAG},
		{"secure data", flagSecureData, 0x8000, unix.DM_SECURE_DATA_FLAG},
		{"data out", flagDataOut, 0x10000, unix.DM_DATA_OUT_FLAG},
		{"deferred remove", flagDeferredRemove, 0x20000, unix.DM_DEFERRED_REMOVE},
		{"internal suspend", flagInternalSuspend, 0x40000, unix.DM_INTERNAL_SUSPEND_FLAG},
		{"list has uuid", listFlagHasUUID, 1, unix.DM_NAME_LIST_FLAG_HAS_UUID},
		{"list has no uuid", listFlagDoesntHave, 2, unix.DM_NAME_LIST_FLAG_DOESNT_HAVE_UUID},
	} {
		if tt.ours != tt.literal || tt.ours != tt.sys {
			t.Errorf("%s: %#x, want %#x (x/sys: %#x)", tt.what, tt.ours, tt.literal, tt.sys)
		}
	}
}

func TestDevNumAgreesWithSys(t *testing.T) {
	for _, d := range []DevNum{{0, 1}, {7, 0}, {254, 255}, {254, 256}, {254, 70000}, {maxMajor, maxMinor}} {
		raw := d.encode()
		if unix.Major(raw) != d.Major || unix.Minor(raw) != d.Minor {
			t.Errorf("%s: x/sys reads %d:%d", d, unix.Major(raw), unix.Minor(raw))
		}
		if raw != unix.Mkdev(d.Major, d.Minor) || DecodeDevNum(raw) != d {
			t.Errorf("%s: encoded %#x, x/sys says %#x; decoded %s", d, raw, unix.Mkdev(d.Major, d.Minor), DecodeDevNum(raw))
		}
	}
}

// TestDisown is about the trick that ends an interrupted call: whatever the
// reference was, afterwards the kernel finds no device.
func TestDisown(t *testing.T) {
	for _, ref := range []Ref{ByName("a"), ByUUID("b"), ByDev(DevNum{254, 3})} {
		r := request{ref: ref}
		b := r.encode(headerSize)
		disown(b)
		rep, err := decodeReply(b)
		if err != nil {
			t.Fatal(err)
		}
		named := rep.name != "" || rep.uuid != ""
		if named == rep.dev.IsZero() {
			t.Errorf("%s: name %q, uuid %q, device %s would find a device", ref, rep.name, rep.uuid, rep.dev)
		}
	}
}
