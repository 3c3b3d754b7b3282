package pool

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
)

const (
	defaultDataSize  = 100 << 30
	defaultBlockSize = 64 << 10
	defaultBaseSize  = 10 << 30
	minBlockSize     = 64 << 10
	maxBlockSize     = 1 << 30
	minBaseSize      = 16 << 20 // ext4 with a journal
	minBaseSizeXFS   = 300 << 20
	maxSize          = 1 << 60
	minMetadataSize  = 4 << 20

	// This part of the metadata backing stays outside the table: it is what deleting works with when
	// writers have eaten the rest.
	heldPercent = 5
	maxHeld     = 8 << 20
)

// complete checks a spec and fills in the defaults.
func (spec Spec) complete() (Spec, error) {
	bad := func(format string, args ...any) (Spec, error) {
		return spec, fmt.Errorf("create pool %q: %s: %w", spec.Name, fmt.Sprintf(format, args...), errs.ErrInvalid)
	}
	if err := ValidateName("pool", spec.Name); err != nil {
		return spec, err
	}
	spec.Backing = defaulted(spec.Backing, BackingLoopback)
	spec.FS = defaulted(spec.FS, string(fsutil.Ext4))
	spec.Discard = defaulted(spec.Discard, defaultDiscard(spec.Backing))
	if spec.ThinPool == "" { // else it is that of the thin pool
		spec.BlockSize = defaulted(spec.BlockSize, defaultBlockSize)
	}
	spec.BaseSize = defaulted(spec.BaseSize, defaultBaseSize)
	switch spec.Backing {
	case BackingLoopback:
		spec.DataSize = defaulted(spec.DataSize, defaultDataSize)
	case BackingLVM:
		if err := spec.checkVolumes(); err != nil {
			return spec, err
		}
	case BackingDevice:
		if spec.DataDevice == "" || spec.MetadataDevice == "" {
			return bad("a data and a metadata device are needed")
		}
		if spec.DataSize != 0 || spec.MetadataSize != 0 {
			return bad("the sizes are those of its devices")
		}
	default:
		return bad("backing %q is not known", spec.Backing)
	}
	if err := spec.checkSettings(); err != nil {
		return spec, fmt.Errorf("create pool %q: %w", spec.Name, err)
	}
	if err := fsutil.CheckOptions(fsutil.Type(spec.FS), spec.MountOptions...); err != nil {
		return spec, fmt.Errorf("create pool %q: %w", spec.Name, err)
	}
	spec.Space = completeSpace(spec.Space)
	if spec.Backing != BackingLoopback { // how large it is will be seen on the devices
		return spec, nil
	}
	return spec.sized()
}

// checkSettings tells whether a pool can be so, wherever it lies. The error is ErrInvalid.
func (spec Spec) checkSettings() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), errs.ErrInvalid)
	}
	if b := spec.BlockSize; b != 0 && (b < minBlockSize || b > maxBlockSize || b%minBlockSize != 0) {
		return bad("block size %d: 64 KiB to 1 GiB in steps of 64 KiB", b)
	}
	if spec.Discard != "passdown" && spec.Discard != "nopassdown" && spec.Discard != "ignore" {
		return bad("discard %q: passdown, nopassdown or ignore", spec.Discard)
	}
	switch fsutil.Type(spec.FS) {
	case fsutil.Ext4:
		if spec.BaseSize < minBaseSize {
			return bad("base size %d: ext4 needs 16 MiB", spec.BaseSize)
		}
	case fsutil.XFS:
		if spec.BaseSize < minBaseSizeXFS {
			return bad("base size %d: xfs needs 300 MiB", spec.BaseSize)
		}
	default:
		return bad("file system %q: ext4 or xfs", spec.FS)
	}
	if spec.BaseSize > maxSize || spec.BaseSize%int64(devmapper.SectorSize) != 0 {
		return bad("base size %d", spec.BaseSize)
	}
	return nil
}

// sized checks the sizes of a spec, which are complete but for that of the metadata.
func (spec Spec) sized() (Spec, error) {
	bad := func(format string, args ...any) (Spec, error) {
		return spec, fmt.Errorf("create pool %q: %s: %w", spec.Name, fmt.Sprintf(format, args...), errs.ErrInvalid)
	}
	if spec.DataSize < 16*spec.BlockSize || spec.DataSize > maxSize {
		return bad("data size %d: at least 16 blocks of %d bytes", spec.DataSize, spec.BlockSize)
	}
	computed := thinpool.MetadataSize(uint64(spec.DataSize), devmapper.SectorsOf(uint64(spec.BlockSize)))
	spec.MetadataSize = defaulted(spec.MetadataSize, int64(computed))
	if spec.MetadataSize < minMetadataSize || spec.MetadataSize > int64(thinpool.MaxMetadataSize) {
		return bad("metadata size %d: %d to %d bytes", spec.MetadataSize, minMetadataSize, thinpool.MaxMetadataSize)
	}
	if err := cmp.Or(checkSpace(spec.Space, spec.DataSize), checkHook(spec.Space.Hook)); err != nil {
		return spec, fmt.Errorf("create pool %q: %w", spec.Name, err)
	}
	return spec, nil
}

// lies finds out what a pool is going to lie on, and its sizes, without changing anything.
func (spec *Spec) lies(ctx context.Context, uuid string) (b metadata.Backing, err error) {
	b.Type = spec.Backing
	switch spec.Backing {
	case BackingLVM:
		if b.LVM, err = spec.planVolumes(ctx, uuid); err == nil {
			*spec, err = spec.sized()
		}
	case BackingDevice:
		if *spec, err = spec.measureDisks(); err == nil {
			*spec, err = spec.sized()
		}
		b.DataDevice, b.MetadataDevice = spec.DataDevice, spec.MetadataDevice
	}
	b.DataSize, b.MetadataSize = spec.DataSize, spec.MetadataSize
	b.MetadataHeld = heldOf(spec.MetadataSize)
	return b, err
}

// defaultDiscard is what becomes of blocks that nodes give back: files become smaller, disks are told only where that is asked for.
func defaultDiscard(backing string) string {
	if backing != BackingLoopback {
		return "nopassdown"
	}
	return "passdown"
}

func defaulted[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// record is what Create is about to make.
func (spec Spec) record(ctx context.Context) (metadata.Pool, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return metadata.Pool{}, err
	}
	tid, err := newTransactionID()
	if err != nil {
		return metadata.Pool{}, err
	}
	uuid := hex.EncodeToString(b[:])
	lies, err := spec.lies(ctx, uuid)
	if err != nil {
		return metadata.Pool{}, err
	}
	return metadata.Pool{
		Name: spec.Name, UUID: uuid, State: metadata.PoolCreating, Created: time.Now().UTC(), Backing: lies,
		Space: spec.Space,
		FS:    spec.FS, BaseSize: spec.BaseSize, BlockSize: spec.BlockSize,
		MkfsOptions: spec.MkfsOptions, MountOptions: spec.MountOptions, Discard: spec.Discard, NoZero: spec.NoZero, ForbidDevices: spec.ForbidDevices,
		TransactionID: tid, LowID: labelID + 1, HighID: labelID + 1,
	}, nil
}
