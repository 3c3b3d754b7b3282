package layer

import (
	"encoding/json"
	"log/slog"
	"time"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
)

// The classes of this package's errors. Compare with errors.Is.
var (
	ErrInvalid     = errs.ErrInvalid
	ErrNotFound    = errs.ErrNotFound
	ErrExists      = errs.ErrExists
	ErrBusy        = errs.ErrBusy
	ErrNoSpace     = errs.ErrNoSpace
	ErrDamaged     = errs.ErrDamaged
	ErrUnsupported = errs.ErrUnsupported
)

// Config says which pool a Store works on.
type Config struct {
	Dirs   pool.Dirs
	Pool   string       // name of the pool
	Logger *slog.Logger // what recovery did; nil is silent
}

// Kind says what a node is.
type Kind string

// The kinds of nodes.
const (
	KindLayer    = Kind(metadata.KindLayer)    // immutable; may be a parent
	KindSnapshot = Kind(metadata.KindSnapshot) // writable; a container's or a VM's disk
	KindVolume   = Kind(metadata.KindVolume)   // writable; with a life of its own
)

// AttrChainID is the attribute in which a layer that came with an image says what it holds: the chain id of the image specification.
const AttrChainID = pool.AttrChainID

// Node is what the records say of a layer, a snapshot or a volume.
type Node struct {
	Name    string
	Kind    Kind
	Parent  string // name; "" for none
	Size    int64  // virtual size in bytes
	FS      string // "ext4" or "xfs"
	Created time.Time
	Labels  map[string]string
	Attrs   map[string]string // what backends keep with a node: keys, digests
	Foreign bool              // strangers wrote the file system; see MountOptions.Trust
	Lost    *Loss             // nil for a node that is whole; see Node.Err
}

// The states of a node.
const (
	StateInactive = "inactive" // no kernel device
	StateActive   = "active"   // has a kernel device
	StateMounted  = "mounted"  // and it is mounted in our mount namespace
)

// Info is a node with what the kernel says of it.
type Info struct {
	Node
	State       string
	Device      string   // "/dev/dm-N"; "" when inactive
	Mountpoints []string // in our mount namespace, in the order of mounting
	Claims      []string // who said that he uses the node though nothing may have it open
	Used        *int64   // bytes mapped; nil: not known, see Measure
	Exclusive   *int64   // bytes that removing the node would free; nil: not known, see Measure

	id metadata.ThinID
}

// SnapshotOptions says what CreateSnapshot makes. The zero value is an empty snapshot of base size.
type SnapshotOptions struct {
	Parent string // name; "" starts from an empty file system
	Size   int64  // bytes; 0 is the parent's size, or the pool's base size
	Labels map[string]string
	Attrs  map[string]string
	Kind   Kind // "" is KindSnapshot
}

// LayerOptions says what CreateLayer makes.
type LayerOptions struct {
	Parent string
	Size   int64
	Labels map[string]string
	Attrs  map[string]string
}

// CommitOptions says how Commit makes a layer.
type CommitOptions struct {
	Move   bool // the snapshot itself becomes the layer
	Unused bool // with Move: a snapshot that somebody has open is ErrBusy; else a copy becomes the layer, and what he writes from then on goes with him
	Trust  bool // check a foreign file system; the layer is then not foreign, what it was made from stays so
	Labels map[string]string
	Attrs  map[string]string

	Claim     string             // with Move: of Activate, which ends with the snapshot
	Documents func(*DocTx) error // changes documents in the transaction that records the layer, as in Prepare; an error undoes both
}

// MountOptions says how Mount mounts.
type MountOptions struct {
	ReadOnly bool
	Options  []string // beside the pool's, as in mount -o
	Trust    bool     // check a foreign file system, and take the mark away; see Store.Trust. Show what is left of a node that has lost blocks
}

// Mounted tells what Mount did.
type Mounted struct {
	Dir      string
	ReadOnly bool
}

// FsckResult is what Fsck found.
type FsckResult struct {
	Clean  bool
	Fixed  bool
	Output string // of the checking program
}

// Document is a small record that may hold layers: a layer that a document names is not removed.
type Document struct {
	Kind   string
	Key    string
	Layers []string // names
	Data   json.RawMessage
}
