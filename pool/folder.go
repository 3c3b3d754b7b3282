package pool

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// folder is a pool's folder as its files tell of it, without anything being started.
type folder struct {
	files    files
	kind     string // of the backing
	backing  backing
	super    thinmeta.Superblock
	sizes    [2]int64 // bytes, of data and metadata
	devices  map[metadata.ThinID]thinmeta.Device
	label    label
	own      *candidate  // the record store of the folder
	copies   []candidate // of this pool, the newest first
	unusable []string    // copies that are not, and why
	latest   uint64      // the highest version of the store that any copy tells of
}

// candidate is a copy of the records that a pool may be imported with.
type candidate struct {
	*metadata.Copy
	source string
	own    bool // it is the record store of the folder
}

// maxVersion is far above the version that a record store comes to: each import takes 2^20 of them.
const maxVersion = 1 << 62

// tagBits are the bits of a transaction id that count; above them is the tag.
const tagBits = 24

// pairs tells whether the store that the copy is of belongs to the pool as it is.
func (c candidate) pairs(transaction uint64) bool {
	return transaction == c.Pool.TransactionID || c.Pool.Pending && transaction == previous(c.Pool)
}

// lookAt reads a pool's folder and what lies on a backing. records is the file of a copy that is to be used, "" for any; with empty,
// none is; backups are folders that may have some.
func lookAt(ctx context.Context, f files, kind string, b backing, records string, empty bool, backups []string) (*folder, error) {
	l := &folder{files: f, kind: kind, backing: b, devices: map[metadata.ThinID]thinmeta.Device{}}
	media, err := b.open(ctx, false)
	if err != nil {
		return nil, err
	}
	defer media.Close()
	m, err := thinmeta.Open(media.metadata, thinmeta.Options{})
	if err != nil {
		return nil, l.damaged(err)
	}
	l.super, l.sizes = m.Superblock(), [2]int64{media.data.size, media.metadata.size}
	if err := l.checkMedia(media); err != nil {
		return nil, err
	}
	if err := l.readDevices(ctx, m); err != nil {
		return nil, err
	}
	thin, err := newThinReader(ctx, m, media.data, labelID)
	if err != nil {
		return nil, l.damaged(err)
	}
	if l.label, err = decodeLabel(io.NewSectionReader(thin, 0, labelSize)); err != nil {
		return nil, fmt.Errorf("%s: %w", media.data.name, err)
	}
	l.readStore(ctx)
	unusable := l.unusable
	l.readLabelCopies(thin)
	l.readBackups(backups)
	switch {
	case empty:
		l.own, l.unusable = nil, nil
		return l, l.readLabelAlone()
	case records != "":
		l.unusable = unusable
		return l, l.readFile(records)
	}
	slices.SortStableFunc(l.copies, l.newer)
	return l, nil
}

func (l *folder) damaged(err error) error {
	_, name := l.backing.names()
	return errs.WithHint(fmt.Errorf("metadata of the pool in %s: %w: %w", l.files.dir(), err, errs.ErrDamaged),
		"where its record store is whole, dmlayer pool check --repair; else thin_check and thin_repair on "+name+". Nothing was changed")
}

// checkMedia tells whether data and metadata are all that the metadata speaks of. Metadata that the kernel wants checked is taken as it is: the
// pool starts for reading then, and can be repaired once it has records.
func (l *folder) checkMedia(m *media) error {
	if l.super.TransactionID == 0 {
		return l.damaged(errors.New("its pool was never finished, or is none of dmlayer"))
	}
	for _, err := range m.short(l.super) {
		return errs.WithHint(err, "it was not copied as a whole")
	}
	return nil
}

func (l *folder) readDevices(ctx context.Context, m *thinmeta.Metadata) error {
	for d, err := range m.Devices(ctx) {
		if err == nil && d.ID > maxThinID {
			err = fmt.Errorf("thin device %d: out of range", d.ID)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return l.damaged(err)
		}
		l.devices[metadata.ThinID(d.ID)] = d
	}
	return nil
}

// readLabelAlone takes the pool's settings for records that know no node.
func (l *folder) readLabelAlone() error {
	pool := l.label.Settings
	pool.UUID, pool.State, pool.Renewed = l.label.UUID, metadata.PoolReady, l.life()
	c := &metadata.Copy{Taken: pool.Created, Pool: pool}
	l.copies = []candidate{{Copy: c, source: "the label of the pool"}}
	return l.fits(c)
}

