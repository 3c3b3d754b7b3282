package thinpool_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/thinpool"
)

func TestPoolStatus(t *testing.T) {
	good := thinpool.PoolStatus{Mode: thinpool.ModeReadWrite, TransactionID: 7, UsedMetadata: 111, TotalMetadata: 1024,
		UsedData: 3, TotalData: 1024, Discard: thinpool.DiscardPassdown, MetadataLowWater: 256}
	with := func(change func(*thinpool.PoolStatus)) thinpool.PoolStatus {
		s := good
		change(&s)
		return s
	}
	for _, tt := range []struct {
		line    string
		want    thinpool.PoolStatus
		commits bool
	}{
		{"7 111/1024 3/1024 - rw discard_passdown queue_if_no_space - 256", good, true},
		{"7 111/1024 3/1024 27 rw discard_passdown queue_if_no_space - 256", with(func(s *thinpool.PoolStatus) { s.HeldRoot = 27 }), true},
		{"7 111/1024 3/1024 - rw no_discard_passdown queue_if_no_space - 256", with(func(s *thinpool.PoolStatus) { s.Discard = thinpool.DiscardNoPassdown }), true},
		{"7 111/1024 3/1024 - rw ignore_discard queue_if_no_space - 256", with(func(s *thinpool.PoolStatus) { s.Discard = thinpool.DiscardIgnore }), true},
		{"7 111/1024 3/1024 - rw discard_passdown error_if_no_space - 256", with(func(s *thinpool.PoolStatus) { s.ErrorIfNoSpace = true }), true},
		{"7 111/1024 3/1024 - out_of_data_space discard_passdown queue_if_no_space - 256", with(func(s *thinpool.PoolStatus) { s.Mode = thinpool.ModeOutOfDataSpace }), true},
		{"7 111/1024 3/1024 - ro discard_passdown queue_if_no_space - 256", with(func(s *thinpool.PoolStatus) { s.Mode = thinpool.ModeReadOnly }), false},
		{"7 111/1024 3/1024 - ro discard_passdown error_if_no_space needs_check 256",
			with(func(s *thinpool.PoolStatus) {
				s.Mode, s.ErrorIfNoSpace, s.NeedsCheck = thinpool.ModeReadOnly, true, true
			}), false},
		{"7 111/1024 3/1024 - rw discard_passdown queue_if_no_space needs_check 256", with(func(s *thinpool.PoolStatus) { s.NeedsCheck = true }), false},
		{"Fail", thinpool.PoolStatus{Mode: thinpool.ModeFail}, false},
		{"Error", thinpool.PoolStatus{Mode: thinpool.ModeError}, false},
	} {
		for _, line := range []string{tt.line, tt.line + " "} {
			got, err := thinpool.ParsePoolStatus(line)
			if err != nil || got != tt.want || got.Commits() != tt.commits {
				t.Errorf("%q: %+v, commits %v, %v", line, got, got.Commits(), err)
			}
		}
		if got := tt.want.String(); got != tt.line {
			t.Errorf("prints %q, want %q", got, tt.line)
		}
	}
	if good.FreeMetadata() != 913 || good.FreeData() != 1021 {
		t.Errorf("free: %d metadata, %d data", good.FreeMetadata(), good.FreeData())
	}
	if over := (thinpool.PoolStatus{UsedData: 5, TotalData: 4, UsedMetadata: 5, TotalMetadata: 4}); over.FreeData() != 0 || over.FreeMetadata() != 0 {
		t.Errorf("free of a pool that is more than full: %d, %d", over.FreeData(), over.FreeMetadata())
	}
}

func TestPoolStatusOfOtherKernels(t *testing.T) {
	for _, line := range []string{
		"0 1/2 3/4 - rw discard_passdown queue_if_no_space",             // 3.10
		"0 1/2 3/4 - rw discard_passdown queue_if_no_space -",           // 4.4
		"0 1/2 3/4 - rw discard_passdown queue_if_no_space - 1024 more", // some day
	} {
		s, err := thinpool.ParsePoolStatus(line)
		if err != nil || !s.Commits() || s.TotalData != 4 {
			t.Errorf("%q: %+v, %v", line, s, err)
		}
	}
}

