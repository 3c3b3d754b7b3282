package metadata

import (
	"encoding/json"
	"fmt"
	"time"
)

// Key identifies a node for its whole life. Names change by rename and thin ids by reset; the key, which
// is the node's first thin id, does not. Zero is "no node": thin device 0 is the pool's label.
type Key uint64

// ThinID is the 24-bit number of a thin device inside its pool.
type ThinID uint32

// Kind says what a node is.
type Kind string

// The kinds of nodes. A template is never shown: layers and snapshots without a parent start as
// snapshots of it.
const (
	KindLayer    Kind = "layer"
	KindSnapshot Kind = "snapshot"
	KindVolume   Kind = "volume"
	KindTemplate Kind = "template"
)

// PoolState is where a pool stands in its life.
type PoolState string

// The states of a pool's record. Whoever finds creating or destroying, and can take the start/stop
// lock, takes the rest down.
const (
	PoolCreating   PoolState = "creating"
	PoolReady      PoolState = "ready"
	PoolDestroying PoolState = "destroying"
)

// Backing describes what a pool lies on.
type Backing struct {
	Type         string `json:"type"`         // "loopback", "device", "lvm"
	DataSize     int64  `json:"dataSize"`     // bytes
	MetadataSize int64  `json:"metadataSize"` // bytes of the backing, of which MetadataHeld are outside the table
	MetadataHeld int64  `json:"metadataHeld"` // 0 once it has been added, until the next growth

	// Of a device backing: where its devices were seen last. They are found by what is written on them.
	DataDevice     string `json:"dataDevice,omitempty"`
	MetadataDevice string `json:"metadataDevice,omitempty"`
	// GivenBack are the roles of those, "data" and "metadata", that the undo of a create or a destroy has done with.
	GivenBack []string `json:"givenBack,omitempty"`

	LVM *LVM `json:"lvm,omitempty"` // of an lvm backing
}

// LVM describes the logical volumes that a pool lies on, and what was there before them.
type LVM struct {
	VG         string `json:"vg"`
	VGUUID     string `json:"vgUuid"`
	DataLV     string `json:"dataLv"`
	MetadataLV string `json:"metadataLv"`

	// The volumes' UUIDs, known once they have been made.
	DataUUID     string `json:"dataUuid,omitempty"`
	MetadataUUID string `json:"metadataUuid,omitempty"`

	// MadeVG tells that the volume group was made for the pool, on Device, and goes with it.
	MadeVG bool   `json:"madeVg,omitempty"`
	Device string `json:"device,omitempty"`
	// GroupRemoved tells of a pool that is being destroyed that it has gone.
	GroupRemoved bool `json:"groupRemoved,omitempty"`

	// Replaced is the empty thin pool whose place the volumes have taken: destroying the pool makes it again.
	Replaced *LVMThinPool `json:"replaced,omitempty"`
}

// LVMThinPool is what lvcreate needs to make a thin pool again.
type LVMThinPool struct {
	Name         string `json:"name"`
	DataSize     int64  `json:"dataSize"`     // bytes
	MetadataSize int64  `json:"metadataSize"` // bytes
	ChunkSize    int64  `json:"chunkSize"`    // bytes
	Zero         bool   `json:"zero,omitempty"`
	Discards     string `json:"discards"`
	WhenFull     string `json:"whenFull,omitempty"` // "error" or "queue"
	NoSpare      bool   `json:"noSpare,omitempty"`  // the volume group had no spare for metadata
}

// Space says how a pool grows, and what it refuses when it runs low. The zero value does and refuses nothing.
type Space struct {
	GrowAt     int    `json:"growAt,omitempty"`     // percent in use at which data or metadata grow; 0: never
	GrowBy     int    `json:"growBy,omitempty"`     // percent of their present size
	GrowLimit  int64  `json:"growLimit,omitempty"`  // bytes of data; 0: what the backing has
	MinFree    int    `json:"minFree,omitempty"`    // percent of data and of metadata below which no node is made
	Overcommit int    `json:"overcommit,omitempty"` // percent of the data size that all nodes may have together; 0: any
	Hook       string `json:"hook,omitempty"`       // a program that serve starts when a threshold is crossed; "" is none
}

