package pool

import (
	"time"

	"github.com/dmlayer/dmlayer/metadata"
)

// Dirs are the directories of dmlayer.
type Dirs struct {
	Root    string // durable: pools' record stores and loop files
	Run     string // volatile: locks, claims, links, mount points
	Backups string // durable: backups of the record stores; "": backups, below Root
}

// DefaultDirs returns /var/lib/dmlayer and /run/dmlayer.
func DefaultDirs() Dirs { return Dirs{Root: "/var/lib/dmlayer", Run: "/run/dmlayer"} }

// Spec says what Create makes. Zero values mean the defaults.
type Spec struct {
	Name         string
	Backing      string   // "loopback" (default), "device" or "lvm"
	DataSize     int64    // bytes; 0: 100 GiB
	MetadataSize int64    // bytes; 0: computed from the data size
	BlockSize    int64    // bytes; 0: 64 KiB
	FS           string   // "ext4" (default) or "xfs"
	BaseSize     int64    // bytes; 0: 10 GiB
	MkfsOptions  []string // words for mkfs
	MountOptions []string // as in mount -o, one each
	Discard      string   // "passdown" (default for loopback), "nopassdown" (default for others), "ignore"
	NoZero       bool     // new blocks are not zeroed: all users of the pool trust each other

	ForbidDevices bool // archives with device nodes are refused

	// Of a device backing: two block devices.
	DataDevice, MetadataDevice string

	// Of an lvm backing: a volume group, or a disk on which one is made for the pool.
	VG, Device  string
	ThinPool    string // an empty thin pool of the VG, whose place the pool takes; "": the VG's free extents
	DataPercent int    // of the free extents, for data; 0: 95

	// Force wipes what is on the devices. Without it, one that carries anything is refused.
	Force bool

	Space Space
}

// Space says how a pool grows, and what it refuses when it runs low.
type Space = metadata.Space

// The states of a pool as Status.State gives them.
const (
	StateActive         = "active"
	StateInactive       = "inactive"
	StateReadOnly       = "read-only"
	StateOutOfDataSpace = "out-of-data-space"
	StateFailed         = "failed"
	StateNeedsCheck     = "needs-check"
)

// Status is what a pool is and how it is. Sizes are bytes; nil is "not known now".
type Status struct {
	Name           string    `json:"name"`
	UUID           string    `json:"uuid"`
	Backing        string    `json:"backing"`
	State          string    `json:"state"`
	FS             string    `json:"fs"`
	BaseSize       int64     `json:"baseSize"`
	BlockSize      int64     `json:"blockSize"`
	DataUsed       *int64    `json:"dataUsed"`
	DataTotal      *int64    `json:"dataTotal"`
	MetadataUsed   *int64    `json:"metadataUsed"`
	MetadataTotal  *int64    `json:"metadataTotal"`
	TransactionID  *uint64   `json:"transactionId"`
	SnapshotsTaken *uint64   `json:"snapshotsTaken"` // in the pool's life; see Life
	SnapshotLimit  uint64    `json:"snapshotLimit"`
	IDsTaken       uint64    `json:"idsTaken"` // thin ids, in the pool's life
	IDLimit        uint64    `json:"idLimit"`
	Layers         int       `json:"layers"`
	Snapshots      int       `json:"snapshots"`
	Volumes        int       `json:"volumes"`
	DataDevice     string    `json:"dataDevice"`     // while inactive "", or of a device backing where it was seen last
	MetadataDevice string    `json:"metadataDevice"` // as DataDevice
	DataFile       string    `json:"dataFile"`       // of a loopback backing
	MetadataFile   string    `json:"metadataFile"`   // of a loopback backing
	Discard        string    `json:"discard"`
	Zero           bool      `json:"zero"`
	ForbidDevices  bool      `json:"forbidDevices"`
	MkfsOptions    []string  `json:"mkfsOptions"`
	MountOptions   []string  `json:"mountOptions"`
	Created        time.Time `json:"created"`

	// The backups of the records outside the pool, and when the last of them was made; nil where there is none.
	Backups    int        `json:"backups"`
	LastBackup *time.Time `json:"lastBackup"`

	SpaceStatus
}
