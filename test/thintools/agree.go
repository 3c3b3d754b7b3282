package thintools

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// Subject is metadata that both sides read.
type Subject struct {
	Path string
	// Root is the metadata snapshot of an active pool, 0 for the pool itself.
	Root uint64
	// Restored is metadata that thin_restore 0.9 made: it can count one metadata block too many as in use.
	Restored bool
	// Pairs are devices to be compared with each other.
	Pairs [][2]uint64
}

// open opens the metadata past the page cache, which does not know what the kernel's pool writes.
func (s Subject) open(t testing.TB) *thinmeta.Metadata {
	t.Helper()
	f, err := os.OpenFile(s.Path, os.O_RDONLY|syscall.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	m, err := thinmeta.Open(f, thinmeta.Options{Root: s.Root})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (s Subject) args(args ...string) []string {
	if s.Root != 0 {
		args = append(args, "--metadata-snap")
	}
	return append(args, s.Path)
}

// Agree fails the test where thinmeta says anything else of healthy metadata than thin_check, thin_dump, thin_ls
// and thin_delta do.
func Agree(t testing.TB, s Subject) {
	t.Helper()
	m := s.open(t)
	if s.Root == 0 {
		if ok, said := Check(t, s.Path); !ok {
			t.Errorf("thin_check: %s", said)
		}
	}
	r, err := m.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Damage)+len(r.Leaks) > 0 || len(r.Stale) > 0 && !s.Restored {
		t.Errorf("Check: damage %v, leaks %v, stale %v", r.Damage, r.Leaks, r.Stale)
	}
	for what, agree := range map[string]func(context.Context, *thinmeta.Metadata) error{
		"thin_dump": s.agreeDump, "thin_ls": s.agreeList, "thin_delta": s.agreeDeltas,
	} {
		if err := agree(t.Context(), m); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func (s Subject) agreeDump(ctx context.Context, m *thinmeta.Metadata) error {
	return stream("thin_dump", s.args(), func(theirs io.Reader) error {
		r, w := io.Pipe()
		go func() { w.CloseWithError(Dump(ctx, m, w)) }()
		defer r.Close()
		return sameLines(r, theirs)
	})
}

func (s Subject) agreeList(ctx context.Context, m *thinmeta.Metadata) error {
	usage, err := m.Usage(ctx)
	if err != nil {
		return err
	}
	var ours bytes.Buffer
	for _, u := range usage.Devices {
		d, err := m.Device(ctx, u.ID)
		if err = errors.Join(err, u.Err); err != nil {
			return err
		}
		fmt.Fprintln(&ours, u.ID, u.Mapped, u.Exclusive, u.Shared(), d.TransactionID, d.CreationTime, d.SnapshotTime)
	}
	format := "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS,SHARED_BLOCKS,TRANSACTION,CREATE_TIME,SNAP_TIME"
	return stream("thin_ls", s.args("--no-headers", "--format", format), func(r io.Reader) error {
		out, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		var theirs bytes.Buffer
		for line := range strings.Lines(string(out)) {
			if words := strings.Fields(line); len(words) > 0 {
				fmt.Fprintln(&theirs, strings.Join(words, " "))
			}
		}
		return sameLines(&ours, &theirs)
	})
}

func (s Subject) agreeDeltas(ctx context.Context, m *thinmeta.Metadata) error {
	for _, pair := range s.Pairs {
		left, right := strconv.FormatUint(pair[0], 10), strconv.FormatUint(pair[1], 10)
		err := stream("thin_delta", s.args("--verbose", "--snap1", left, "--snap2", right), func(r io.Reader) error {
			theirs, err := parseDelta(r)
			if err != nil {
				return err
			}
			if err := sameDiff(ctx, m, pair, theirs, true); err != nil {
				return err
			}
			return sameDiff(ctx, m, pair, theirs, false)
		})
		if err != nil {
			return fmt.Errorf("%s and %s: %w", left, right, err)
		}
	}
	return nil
}

// sameDiff compares Diff, with and without what is the same.
func sameDiff(ctx context.Context, m *thinmeta.Metadata, pair [2]uint64, theirs []thinmeta.Difference, same bool) error {
	var want, have diffs
	for _, d := range theirs {
		if same || d.Change != thinmeta.Same {
			want.add(d)
		}
	}
	for d, err := range m.Diff(ctx, pair[0], pair[1], thinmeta.DiffOptions{Same: same}) {
		if err != nil {
			return err
		}
		have.add(d)
	}
	for i := range max(len(want), len(have)) {
		if i >= len(want) || i >= len(have) || want[i] != have[i] {
			return fmt.Errorf("difference %d, same %v: have %+v, want %+v", i, same, have[min(i, len(have)):], want[min(i, len(want)):])
		}
	}
	return nil
}

// diffs are as few as can be: both sides put them together in their own way.
type diffs []thinmeta.Difference

func (l *diffs) add(d thinmeta.Difference) {
	if n := len(*l); n > 0 {
		last := &(*l)[n-1]
		left := last.Change == thinmeta.RightOnly || last.Left+last.Length == d.Left
		right := last.Change == thinmeta.LeftOnly || last.Right+last.Length == d.Right
		if last.Change == d.Change && last.Begin+last.Length == d.Begin && left && right {
			last.Length += d.Length
			return
		}
	}
	*l = append(*l, d)
}

var changes = map[string]thinmeta.Change{
	"same": thinmeta.Same, "different": thinmeta.Different, "left_only": thinmeta.LeftOnly, "right_only": thinmeta.RightOnly,
}

// deltaRange is a range of thin_delta --verbose. Only those of blocks that differ name both data blocks.
type deltaRange struct {
	Begin  uint64 `xml:"begin,attr"`
	Length uint64 `xml:"length,attr"`
	Data   uint64 `xml:"data_begin,attr"`
	Left   uint64 `xml:"left_data_begin,attr"`
	Right  uint64 `xml:"right_data_begin,attr"`
}

func parseDelta(r io.Reader) ([]thinmeta.Difference, error) {
	var all []thinmeta.Difference
	var change thinmeta.Change
	d := xml.NewDecoder(r)
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		start, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		if c, ok := changes[start.Name.Local]; ok {
			change = c
		}
		if start.Name.Local != "range" {
			continue
		}
		var at deltaRange
		if err := d.DecodeElement(&at, &start); err != nil {
			return nil, err
		}
		diff := thinmeta.Difference{Change: change, Begin: at.Begin, Length: at.Length, Left: at.Left, Right: at.Right}
		if change == thinmeta.Same || change == thinmeta.LeftOnly {
			diff.Left = at.Data
		}
		if change == thinmeta.Same || change == thinmeta.RightOnly {
			diff.Right = at.Data
		}
		all = append(all, diff)
	}
}
