package devmapper

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// exchange is one recorded ioctl of dmsetup; see testdata/record.sh.
type exchange struct {
	cmd     Command
	request []byte
	errno   syscall.Errno
	reply   []byte
}

func readGolden(t *testing.T, name string) []exchange {
	t.Helper()
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("recorded on a little-endian machine")
	}
	exchanges, err := parseGolden(filepath.Join("testdata", "ioctl", name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	return exchanges
}

// parseGolden reads the format of testdata/record.c.
func parseGolden(file string) ([]exchange, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var (
		exchanges []exchange
		into      *[]byte
	)
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if key == "#" {
			continue
		}
		if key == "ioctl" {
			exchanges = append(exchanges, exchange{})
		}
		if len(exchanges) == 0 {
			return nil, fmt.Errorf("%s: %q before the first ioctl", file, line)
		}
		e := &exchanges[len(exchanges)-1]
		switch key {
		case "ioctl":
			var nr uint32
			_, err = fmt.Sscanf(value, "%x", &nr)
			if e.cmd = Command(nr); e.cmd.Request() != nr {
				return nil, fmt.Errorf("%s: dmsetup used ioctl %#x, ours is %#x", file, nr, e.cmd.Request())
			}
		case "errno":
			_, err = fmt.Sscan(value, &e.errno)
		case "request":
			into = &e.request
			err = allocate(into, value)
		case "reply":
			into = &e.reply
			err = allocate(into, value)
		default:
			err = fill(*into, key, value)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: line %q: %w", file, line, err)
		}
	}
	return exchanges, nil
}

func allocate(b *[]byte, size string) error {
	n, err := strconv.ParseUint(size, 10, 20)
	*b = make([]byte, n)
	return err
}

func fill(b []byte, offset, data string) error {
	at, err := strconv.Atoi(offset)
	if err != nil {
		return err
	}
	d, err := hex.DecodeString(data)
	if err != nil || at < 0 || at+len(d) > len(b) {
		return fmt.Errorf("%d bytes at %d of %d: %w", len(d), at, len(b), err)
	}
	copy(b[at:], d)
	return nil
}

// replay is a transport that expects the recorded requests and gives the
// recorded replies.
type replay struct {
	t         *testing.T
	exchanges []exchange
}

func (r *replay) Close() error                 { return nil }
func (r *replay) Events() (EventSource, error) { return nil, syscall.ENOTTY }

func (r *replay) Ioctl(_ context.Context, cmd Command, buf []byte) error {
	if len(r.exchanges) == 0 {
		r.t.Fatalf("%s: one ioctl more than dmsetup", cmd)
	}
	e := r.exchanges[0]
	r.exchanges = r.exchanges[1:]
	if cmd != e.cmd {
		r.t.Fatalf("ioctl %s, dmsetup used %s", cmd, e.cmd)
	}
	if ours, theirs := comparable(cmd, buf), comparable(cmd, e.request); !bytes.Equal(ours, theirs) {
		r.t.Errorf("%s: request differs from dmsetup's:\n%s", cmd, diff(ours, theirs))
	}
	if e.errno != 0 {
		return e.errno
	}
	n := copy(buf, e.reply)
	clear(buf[n:])
	if cmd == CmdVersion { // the only one that leaves the size of the buffer as it was
		binary.NativeEndian.PutUint32(buf[offDataSize:], uint32(len(buf)))
	}
	return nil
}

// comparable sets what may differ to zero: the version (dmsetup sends the
// oldest that has the command, we send 4.0.0), the size of the buffer, and what
// libdm sends although no kernel looks at it: DM_EXISTS_FLAG (0x4), in a
// request by number DM_PERSISTENT_DEV_FLAG (0x8), in a creation udev's flags, in
// a resume DM_READONLY_FLAG. In a list we ask for uuids, dmsetup did not.
func comparable(cmd Command, b []byte) []byte {
	b = bytes.Clone(b)
	ne := binary.NativeEndian
	clear(b[offVersion : offVersion+16])
	ne.PutUint32(b[offFlags:], ne.Uint32(b[offFlags:])&^0xc)
	if cmd == CmdListDevices {
		ne.PutUint32(b[offFlags:], ne.Uint32(b[offFlags:])&^flagUUID)
	}
	if cmd == CmdSuspend {
		ne.PutUint32(b[offFlags:], ne.Uint32(b[offFlags:])&^flagReadOnly)
	}
	if cmd == CmdCreate {
		clear(b[offEventNr : offEventNr+4])
	}
	return append(b[:headerSize:headerSize], bytes.TrimRight(b[headerSize:], "\x00")...)
}