func TestBadPoolStatus(t *testing.T) {
	for line, field := range map[string]string{
		"":                                  "field 1 (transaction id) is missing",
		"x 1/2 3/4":                         `field 1 (transaction id): unexpected "x"`,
		"0 12 3/4":                          `field 2 (metadata blocks): unexpected "12"`,
		"0 1/x 3/4":                         `field 2 (metadata blocks): unexpected "x"`,
		"0 1/2 /4":                          `field 3 (data blocks): unexpected ""`,
		"0 1/2 3/4":                         "field 4 (held metadata root) is missing",
		"0 1/2 3/4 x rw":                    `field 4 (held metadata root): unexpected "x"`,
		"0 1/2 3/4 - xyz":                   `field 5 (mode): unexpected "xyz"`,
		"0 1/2 3/4 - Fail":                  `field 5 (mode): unexpected "Fail"`,
		"0 1/2 3/4 - rw keep":               `field 6 (discard mode): unexpected "keep"`,
		"0 1/2 3/4 - rw discard_passdown x": `field 7 (no space policy): unexpected "x"`,
		"0 1/2 3/4 - rw discard_passdown queue_if_no_space x":   `field 8 (needs check): unexpected "x"`,
		"0 1/2 3/4 - rw discard_passdown queue_if_no_space - x": `field 9 (metadata low water mark): unexpected "x"`,
	} {
		got, err := thinpool.ParsePoolStatus(line)
		if !errors.Is(err, thinpool.ErrInvalid) || !strings.Contains(err.Error(), field) || got != (thinpool.PoolStatus{}) {
			t.Errorf("%q: %+v, %v; want %q", line, got, err, field)
		}
	}
}

func TestThinStatus(t *testing.T) {
	last := devmapper.Sectors(2047)
	for line, want := range map[string]thinpool.ThinStatus{
		"0 -":      {},
		"256 2047": {Mapped: 256, Highest: &last},
		"Fail":     {Fail: true},
		"Error":    {Error: true},
		"-":        {None: true},
	} {
		got, err := thinpool.ParseThinStatus(line)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v", line, got, err)
		}
		if want.String() != line {
			t.Errorf("prints %q, want %q", want, line)
		}
	}
	for _, bad := range []string{"", "1", "x -", "1 x", "-1 -", "fail"} {
		if got, err := thinpool.ParseThinStatus(bad); !errors.Is(err, thinpool.ErrInvalid) {
			t.Errorf("%q: %+v, %v", bad, got, err)
		}
	}
}

func FuzzPoolStatus(f *testing.F) {
	f.Add("7 111/1024 3/1024 - rw discard_passdown queue_if_no_space - 256 ")
	f.Add("7 111/1024 3/1024 5 ro ignore_discard error_if_no_space needs_check 256")
	f.Add("Fail")
	f.Add("0 1/2 3/4 - out_of_data_space no_discard_passdown queue_if_no_space")
	f.Fuzz(func(t *testing.T, line string) {
		s, err := thinpool.ParsePoolStatus(line)
		if err != nil {
			if !errors.Is(err, thinpool.ErrInvalid) || s != (thinpool.PoolStatus{}) {
				t.Fatalf("%+v, %v", s, err)
			}
			return
		}
		if again, err := thinpool.ParsePoolStatus(s.String()); err != nil || again != s {
			t.Fatalf("%q is %+v, prints %q, which is %+v, %v", line, s, s, again, err)
		}
		_ = s.FreeData() + s.FreeMetadata()
	})
}

func FuzzThinStatus(f *testing.F) {
	f.Add("256 2047")
	f.Add("0 -")
	f.Add("-")
	f.Fuzz(func(t *testing.T, line string) {
		s, err := thinpool.ParseThinStatus(line)
		if err != nil {
			if !errors.Is(err, thinpool.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		if again, err := thinpool.ParseThinStatus(s.String()); err != nil || again.String() != s.String() {
			t.Fatalf("%q prints %q, which is %q, %v", line, s, again, err)
		}
	})
}
