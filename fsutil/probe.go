package fsutil

import (
	"errors"
	"fmt"
	"io"
	"math"
)

// Signature is something on a device that says what the device is used for.
type Signature struct {
	Type   string // "ext4", "xfs", "lvm2", "luks", "gpt", "dos", "md-raid", "thin-metadata", ...
	Offset int64  // of the magic number, in bytes
	Label  string
	UUID   string
}

// String returns for example `ext4 "data" at 1080`.
func (s Signature) String() string {
	label := ""
	if s.Label != "" {
		label = fmt.Sprintf(" %q", s.Label)
	}
	return fmt.Sprintf("%s%s at %d", s.Type, label, s.Offset)
}

// Probe looks for signatures on a device or in a file. No signature and no error means that none was found of those
// it knows. An error means that it could not tell, and the caller has to take the device for used.
//
// It reads through the page cache, so what was written around that (dm, direct I/O) may be missed on a device that
// stays open elsewhere.
func Probe(dev string) ([]Signature, error) {
	f, err := OpenReadable(dev)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := SizeOf(f)
	if err != nil {
		return nil, err
	}
	if size > math.MaxInt64 {
		return nil, fmt.Errorf("probe %s: %w", dev, errShort)
	}
	found, err := ProbeReader(f, int64(size))
	if err != nil {
		return nil, fmt.Errorf("probe %s: %w", dev, err)
	}
	return found, nil
}

// ProbeReader is Probe for anything that can be read at size bytes.
func ProbeReader(r io.ReaderAt, size int64) ([]Signature, error) {
	p := &prober{r: r, size: size}
	for _, look := range []func(*prober){
		(*prober).magics, (*prober).ext, (*prober).superblocks, (*prober).lvm, (*prober).gpt, (*prober).sun, (*prober).bootSector,
		(*prober).swap, (*prober).md, (*prober).zfs, (*prober).tails,
	} {
		look(p)
		if p.err != nil {
			return nil, p.err
		}
	}
	return p.found, nil
}

// prober collects signatures and the first error.
type prober struct {
	r     io.ReaderAt
	size  int64
	found []Signature
	err   error
}

// at reads n bytes, or returns nil where the device does not have them.
func (p *prober) at(off int64, n int) []byte {
	if p.err != nil || off < 0 || off > p.size-int64(n) {
		return nil
	}
	buf := make([]byte, n)
	if err := readFull(p.r, buf, off); err != nil {
		if errors.Is(err, io.EOF) {
			err = errShort // it said that it was larger
		}
		p.err = fmt.Errorf("read %d bytes at %d: %w", n, off, err)
		return nil
	}
	return buf
}

func (p *prober) add(s Signature) { p.found = append(p.found, s) }
