package thinpool

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/dmlayer/dmlayer/devmapper"
)

// MetadataBlockSize is the size in bytes of the blocks in which a pool counts
// its metadata.
const MetadataBlockSize = 4096

// Mode is what a pool can do at the moment.
type Mode uint8

const (
	// ModeReadWrite is the good one.
	ModeReadWrite Mode = iota + 1
	// ModeOutOfDataSpace has no free data block: metadata is still written,
	// messages work, writes that need a block wait or fail.
	ModeOutOfDataSpace
	// ModeReadOnly writes no metadata: it was asked to, the metadata is full
	// or could not be written. Messages are refused.
	ModeReadOnly
	// ModeFail does no I/O at all: the metadata cannot be read.
	ModeFail
	// ModeError is said where the status itself could not be got together.
	ModeError
)

var modeWords = map[Mode]string{
	ModeReadWrite: "rw", ModeOutOfDataSpace: "out_of_data_space", ModeReadOnly: "ro", ModeFail: "Fail", ModeError: "Error",
}

// String is the kernel's word.
func (m Mode) String() string {
	if w, ok := modeWords[m]; ok {
		return w
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

func (m Mode) broken() bool { return m == ModeFail || m == ModeError }

// DiscardMode is what a pool does with discards.
type DiscardMode uint8

const (
	// DiscardPassdown frees blocks and discards them on the data device.
	DiscardPassdown DiscardMode = iota + 1
	// DiscardNoPassdown frees blocks only. The kernel falls back to it where
	// the data device cannot discard whole blocks.
	DiscardNoPassdown
	// DiscardIgnore does nothing.
	DiscardIgnore
)

var discardWords = map[DiscardMode]string{
	DiscardPassdown: "discard_passdown", DiscardNoPassdown: argNoPassdown, DiscardIgnore: argIgnoreDiscard,
}

// String is the kernel's word.
func (d DiscardMode) String() string {
	if w, ok := discardWords[d]; ok {
		return w
	}
	return fmt.Sprintf("discard mode %d", uint8(d))
}

// PoolStatus is the status line of a thin-pool target. In the modes
// [ModeFail] and [ModeError] the mode is all there is.
type PoolStatus struct {
	Mode          Mode
	TransactionID uint64
	// Metadata is counted in blocks of 4 KiB. What the kernel keeps in reserve
	// for itself counts as used, so the rest is free indeed.
	UsedMetadata, TotalMetadata uint64
	// Data is counted in blocks of the pool.
	UsedData, TotalData uint64
	// HeldRoot is the metadata block of the metadata snapshot, 0 for none.
	HeldRoot uint64
	Discard  DiscardMode
	// ErrorIfNoSpace is set by the kernel too, when writes have waited for
	// space too long.
	ErrorIfNoSpace bool
	// NeedsCheck is set when the metadata could not be written: the pool
	// stays read-only until it was checked offline.
	NeedsCheck bool
	// MetadataLowWater is the number of free metadata blocks at which the pool
	// raises an event; 0 on kernels before 4.19, which do not tell.
	MetadataLowWater uint64
}

// Commits reports whether the pool can write its metadata, so that what it was
// told before and said yes to is on disk.
func (s PoolStatus) Commits() bool {
	return (s.Mode == ModeReadWrite || s.Mode == ModeOutOfDataSpace) && !s.NeedsCheck
}

// FreeMetadata is the number of free metadata blocks of 4 KiB.
func (s PoolStatus) FreeMetadata() uint64 {
	return s.TotalMetadata - min(s.UsedMetadata, s.TotalMetadata)
}

// FreeData is the number of free blocks of the pool.
func (s PoolStatus) FreeData() uint64 { return s.TotalData - min(s.UsedData, s.TotalData) }

// metadataFull goes by the numbers: the kernel has no word for it.
func (s PoolStatus) metadataFull() bool {
	return s.Mode == ModeReadOnly && s.TotalMetadata > 0 && s.FreeMetadata() == 0
}

// String is the line as the kernel prints it.
func (s PoolStatus) String() string {
	if s.Mode.broken() {
		return s.Mode.String()
	}
	held, space, check := "-", "queue_if_no_space", "-"
	if s.HeldRoot != 0 {
		held = strconv.FormatUint(s.HeldRoot, 10)
	}
	if s.ErrorIfNoSpace {
		space = argErrorNoSpace
	}
	if s.NeedsCheck {
		check = "needs_check"
	}
	return fmt.Sprintf("%d %d/%d %d/%d %s %s %s %s %s %d", s.TransactionID, s.UsedMetadata, s.TotalMetadata,
		s.UsedData, s.TotalData, held, s.Mode, s.Discard, space, check, s.MetadataLowWater)
}

// ParsePoolStatus reads a status line of any kernel that has thin pools, and
// ignores what newer ones may add at its end. The error is [ErrInvalid] and
// names the field.
func ParsePoolStatus(line string) (PoolStatus, error) {
	switch strings.TrimSpace(line) {
	case "Fail":
		return PoolStatus{Mode: ModeFail}, nil
	case "Error":
		return PoolStatus{Mode: ModeError}, nil
	}
	f := fieldsOf("pool status", line)
	var s PoolStatus
	s.TransactionID = f.uint("transaction id", 64)
	s.UsedMetadata, s.TotalMetadata = f.ratio("metadata blocks")
	s.UsedData, s.TotalData = f.ratio("data blocks")
	if held := f.next("held metadata root"); held != "-" {
		s.HeldRoot = f.number("held metadata root", held, 64)
	}
	s.Mode = f.mode()
	s.Discard = f.discard()
	s.ErrorIfNoSpace = f.choice("no space policy", "queue_if_no_space", argErrorNoSpace)
	if !f.done() { // since 3.16
		s.NeedsCheck = f.choice("needs check", "-", "needs_check")
	}
	if !f.done() { // since 4.19
		s.MetadataLowWater = f.uint("metadata low water mark", 64)
	}
	if f.err != nil {
		return PoolStatus{}, f.err
	}
	return s, nil
}

func (f *fields) mode() Mode {
	word := f.next("mode")
	switch word {
	case "rw":
		return ModeReadWrite
	case "ro":
		return ModeReadOnly
	case "out_of_data_space":
		return ModeOutOfDataSpace
	}
	f.unexpected("mode", word)
	return 0
}

func (f *fields) discard() DiscardMode {
	word := f.next("discard mode")
	for d, w := range discardWords {
		if w == word {
			return d
		}
	}
	f.unexpected("discard mode", word)
	return 0
}

// choice reads one of two words, false for the first.
func (f *fields) choice(name, no, yes string) bool {
	word := f.next(name)
	if word != no && word != yes {
		f.unexpected(name, word)
	}
	return word == yes
}

// ThinStatus is the status line of a thin target.
type ThinStatus struct {
	// Mapped is how much of the device has blocks in the pool, those that it
	// shares with other devices included.
	Mapped devmapper.Sectors
	// Highest is the last mapped sector, nil where nothing is mapped.
	Highest *devmapper.Sectors
	// Fail is set when the pool does no I/O any more, Error when the status
	// could not be got together, None when the device has not been opened in
	// the pool. The other fields mean nothing then.
	Fail, Error, None bool
}

// String is the line as the kernel prints it.
func (s ThinStatus) String() string {
	switch {
	case s.Fail:
		return "Fail"
	case s.Error:
		return "Error"
	case s.None:
		return "-"
	}
	highest := "-"
	if s.Highest != nil {
		highest = strconv.FormatUint(uint64(*s.Highest), 10)
	}
	return fmt.Sprintf("%d %s", s.Mapped, highest)
}

// ParseThinStatus reads a status line and ignores what newer kernels may add
// at its end. The error is [ErrInvalid] and names the field.
func ParseThinStatus(line string) (ThinStatus, error) {
	switch strings.TrimSpace(line) {
	case "Fail":
		return ThinStatus{Fail: true}, nil
	case "Error":
		return ThinStatus{Error: true}, nil
	case "-":
		return ThinStatus{None: true}, nil
	}
	f := fieldsOf("thin status", line)
	s := ThinStatus{Mapped: devmapper.Sectors(f.uint("mapped sectors", 64))}
	if word := f.next("highest mapped sector"); word != "-" {
		highest := devmapper.Sectors(f.number("highest mapped sector", word, 64))
		s.Highest = &highest
	}
	if f.err != nil {
		return ThinStatus{}, f.err
	}
	return s, nil
}
