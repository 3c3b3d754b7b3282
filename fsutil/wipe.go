package fsutil

import (
	"cmp"
	"fmt"
	"io"
	"slices"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// Range is a part of a device, in bytes.
type Range struct{ Offset, Length int64 }

// End is the first byte behind the range.
func (r Range) End() int64 { return r.Offset + r.Length }

// wipeUnit is what a signature is wiped with: a block of every device, whatever its sectors.
const wipeUnit = 4096

// span is what has to become zero for a signature to be gone, on a device of that size.
func (s Signature) span(size int64) Range {
	begin, length := s.Offset/wipeUnit*wipeUnit, int64(wipeUnit)
	if s.Type == "zfs" { // a ring of 128 KiB, in which every entry counts
		begin, length = s.Offset/(128<<10)*(128<<10), 128<<10
	}
	return Range{begin, min(length, size-begin)}
}

// SignatureRanges returns what has to become zero on a device for ProbeReader to find nothing on it, in rising order: what it finds,
// and what that hides. It writes nothing. An error means that it could not tell.
func SignatureRanges(r io.ReaderAt, size int64) ([]Range, error) {
	const rounds = 64
	over := zeroed{ReaderAt: r}
	for range rounds {
		found, err := ProbeReader(over, size)
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return MergeRanges(over.ranges), nil
		}
		for _, s := range found {
			over.ranges = append(over.ranges, s.span(size))
		}
	}
	return nil, fmt.Errorf("there are signatures behind signatures without end: %w", errs.ErrUnsupported)
}

// zeroed reads zeros in the ranges.
type zeroed struct {
	io.ReaderAt
	ranges []Range
}

func (z zeroed) ReadAt(b []byte, off int64) (int, error) {
	n, err := z.ReaderAt.ReadAt(b, off)
	for _, r := range z.ranges {
		from, to := max(r.Offset, off), min(r.End(), off+int64(n))
		if from < to {
			clear(b[from-off : to-off])
		}
	}
	return n, err
}

// MergeRanges returns the ranges in rising order, without overlaps and neighbours.
func MergeRanges(ranges []Range) []Range {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(a, b Range) int { return cmp.Compare(a.Offset, b.Offset) })
	var merged []Range
	for _, r := range sorted {
		if n := len(merged); n > 0 && r.Offset <= merged[n-1].End() {
			merged[n-1].Length = max(merged[n-1].End(), r.End()) - merged[n-1].Offset
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// Zero writes zeros over a range.
func Zero(w io.WriterAt, r Range) error {
	const most = 1 << 20
	zeros := make([]byte, min(r.Length, most))
	for done := int64(0); done < r.Length; {
		n, err := w.WriteAt(zeros[:min(r.Length-done, most)], r.Offset+done)
		if err == nil && n == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return fmt.Errorf("write zeros at %d: %w", r.Offset+done, err)
		}
		done += int64(n)
	}
	return nil
}