// readFile takes the copy that the user wants, and no other.
func (l *folder) readFile(path string) error {
	c, err := readBackup(path)
	if err == nil {
		err = l.fits(c)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	l.copies, l.latest = []candidate{{Copy: c, source: path}}, max(l.latest, c.Version)
	return nil
}

func readBackup(path string) (*metadata.Copy, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: %w", err, errs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return metadata.ReadCopy(f)
}

// fits tells whether a copy is of this pool.
func (l *folder) fits(c *metadata.Copy) error {
	if c.Pool.UUID != l.label.UUID {
		return fmt.Errorf("records of pool %s, the data is that of pool %s: %w", c.Pool.UUID, l.label.UUID, errs.ErrDamaged)
	}
	if c.Version > maxVersion {
		return fmt.Errorf("records of version %d, which no store comes to: %w", c.Version, errs.ErrDamaged)
	}
	if c.Pool.Backing.Type != l.kind {
		return fmt.Errorf("records of a pool on %q, not %q: %w", c.Pool.Backing.Type, l.kind, errs.ErrUnsupported)
	}
	if tag := l.super.TransactionID >> tagBits; c.Pool.Renewed != l.life() && c.Pool.TransactionID>>tagBits != tag && !(candidate{Copy: c}).pairs(l.super.TransactionID) {
		return errs.WithHint(fmt.Errorf("records from before or after a renewal of the pool, of which thin ids mean other devices: %w", errs.ErrDamaged),
			"use a copy of the same life; without one, dmlayer pool import --empty keeps all devices, and dmlayer pool check --adopt names them")
	}
	if have := int64(l.super.DataBlockSize) * int64(devmapper.SectorSize); have != c.Pool.BlockSize {
		return fmt.Errorf("records of blocks of %d bytes, the pool's have %d: %w", c.Pool.BlockSize, have, errs.ErrDamaged)
	}
	return checkSettings(c.Pool)
}

// checkSettings is ErrDamaged of records with settings that no pool is made with: they may come from anywhere.
func checkSettings(r metadata.Pool) error {
	err := Spec{FS: r.FS, BaseSize: r.BaseSize, Discard: r.Discard, BlockSize: r.BlockSize}.checkSettings()
	if err == nil {
		err = checkSpace(r.Space, 0)
	}
	if err == nil && (r.Backing.DataSize > maxSize || r.Backing.MetadataSize < 0 || r.Backing.MetadataSize > maxSize || r.Backing.MetadataHeld > maxSize) {
		err = fmt.Errorf("%d bytes of data and %d of metadata, of which %d are held", r.Backing.DataSize, r.Backing.MetadataSize, r.Backing.MetadataHeld)
	}
	if err != nil {
		return fmt.Errorf("records with settings that make no sense: %s: %w", err.Error(), errs.ErrDamaged)
	}
	return nil
}

// life is the transaction with which the present life of the pool's thin ids began, as metadata.Pool has it. A label that was made in
// this life says so itself; in others, a renewal has changed the transaction of which its device is.
func (l *folder) life() uint64 {
	if made := l.devices[labelID].TransactionID; made != l.label.Settings.TransactionID {
		return made
	}
	return l.label.Settings.Renewed
}

// consider adds a copy, or what is wrong with it.
func (l *folder) consider(c candidate, err error) bool {
	if err == nil {
		err = l.fits(c.Copy)
	}
	if err == nil {
		l.latest = max(l.latest, c.Version)
	}
	if err != nil {
		l.unusable = append(l.unusable, fmt.Sprintf("%s: %v", c.source, err))
		return false
	}
	l.copies = append(l.copies, c)
	return true
}

// unlocked is the lock of a store that nobody else knows, or that is only read: bbolt's own lock remains.
type unlocked struct{}

func (unlocked) LockStore(context.Context, bool) (func(), error) { return func() {}, nil }

// readStore reads the folder's own record store, where it has one.
func (l *folder) readStore(ctx context.Context) {
	store := metadata.New(l.files.store(), unlocked{})
	defer store.Close()
	c := candidate{source: l.files.store(), own: true}
	err := store.View(ctx, func(tx *metadata.Tx) (err error) {
		c.Copy, err = metadata.CopyOf(tx, time.Now())
		return err
	})
	if !errors.Is(err, errs.ErrNotFound) && l.consider(c, err) {
		l.own = &c
	}
}

// healthy tells whether the folder's own records belong to the pool and nothing is newer than they are.
func (l *folder) healthy(name string) bool {
	own := l.own
	return own != nil && own.pairs(l.super.TransactionID) && own.Pool.Name == name && own.Pool.State == metadata.PoolReady &&
		!slices.ContainsFunc(l.copies, func(c candidate) bool { return l.newer(c, *own) < 0 })
}

func (l *folder) readLabelCopies(thin io.ReaderAt) {
	slots, err := readSlots(thin)
	for _, s := range slots {
		c, err := metadata.ReadCopy(bytes.NewReader(s.text))
		l.consider(candidate{Copy: c, source: fmt.Sprintf("copy %d in the label", s.index+1)}, err)
	}
	if err != nil && !errors.Is(err, errs.ErrNotFound) {
		l.unusable = append(l.unusable, err.Error())
	}
}

// readBackups reads the newest backup that is whole, whatever the pool's name was.
func (l *folder) readBackups(folders []string) {
	var dirs []string
	for _, f := range slices.Compact(folders) {
		dirs = append(dirs, named(f, func(name string) bool { return strings.HasSuffix(name, "-"+l.label.UUID) })...)
	}
	for _, dir := range dirs {
		list, err := listBackups(dir)
		if err != nil {
			l.unusable = append(l.unusable, err.Error())
		}
		for _, b := range slices.Backward(list) {
			if b.Version <= maxVersion { // also of those that cannot be read, which would push newer ones out
				l.latest = max(l.latest, b.Version)
			}
			c, err := readBackup(b.Path)
			if l.consider(candidate{Copy: c, source: b.Path}, err) {
				break
			}
		}
	}
}

// newer sorts copies. An import gives a pool another tag: what has the pool's is of later than all others. Within it transaction ids only
// rise. Of other tags, which are random, the ids tell nothing: it is the versions of the stores that rise with each import, whatever
// the clock said.
func (l *folder) newer(a, b candidate) int {
	tag := l.super.TransactionID >> tagBits
	rank := func(c candidate) [3]uint64 {
		if c.Pool.TransactionID>>tagBits == tag || c.pairs(l.super.TransactionID) {
			return [3]uint64{1, c.Pool.TransactionID, c.Version}
		}
		return [3]uint64{0, 0, c.Version}
	}
	x, y := rank(a), rank(b)
	return cmp.Or(slices.Compare(y[:], x[:]), b.Taken.Compare(a.Taken))
}