// diff shows the lines of two hex dumps that differ.
func diff(ours, theirs []byte) string {
	a, b := strings.Split(hex.Dump(ours), "\n"), strings.Split(hex.Dump(theirs), "\n")
	var out strings.Builder
	for i := range max(len(a), len(b)) {
		var x, y string
		if i < len(a) {
			x = a[i]
		}
		if i < len(b) {
			y = b[i]
		}
		if x != y {
			fmt.Fprintf(&out, "ours    %s\ndmsetup %s\n", x, y)
		}
	}
	return out.String()
}

// TestGolden compares our bytes with those of dmsetup, and reads the answers
// that a kernel gave to dmsetup.
func TestGolden(t *testing.T) {
	ctx := context.Background()
	first := DevNum{254, 0}
	golden := Info{Name: "golden", UUID: "DMLAYER-golden", Dev: first, TargetCount: 3, Active: true}
	table := []Target{
		{0, 1024, "linear", "7:1 8"},
		{1024, 1000, "zero", ""},
		{2024, 24, "error", ""},
	}
	status := []TargetStatus{{0, 1024, "linear", ""}, {1024, 1000, "zero", ""}, {2024, 24, "error", ""}}
	for _, tt := range []struct {
		name string
		run  func(c *Client) (any, error)
		want any
		err  error
	}{
		{"version", func(c *Client) (any, error) {
			if _, err := c.Version(); err != nil {
				return nil, err
			}
			c.version.Store(nil) // dmsetup asks twice
			return c.Version()
		}, Version{4, 47, 0}, nil},
		{"create", func(c *Client) (any, error) {
			if _, err := c.Create("golden", "DMLAYER-golden"); err != nil {
				return nil, err
			}
			if err := c.Load(ByDev(first), LoadOptions{}, table...); err != nil {
				return nil, err
			}
			return c.Resume(ByName("golden"), ResumeOptions{})
		}, golden, nil},
		{"create-readonly", func(c *Client) (any, error) {
			if _, err := c.Create("goldenro", ""); err != nil {
				return nil, err
			}
			if err := c.Load(ByDev(DevNum{254, 1}), LoadOptions{ReadOnly: true}, Target{0, 8, "zero", ""}); err != nil {
				return nil, err
			}
			return c.Resume(ByName("goldenro"), ResumeOptions{})
		}, Info{Name: "goldenro", Dev: DevNum{254, 1}, TargetCount: 1, Active: true, ReadOnly: true}, nil},
		{"create-exists", func(c *Client) (any, error) { return c.Create("golden", "") }, Info{}, ErrExists},
		{"info", func(c *Client) (any, error) { return c.Info(ByName("golden")) }, golden, nil},
		{"info-uuid", func(c *Client) (any, error) { return c.Info(ByUUID("DMLAYER-golden")) }, golden, nil},
		{"info-dev", func(c *Client) (any, error) { return c.Info(ByDev(first)) }, golden, nil},
		{"info-missing", func(c *Client) (any, error) { return c.Info(ByName("nobody")) }, Info{}, ErrNotFound},
		{"table", func(c *Client) (any, error) { return c.Table(ByName("golden")) }, table, nil},
		{"status", func(c *Client) (any, error) { return c.Status(ByName("golden"), StatusOptions{}) }, status, nil},
		{"status-noflush", func(c *Client) (any, error) { return c.Status(ByName("golden"), StatusOptions{NoFlush: true}) }, status, nil},
		{"deps", func(c *Client) (any, error) { return c.Deps(ByName("golden")) }, []DevNum{{7, 1}}, nil},
		{"reload", func(c *Client) (any, error) {
			return nil, c.Load(ByName("golden"), LoadOptions{}, Target{0, 4096, "zero", ""})
		}, nil, nil},
		{"table-inactive", func(c *Client) (any, error) { return c.InactiveTable(ByName("golden")) }, []Target{{0, 4096, "zero", ""}}, nil},
		{"clear", func(c *Client) (any, error) { return nil, c.Clear(ByName("golden")) }, nil, nil},
		{"suspend", func(c *Client) (any, error) { return nil, c.Suspend(ctx, ByName("golden"), SuspendOptions{}) }, nil, nil},
		{"resume", func(c *Client) (any, error) { return c.Resume(ByName("golden"), ResumeOptions{}) }, golden, nil},
		{"suspend-flags", func(c *Client) (any, error) {
			return nil, c.Suspend(ctx, ByName("golden"), SuspendOptions{NoLockFS: true, NoFlush: true})
		}, nil, nil},
		{"rename", func(c *Client) (any, error) { return nil, c.Rename("golden", "other") }, nil, nil},
		{"setuuid", func(c *Client) (any, error) { return nil, c.SetUUID("goldenro", "DMLAYER-late") }, nil, nil},
		{"remove-busy", func(c *Client) (any, error) { return c.Remove(ByName("other"), RemoveOptions{}) }, false, ErrBusy},
		{"remove", func(c *Client) (any, error) { return c.Remove(ByName("other"), RemoveOptions{}) }, false, nil},
		{"pool-table", func(c *Client) (any, error) { return c.Table(ByName("pool")) },
			[]Target{{0, 131072, "thin-pool", "7:0 7:1 128 100 2 no_discard_passdown error_if_no_space"}}, nil},
		{"pool-status", func(c *Client) (any, error) { return c.Status(ByName("pool"), StatusOptions{NoFlush: true}) },
			[]TargetStatus{{0, 131072, "thin-pool", "0 1648/16384 0/1024 - rw no_discard_passdown error_if_no_space - 1024 "}}, nil},
		{"pool-message", func(c *Client) (any, error) { return c.Message(ByName("pool"), 0, "create_thin 5") }, "", nil},
		{"pool-message-exists", func(c *Client) (any, error) { return c.Message(ByName("pool"), 0, "create_thin 5") }, "", syscall.EEXIST},
		{"thin-table", func(c *Client) (any, error) { return c.Table(ByName("thin")) }, []Target{{0, 2048, "thin", "254:0 5"}}, nil},
		{"thin-status", func(c *Client) (any, error) { return c.Status(ByName("thin"), StatusOptions{NoFlush: true}) },
			[]TargetStatus{{0, 2048, "thin", "0 -"}}, nil},
		{"thin-deps", func(c *Client) (any, error) { return c.Deps(ByName("thin")) }, []DevNum{{254, 0}}, nil},
		{"ls-empty", func(c *Client) (any, error) { return c.List("") }, []ListEntry(nil), nil},
		{"targets", func(c *Client) (any, error) { return c.TargetVersions() }, []TargetVersion{
			{"zero", Version{1, 1, 0}}, {"log-writes", Version{1, 1, 0}}, {"delay", Version{1, 3, 0}}, {"flakey", Version{1, 5, 0}},
			{"thin-pool", Version{1, 22, 0}}, {"thin", Version{1, 22, 0}}, {"striped", Version{1, 6, 0}}, {"linear", Version{1, 4, 0}},
			{"error", Version{1, 5, 0}},
		}, nil},
		// The rest comes from a kernel that is known to be new enough.
		{"remove-deferred", func(c *Client) (any, error) {
			c.version.Store(&Version{4, 47, 0})
			return c.Remove(ByName("other"), RemoveOptions{Deferred: true})
		}, true, nil},
		{"message-cancel", func(c *Client) (any, error) {
			c.version.Store(&Version{4, 47, 0})
			return nil, c.CancelDeferredRemove(ByName("other"))
		}, nil, nil},
		{"target-version", func(c *Client) (any, error) {
			c.version.Store(&Version{4, 47, 0})
			return c.TargetVersion("thin-pool")
		}, Version{1, 22, 0}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			exchanges := readGolden(t, tt.name)
			r := &replay{t, exchanges}
			// What dmsetup --noudevsync says where no udev runs.
			c := New(r, WithUdevFlags(UdevPrimarySource|UdevDisableSubsystemRules|UdevDisableDMRules))
			got, err := tt.run(c)
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
			if len(r.exchanges) > 0 {
				t.Errorf("dmsetup issued %d ioctls more", len(r.exchanges))
			}
		})
	}
}

// TestGoldenList reads a list without uuids, as dmsetup asked for it.
func TestGoldenList(t *testing.T) {
	rep, err := decodeReply(readGolden(t, "ls")[0].reply)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeNames(rep.payload)
	if err != nil {
		t.Fatal(err)
	}
	want := []nameRecord{
		{ListEntry: ListEntry{Name: "goldenro", Dev: DevNum{254, 1}, EventNr: 1}},
		{ListEntry: ListEntry{Name: "other", Dev: DevNum{254, 0}, EventNr: 1}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}