// Pool is the record of the pool itself.
type Pool struct {
	Name         string    `json:"name"`
	UUID         string    `json:"uuid"`
	State        PoolState `json:"state"`
	Created      time.Time `json:"created"`
	Backing      Backing   `json:"backing"`
	Space        Space     `json:"space"`
	FS           string    `json:"fs"`
	BaseSize     int64     `json:"baseSize"`  // bytes
	BlockSize    int64     `json:"blockSize"` // bytes
	MkfsOptions  []string  `json:"mkfsOptions,omitempty"`
	MountOptions []string  `json:"mountOptions,omitempty"`
	Discard      string    `json:"discard"`
	NoZero       bool      `json:"noZero,omitempty"`

	// ForbidDevices keeps device nodes out of the layers that archives bring.
	ForbidDevices bool `json:"forbidDevices,omitempty"`

	// TransactionID is what the kernel's pool must say, or one more than it while Pending.
	TransactionID uint64 `json:"transactionId"`
	Pending       bool   `json:"pending,omitempty"`

	// ImportedFrom is what the kernel's pool said when it was imported, and may still say while Pending. 0 is
	// none.
	ImportedFrom uint64 `json:"importedFrom,omitempty"`

	// Renewed is the transaction id with which the pool's present life of thin ids began, which is also the one at which its
	// devices say they were made; 0 is a pool that was never renewed. Thin ids of another life are other devices.
	Renewed uint64 `json:"renewed,omitempty"`

	// Repair is nil unless a repair of the metadata is being put in its place, or has died while it was.
	Repair *Repair `json:"repair,omitempty"`

	// LowID and HighID bound the thin ids that may be in flight: LowID <= id < HighID.
	LowID  ThinID `json:"lowId"`
	HighID ThinID `json:"highId"`

	// SnapshotsTaken is the pool's count of create_snap messages, of which a pool survives 2^24.
	SnapshotsTaken uint64 `json:"snapshotsTaken"`
}

// Node is the record of a layer, a snapshot, a volume or a template.
type Node struct {
	Key     Key               `json:"key"`
	ID      ThinID            `json:"id"`
	Name    string            `json:"name"`
	Kind    Kind              `json:"kind"`
	Parent  Key               `json:"parent,omitempty"`
	Size    int64             `json:"size"` // bytes
	FS      string            `json:"fs"`
	Created time.Time         `json:"created"`
	Labels  map[string]string `json:"labels,omitempty"`
	Attrs   map[string]string `json:"attrs,omitempty"`
	Foreign bool              `json:"foreign,omitempty"`
	Grown   bool              `json:"grown,omitempty"` // its file system is larger than mkfs made it, or is about to be
	Lost    *Loss             `json:"lost,omitempty"`  // nil for a node that is whole
}

// Loss is what a node has lost for good in a repair of its pool's metadata: what was written there reads as zeros, or
// the thin device is gone.
type Loss struct {
	Blocks uint64    `json:"blocks"`       // of the pool's block size, as far as that can be told
	Of     uint64    `json:"of,omitempty"` // that it had; 0: cannot be told
	Since  time.Time `json:"since"`        // of the repair
}

// String is "3 of 17 blocks".
func (l Loss) String() string {
	switch {
	case l.Of == 0 && l.Blocks == 0:
		return "blocks"
	case l.Of == 0:
		return fmt.Sprintf("%d blocks", l.Blocks)
	}
	return fmt.Sprintf("%d of %d blocks", l.Blocks, l.Of)
}

// Tombstone is a thin device that is being deleted.
type Tombstone struct {
	ID    ThinID    `json:"id"`
	Name  string    `json:"name"` // what the node was called, for people
	Since time.Time `json:"since"`
}

// Document is a small record of a package above, kept with the nodes it needs: a node that a
// document names cannot be removed.
type Document struct {
	Kind  string          `json:"kind"`
	Key   string          `json:"key"`
	Nodes []Key           `json:"nodes,omitempty"`
	Data  json.RawMessage `json:"data"`
}
