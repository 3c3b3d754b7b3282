package thinmeta

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

var (
	// ErrDamaged is the class of every [*Damage].
	ErrDamaged = errors.New("damaged thin pool metadata")
	// ErrStructure is returned for a block that has the right checksum and
	// makes no sense where it is.
	ErrStructure = errors.New("metadata block makes no sense")
	// ErrRange is returned for a reference to a block that does not exist.
	ErrRange = errors.New("block out of range")
	// ErrLoop is returned for a node that is below itself.
	ErrLoop = errors.New("node is below itself")
	// ErrMismatch is returned where two places disagree about the same thing.
	ErrMismatch = errors.New("metadata contradicts itself")
	// ErrNoDevice is returned when the metadata has no thin device with the id.
	ErrNoDevice = errors.New("no such thin device")
	// ErrNoSpaceMap is returned for the space maps of a metadata snapshot: it
	// has none.
	ErrNoSpaceMap = errors.New("metadata snapshot has no space maps")
)

// Tree is one of the structures that metadata consists of.
type Tree uint8

// The trees, and what their keys are.
const (
	TreeSuperblock      Tree = iota // no keys
	TreeDevices                     // device ids; leads to the mappings
	TreeMappings                    // virtual blocks of one device
	TreeDetails                     // device ids
	TreeDataBitmaps                 // numbers of bitmaps, each of 16320 data blocks
	TreeDataCounts                  // data blocks
	TreeMetadataBitmaps             // numbers of bitmaps, each of 16320 metadata blocks
	TreeMetadataCounts              // metadata blocks
)

var treeWords = [...]string{
	"superblock", "device tree", "mappings", "device details", "data bitmaps", "data reference counts",
	"metadata bitmaps", "metadata reference counts",
}

var keyWords = [...]string{
	"keys", "devices", "virtual blocks", "devices", "bitmaps", "data blocks", "bitmaps", "metadata blocks",
}

// String is what the documentation calls the tree.
func (t Tree) String() string { return word(treeWords[:], t) }

func word(words []string, t Tree) string {
	if int(t) < len(words) {
		return words[t]
	}
	return fmt.Sprintf("tree %d", uint8(t))
}

// Path says how a block was reached.
type Path struct {
	Tree Tree
	// Device is whose mappings were read, in [TreeMappings]. Others may share
	// the block.
	Device uint64
	// Blocks are the blocks on the way, the root of the tree first, without the
	// one that is reached.
	Blocks []uint64
}

// String is "mappings of device 7 (by way of blocks 5, 12)".
func (p Path) String() string {
	s := p.Tree.String()
	if p.Tree == TreeMappings {
		s = fmt.Sprintf("%s of device %d", s, p.Device)
	}
	if len(p.Blocks) == 0 {
		return s
	}
	return fmt.Sprintf("%s (by way of %s)", s, blockList(p.Blocks))
}

func blockList(blocks []uint64) string {
	words := make([]string, len(blocks))
	for i, b := range blocks {
		words[i] = fmt.Sprint(b)
	}
	if len(words) == 1 {
		return "block " + words[0]
	}
	return "blocks " + strings.Join(words, ", ")
}

// Damage is one thing that is wrong with the metadata. It is [ErrDamaged], and
// whatever Cause is: [ErrChecksum], [ErrStructure], [ErrRange], [ErrLoop],
// [ErrMismatch], or what the device gave for an error.
type Damage struct {
	// Block is the metadata block that is wrong, or that says what is wrong.
	Block uint64
	Path  Path
	// First and Last are the keys that are lost with it, both included.
	// Which of them were in use cannot be told.
	First, Last uint64
	Cause       error

	// misplaced is set where the block may be right elsewhere.
	misplaced bool
}

// Error is "thinmeta: mappings of device 7 (by way of block 5), virtual blocks
// 0 to 99: block 12: checksum is …".
func (d *Damage) Error() string {
	return fmt.Sprintf("thinmeta: %s%s: block %d: %v", d.Path, d.keys(), d.Block, d.Cause)
}

func (d *Damage) keys() string {
	what := word(keyWords[:], d.Path.Tree)
	switch {
	case d.First == 0 && d.Last == maxKey:
		return ""
	case d.First == d.Last:
		return fmt.Sprintf(", %s %d", strings.TrimSuffix(what, "s"), d.First)
	case d.Last == maxKey:
		return fmt.Sprintf(", %s from %d on", what, d.First)
	}
	return fmt.Sprintf(", %s %d to %d", what, d.First, d.Last)
}

// Unwrap is the cause.
func (d *Damage) Unwrap() error { return d.Cause }

// Is finds [ErrDamaged].
func (d *Damage) Is(target error) bool { return target == ErrDamaged }

// maxErrors is how many errors are kept of a device and in a report. There
// may be as many as there are blocks.
const maxErrors = 1000

// errorList keeps the first errors.
type errorList struct {
	errs []error
	more int
}

func (l *errorList) add(err error) {
	if len(l.errs) < maxErrors {
		l.errs = append(l.errs, err)
		return
	}
	l.more++
}

func (l *errorList) len() int { return len(l.errs) + l.more }

func (l *errorList) join() error {
	if l.more == 0 {
		return errors.Join(l.errs...)
	}
	return errors.Join(append(slices.Clone(l.errs), fmt.Errorf("thinmeta: and %d more: %w", l.more, ErrDamaged))...)
}
