package thinpool

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/dmlayer/dmlayer/devmapper"
)

// Types of the targets.
const (
	PoolTarget = "thin-pool"
	ThinTarget = "thin"
)

// ID is the number of a thin device in its pool, below 2^24.
type ID uint32

// MaxID is the highest number that a thin device can have.
const MaxID ID = 1<<24 - 1

// NewID checks a number. The error is [ErrInvalid].
func NewID(n uint64) (ID, error) {
	if n > uint64(MaxID) {
		return 0, fmt.Errorf("thinpool: thin id %d is above %d: %w", n, MaxID, ErrInvalid)
	}
	return ID(n), nil
}

func (id ID) String() string { return strconv.FormatUint(uint64(id), 10) }

func (id ID) check() error {
	_, err := NewID(uint64(id))
	return err
}

// Bounds of a pool's block size, which is a multiple of MinBlockSize
// (dm-thin.c, DATA_DEV_BLOCK_SIZE_*).
const (
	MinBlockSize devmapper.Sectors = 128
	MaxBlockSize devmapper.Sectors = 2097152
)

// The target's feature arguments; it takes at most four of the five.
const (
	argSkipZeroing   = "skip_block_zeroing"
	argIgnoreDiscard = "ignore_discard"
	argNoPassdown    = "no_discard_passdown"
	argReadOnly      = "read_only"
	argErrorNoSpace  = "error_if_no_space"
	maxFeatureArgs   = 4
)

// PoolTable are the parameters of a thin-pool target.
type PoolTable struct {
	Metadata, Data devmapper.DevNum
	// BlockSize is fixed when a pool is formatted. The kernel checks it when
	// the pool is activated, but ignores a wrong one in a reload.
	BlockSize devmapper.Sectors
	// LowWater is a number of free blocks: when no more are left, the pool
	// raises an event, once until it is resumed again.
	LowWater uint64
	// SkipBlockZeroing leaves what a block held before readable around the
	// first, smaller write to it: somebody's deleted data.
	SkipBlockZeroing bool
	// IgnoreDiscard cannot be changed by a reload.
	IgnoreDiscard bool
	// NoDiscardPassdown frees blocks in the pool but does not discard them on
	// the data device.
	NoDiscardPassdown bool
	// ReadOnly activates without writing metadata; not for a new pool.
	ReadOnly bool
	// ErrorIfNoSpace fails writes for which there is no block at once. The
	// default is to hold them for a minute, in the hope that the pool grows.
	ErrorIfNoSpace bool
}

// Check finds what the kernel would refuse. The error is [ErrInvalid].
func (t PoolTable) Check() error {
	switch n := len(t.features()); {
	case t.Metadata.IsZero() || t.Data.IsZero():
		return fmt.Errorf("thinpool: pool table without a metadata or data device: %w", ErrInvalid)
	case t.Metadata == t.Data:
		return fmt.Errorf("thinpool: pool table with %s as metadata and as data device: %w", t.Data, ErrInvalid)
	case t.BlockSize < MinBlockSize || t.BlockSize > MaxBlockSize || t.BlockSize%MinBlockSize != 0:
		return fmt.Errorf("thinpool: block size of %d sectors is not a multiple of %d up to %d: %w", t.BlockSize, MinBlockSize, MaxBlockSize, ErrInvalid)
	case n > maxFeatureArgs:
		return fmt.Errorf("thinpool: pool table with %d features, the kernel takes %d at most: %w", n, maxFeatureArgs, ErrInvalid)
	}
	return nil
}

func (t PoolTable) features() []string {
	var args []string
	for _, f := range []struct {
		on  bool
		arg string
	}{
		{t.SkipBlockZeroing, argSkipZeroing},
		{t.IgnoreDiscard, argIgnoreDiscard},
		{t.NoDiscardPassdown, argNoPassdown},
		{t.ReadOnly, argReadOnly},
		{t.ErrorIfNoSpace, argErrorNoSpace},
	} {
		if f.on {
			args = append(args, f.arg)
		}
	}
	return args
}

// String are the parameters as the kernel takes and prints them.
func (t PoolTable) String() string {
	args := t.features()
	return strings.Join(append([]string{
		t.Metadata.String(), t.Data.String(),
		strconv.FormatUint(uint64(t.BlockSize), 10),
		strconv.FormatUint(t.LowWater, 10),
		strconv.Itoa(len(args)),
	}, args...), " ")
}

// Target is the table of a pool of a length, which is how much of the data
// device it uses.
func (t PoolTable) Target(length devmapper.Sectors) devmapper.Target {
	return devmapper.Target{Length: length, Type: PoolTarget, Params: t.String()}
}

// ParsePoolTable reads the parameters of a thin-pool target. Devices must be
// named by number, as the kernel does. The error is [ErrInvalid] and names the
// field.
func ParsePoolTable(s string) (PoolTable, error) {
	f := fieldsOf("pool table", s)
	t := PoolTable{
		Metadata:  f.dev("metadata device"),
		Data:      f.dev("data device"),
		BlockSize: devmapper.Sectors(f.uint("block size", 64)),
		LowWater:  f.uint("low water mark", 64),
	}
	if !f.done() {
		for range f.uint("number of features", 3) {
			name := f.next("feature")
			flag, ok := map[string]*bool{
				argSkipZeroing:   &t.SkipBlockZeroing,
				argIgnoreDiscard: &t.IgnoreDiscard,
				argNoPassdown:    &t.NoDiscardPassdown,
				argReadOnly:      &t.ReadOnly,
				argErrorNoSpace:  &t.ErrorIfNoSpace,
			}[name]
			if !ok {
				f.unexpected("feature", name)
				break
			}
			*flag = true
		}
	}
	f.end()
	if f.err == nil {
		f.err = t.Check()
	}
	if f.err != nil {
		return PoolTable{}, f.err
	}
	return t, nil
}

// ThinTable are the parameters of a thin target.
type ThinTable struct {
	Pool devmapper.DevNum
	ID   ID
	// Origin, if any, is a device outside the pool that is read where the
	// thin device has nothing. It must never change.
	Origin *devmapper.DevNum
}

// Check finds what the kernel would refuse. The error is [ErrInvalid].
func (t ThinTable) Check() error {
	if t.Pool.IsZero() {
		return fmt.Errorf("thinpool: thin table without a pool: %w", ErrInvalid)
	}
	if t.Origin != nil && (t.Origin.IsZero() || *t.Origin == t.Pool) {
		return fmt.Errorf("thinpool: thin table with %s as external origin: %w", t.Origin, ErrInvalid)
	}
	return t.ID.check()
}

// String are the parameters as the kernel takes and prints them.
func (t ThinTable) String() string {
	s := t.Pool.String() + " " + t.ID.String()
	if t.Origin != nil {
		s += " " + t.Origin.String()
	}
	return s
}

// Target is the table of a thin device of a size, which may be any.
func (t ThinTable) Target(size devmapper.Sectors) devmapper.Target {
	return devmapper.Target{Length: size, Type: ThinTarget, Params: t.String()}
}

// ParseThinTable reads the parameters of a thin target. Devices must be named
// by number, as the kernel does. The error is [ErrInvalid] and names the
// field.
func ParseThinTable(s string) (ThinTable, error) {
	f := fieldsOf("thin table", s)
	t := ThinTable{Pool: f.dev("pool device"), ID: ID(f.uint("thin id", 24))}
	if !f.done() {
		origin := f.dev("external origin")
		t.Origin = &origin
	}
	f.end()
	if f.err == nil {
		f.err = t.Check()
	}
	if f.err != nil {
		return ThinTable{}, f.err
	}
	return t, nil
}
