package devmapper

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
)

func TestNewName(t *testing.T) {
	for _, good := range []string{"a", "control2", "...", "with space", "ünïcode", strings.Repeat("n", 127)} {
		if n, err := NewName(good); err != nil || string(n) != good {
			t.Errorf("NewName(%q) = %q, %v", good, n, err)
		}
	}
	for _, bad := range []string{"", "a/b", "/", "a\x00b", "control", ".", "..", strings.Repeat("n", 128)} {
		if n, err := NewName(bad); !errors.Is(err, ErrInvalid) || n != "" {
			t.Errorf("NewName(%q) = %q, %v", bad, n, err)
		}
	}
}

func TestNewUUID(t *testing.T) {
	for _, good := range []string{"a", "LVM-x/y", strings.Repeat("u", 128)} {
		if u, err := NewUUID(good); err != nil || string(u) != good {
			t.Errorf("NewUUID(%q) = %q, %v", good, u, err)
		}
	}
	for _, bad := range []string{"", "a\x00b", strings.Repeat("u", 129)} {
		if u, err := NewUUID(bad); !errors.Is(err, ErrInvalid) || u != "" {
			t.Errorf("NewUUID(%q) = %q, %v", bad, u, err)
		}
	}
}

func TestParseDevNum(t *testing.T) {
	for s, want := range map[string]DevNum{"0:0": {}, "254:0": {254, 0}, "7:300": {7, 300}, "4095:1048575": {4095, 1048575}} {
		d, err := ParseDevNum(s)
		if err != nil || d != want || d.String() != s {
			t.Errorf("ParseDevNum(%q) = %v, %v", s, d, err)
		}
	}
	for _, bad := range []string{"", ":", "1", "1:", ":1", "-1:2", "1:2:3", "4096:0", "0:1048576", "0x1:2", " 1:2", "/dev/sda"} {
		if d, err := ParseDevNum(bad); !errors.Is(err, ErrInvalid) || !d.IsZero() {
			t.Errorf("ParseDevNum(%q) = %v, %v", bad, d, err)
		}
	}
}

func TestSectors(t *testing.T) {
	if got := Sectors(3).Bytes(); got != 1536 {
		t.Errorf("3 sectors are %d bytes", got)
	}
	if got := SectorsOf(1535); got != 2 {
		t.Errorf("1535 bytes are %d sectors", got)
	}
}

func TestVersionAtLeast(t *testing.T) {
	for _, tt := range []struct {
		v, w Version
		want bool
	}{
		{Version{4, 27, 0}, Version{4, 27, 0}, true},
		{Version{4, 27, 0}, Version{4, 27, 1}, false},
		{Version{4, 47, 0}, Version{4, 27, 5}, true},
		{Version{4, 26, 9}, Version{4, 27, 0}, false},
		{Version{5, 0, 0}, Version{4, 27, 0}, false},
	} {
		if got := tt.v.AtLeast(tt.w); got != tt.want {
			t.Errorf("%s at least %s: %v", tt.v, tt.w, got)
		}
	}
}

func TestRefCheck(t *testing.T) {
	for _, bad := range []Ref{{}, ByName(""), ByName("a/b"), ByUUID(""), ByDev(DevNum{}), ByDev(DevNum{5000, 1})} {
		if err := bad.check(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	for s, r := range map[string]Ref{`"a"`: ByName("a"), `uuid "B"`: ByUUID("B"), "254:3": ByDev(DevNum{254, 3})} {
		if r.String() != s {
			t.Errorf("%q, want %q", r, s)
		}
		if err := r.check(); err != nil {
			t.Error(err)
		}
	}
}

func TestErrorIs(t *testing.T) {
	sentinels := []error{ErrNotFound, ErrExists, ErrBusy, ErrInvalid, ErrUnsupported, ErrPermission, ErrBadReply, ErrInterrupted}
	for _, tt := range []struct {
		op    string
		errno syscall.Errno
		want  error // the only sentinel that it is, nil for none
	}{
		{opInfo, syscall.ENXIO, ErrNotFound},
		{opRemove, syscall.EBUSY, ErrBusy},
		{opLoad, syscall.EBUSY, ErrBusy},
		{opCreate, syscall.EBUSY, ErrExists},
		{opRename, syscall.EBUSY, ErrExists},
		{opSetUUID, syscall.EBUSY, ErrExists},
		{opLoad, syscall.EINVAL, ErrInvalid},
		{opTargetVersion, syscall.EINVAL, ErrUnsupported},
		{opEvents, syscall.ENOTTY, ErrUnsupported},
		{opOpen, syscall.ENOENT, ErrUnsupported},
		{opOpen, syscall.ENODEV, ErrUnsupported},
		{opOpen, syscall.ENXIO, ErrUnsupported},
		{opLoad, syscall.ENOENT, nil},
		{opVersion, syscall.EACCES, ErrPermission},
		{opOpen, syscall.EPERM, ErrPermission},
		{opMessage, syscall.EIO, nil},
	} {
		err := fmt.Errorf("wrapped: %w", (&request{op: tt.op, name: "dev"}).fail(tt.errno))
		if !errors.Is(err, tt.errno) {
			t.Errorf("%v: is not %v", err, tt.errno)
		}
		for _, s := range sentinels {
			if got := errors.Is(err, s); got != (s == tt.want) {
				t.Errorf("%v: is %q: %v", err, s, got)
			}
		}
		var e *Error
		if !errors.As(err, &e) || e.Op != tt.op || e.Device != `"dev"` || e.Errno != tt.errno {
			t.Errorf("%v: fields %+v", err, e)
		}
	}
}

func TestErrorText(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{&Error{Op: opRemove, Device: `"a"`, Errno: syscall.EBUSY}, `devmapper: remove "a": device or resource busy`},
		{&Error{Op: opList, Errno: syscall.EACCES}, `devmapper: list devices: permission denied`},
		{&Error{Op: opLoad, Device: `"a"`, Err: errors.New("devmapper: empty")}, `devmapper: load table of "a": empty`},
		{&Error{Op: opOpen, Device: "x", Errno: syscall.ENOENT, Hint: "because"}, `devmapper: open x: no such file or directory (because)`},
	} {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}
