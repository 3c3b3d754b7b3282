package pool

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/internal/lockfile"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
)

var (
	pointCreateDir      = fault.New("pool.create.directory")
	pointCreateRecord   = fault.New("pool.create.recorded")
	pointCreateActive   = fault.New("pool.create.activated")
	pointCreateLabelled = fault.New("pool.create.labelled")
	pointDestroyRecord  = fault.New("pool.destroy.recorded")
	pointDestroyDevices = fault.New("pool.destroy.devices")
	pointDestroyBacking = fault.New("pool.destroy.backing")
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
	spec.Space = completeSpace(spec.Space)
	if spec.Backing != BackingLoopback { // how large it is will be seen on the devices
		return spec, nil
	}
	return spec.sized()
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
	if err := checkSpace(spec.Space, spec.DataSize); err != nil {
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

// Create makes a pool and starts it. What it is about to make is recorded first, so that a Create
// that is killed is undone by the next command. Errors: ErrInvalid, ErrExists, ErrNoSpace,
// ErrUnsupported.
func Create(ctx context.Context, dirs Dirs, spec Spec) error {
	spec, err := spec.complete()
	if err != nil {
		return err
	}
	if err := makeDirs(dirs.Root); err != nil {
		return err
	}
	p, err := open(dirs, spec.Name, nil)
	if err != nil {
		return err
	}
	defer p.Close()
	s, err := p.exclusive(ctx, "create")
	if err != nil {
		return err
	}
	defer s.Exit()
	if err := s.clearPlace(ctx); err != nil {
		return fmt.Errorf("create pool %q: %w", spec.Name, err)
	}
	p.wipe = spec.Force
	if p.record, err = spec.record(ctx); err != nil {
		return fmt.Errorf("create pool %q: %w", spec.Name, err)
	}
	if spec.Backing == BackingDevice { // up to the end of an undo
		unlock, err := p.files.lockDisks(ctx)
		if err != nil {
			return fmt.Errorf("create pool %q: %w", spec.Name, err)
		}
		defer unlock()
		p.disksLocked = true
	}
	if err := s.create(ctx); err != nil {
		if !s.recorded { // what is there may be another's, who uses another run directory
			_ = os.Remove(p.files.blobs())
			_ = os.Remove(p.files.dir())
			return fmt.Errorf("create pool %q: %w", spec.Name, kernelError(err))
		}
		undo, cancel := UndoContext(ctx)
		defer cancel()
		return errors.Join(fmt.Errorf("create pool %q: %w", spec.Name, kernelError(err)), s.vanish(undo))
	}
	return nil
}

// undoTimeout bounds an undo, which must run although its operation was cancelled.
const undoTimeout = time.Minute

// UndoContext returns the context of an undo.
func UndoContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
}

// exclusive returns a session that holds the start/stop lock exclusively.
func (p *Pool) exclusive(ctx context.Context, op string) (*Session, error) {
	s, err := p.session(ctx)
	if err != nil {
		return nil, err
	}
	bounded, cancel := context.WithTimeout(ctx, exclusiveWait)
	defer cancel()
	err = s.holder.Lock(bounded, at(offsetStartStop), lockfile.Exclusive)
	if err == nil {
		return s, nil
	}
	s.Exit()
	if bounded.Err() != nil && ctx.Err() == nil {
		err := fmt.Errorf("%s pool %q: an operation on it is running, such as the loading of an image: %w", op, p.files.name, errs.ErrBusy)
		return nil, errs.WithHint(err, "wait for it to end, or end it")
	}
	return nil, fmt.Errorf("%s pool %q: waiting for operations that run: %w", op, p.files.name, err)
}

// exclusiveWait is for how long stop, destroy and create wait for operations that run: the short ones end
// by then, and for a long one nobody wants to wait without a word.
const exclusiveWait = 10 * time.Second

// clearPlace takes away what a dead Create or Destroy left of the name; a living pool is ErrExists.
func (s *Session) clearPlace(ctx context.Context) error {
	err := s.readRecord(ctx)
	switch {
	case err == nil && s.p.record.State == metadata.PoolReady:
		return errs.ErrExists
	case err == nil:
		return s.removeAll(ctx)
	case errors.Is(err, errs.ErrNotFound):
		return s.p.clearUnrecorded()
	default:
		return err
	}
}

func (s *Session) create(ctx context.Context) error {
	p := s.p
	if err := makeDirs(p.files.poolsDir(), p.files.dir()); err != nil {
		return err
	}
	if err := pointCreateDir.Hit(); err != nil {
		return err
	}
	if err := makeDirs(p.files.blobs()); err != nil {
		return err
	}
	if err := metadata.Create(p.files.store(), p.record); err != nil { // syncs the folder
		return err
	}
	s.recorded = true
	if err := fsutil.SyncDir(p.files.poolsDir()); err != nil {
		return err
	}
	if err := pointCreateRecord.Hit(); err != nil {
		return err
	}
	b, err := p.backing()
	if err != nil {
		return err
	}
	if err := b.create(ctx); err != nil {
		return err
	}
	if err := s.activate(ctx, b, p.record); err != nil {
		return err
	}
	if err := pointCreateActive.Hit(); err != nil {
		return err
	}
	if err := s.Thin.SetTransactionID(0, p.record.TransactionID); err != nil {
		return err
	}
	if err := s.makeLabel(); err != nil {
		return err
	}
	if err := pointCreateLabelled.Hit(); err != nil {
		return err
	}
	err = s.Records.Update(ctx, func(tx *metadata.Tx) error {
		r, err := tx.Pool()
		if err != nil {
			return err
		}
		r.State, r.Backing = metadata.PoolReady, p.record.Backing // of which the backing has learned more
		return tx.PutPool(r)
	})
	if err == nil {
		_ = p.files.forgetDisk() // else the next start does it
	}
	return err
}

// load reads the record for Open. A pool that died while it was made or destroyed is cleaned up.
func (p *Pool) load(ctx context.Context) error {
	s, err := p.session(ctx)
	if err != nil {
		return err
	}
	defer s.Exit()
	if err := s.readRecord(ctx); err != nil {
		return p.notFound(err)
	}
	if p.record.State == metadata.PoolReady {
		return nil
	}
	// Its owner holds the lock for as long as he lives.
	ok, err := s.holder.TryLock(at(offsetStartStop), lockfile.Exclusive)
	if err != nil {
		return fmt.Errorf("pool %q: %w", p.files.name, err)
	}
	if !ok {
		return fmt.Errorf("pool %q is being made or destroyed: %w", p.files.name, errs.ErrBusy)
	}
	if err := s.readRecord(ctx); err != nil || p.record.State == metadata.PoolReady {
		return p.notFound(err)
	}
	p.log.Info("pool died while it was made or destroyed: removing the rest", "pool", p.files.name, "state", p.record.State)
	if err := s.vanish(ctx); err != nil {
		return fmt.Errorf("remove what is left of pool %q: %w", p.files.name, err)
	}
	return p.notFound(errs.ErrNotFound)
}

func (p *Pool) notFound(err error) error {
	if !errors.Is(err, errs.ErrNotFound) {
		return err
	}
	hint := "dmlayer pool create " + p.files.name + " makes it"
	if _, err := os.Stat(p.files.metadata()); err == nil {
		hint = "its record store is lost: dmlayer pool import " + p.files.dir() + " brings it back"
	}
	return errs.WithHint(fmt.Errorf("pool %q: %w", p.files.name, errs.ErrNotFound), hint)
}

func (s *Session) readRecord(ctx context.Context) error {
	err := s.Records.View(ctx, func(tx *metadata.Tx) (err error) {
		s.p.record, err = tx.Pool()
		return err
	})
	if err == nil && s.p.record.Name != s.p.files.name {
		// What it describes has other locks, and must not be touched under these.
		return s.p.mispaired("the record store is that of pool %q", s.p.record.Name)
	}
	return err
}

// Destroy takes a pool down and removes everything that Create made. It refuses with ErrBusy while
// any of its devices is in use; whether nodes may be lost is the caller's question.
func Destroy(ctx context.Context, dirs Dirs, name string) error {
	p, err := Open(ctx, dirs, name, nil)
	if err != nil {
		return err
	}
	defer p.Close()
	s, err := p.exclusive(ctx, "destroy")
	if err != nil {
		return err
	}
	defer s.Exit()
	if err := s.readRecord(ctx); err != nil { // somebody else may have been first
		return p.notFound(err)
	}
	if err := s.idle(ctx); err != nil {
		return fmt.Errorf("destroy pool %q: %w", name, err)
	}
	if err := s.p.present(ctx); err != nil {
		return fmt.Errorf("destroy pool %q: %w", name, err)
	}
	err = s.Records.Update(ctx, func(tx *metadata.Tx) error {
		r, err := tx.Pool()
		if err != nil {
			return err
		}
		r.State = metadata.PoolDestroying
		return tx.PutPool(r)
	})
	if err != nil {
		return fmt.Errorf("destroy pool %q: %w", name, err)
	}
	if err := pointDestroyRecord.Hit(); err != nil {
		return err
	}
	if err := s.vanish(ctx); err != nil {
		return fmt.Errorf("destroy pool %q: %w", name, err)
	}
	return nil
}

// vanish is removeAll and the lock file with it, as the last thing done under its lock: whoever waits
// for it finds that the file was removed and begins again with a new one.
func (s *Session) vanish(ctx context.Context) error {
	if err := s.removeAll(ctx); err != nil {
		return err
	}
	return removeFiles(s.p.locks.Path())
}

// removeAll takes away whatever there is of a pool whose record says creating or destroying, or has
// not been written. The start/stop lock is held exclusively. It can be repeated from any point.
func (s *Session) removeAll(ctx context.Context) error {
	p := s.p
	if p.record.UUID != "" {
		if err := s.deactivateAll(ctx); err != nil {
			return err
		}
		if err := pointDestroyDevices.Hit(); err != nil {
			return err
		}
		b, err := p.backing()
		if err != nil {
			return err
		}
		if err := b.remove(ctx); err != nil {
			return err
		}
		if err := pointDestroyBacking.Hit(); err != nil {
			return err
		}
		if err := os.RemoveAll(p.StateDir()); err != nil {
			return fmt.Errorf("remove pool %q: %w", p.files.name, err)
		}
		if err := p.removeBackups(); err != nil {
			return fmt.Errorf("remove pool %q: %w", p.files.name, err)
		}
	}
	if err := p.files.dropRenewals(); err != nil {
		return fmt.Errorf("remove pool %q: %w", p.files.name, err)
	}
	// The record goes after what it describes. What we did not make stays, and its folder with it.
	if err := os.RemoveAll(p.files.blobs()); err != nil {
		return fmt.Errorf("remove pool %q: %w", p.files.name, err)
	}
	if err := removeFiles(p.files.store()+".new", p.files.oldStore(), p.files.store()); err != nil {
		return fmt.Errorf("remove pool %q: %w", p.files.name, err)
	}
	removeEmpty(p.files.deviceDir())
	removeEmpty(p.files.mountDir())
	_ = os.Remove(p.files.dir())
	if err := fsutil.SyncDir(p.files.poolsDir()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// clearUnrecorded takes away what a Create left that was killed before it recorded anything: an empty
// folder. Files without a record are somebody's data.
func (p *Pool) clearUnrecorded() error {
	if err := removeFiles(p.files.store() + ".new"); err != nil {
		return err
	}
	_ = os.Remove(p.files.blobs())
	entries, err := os.ReadDir(p.files.dir())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(entries) > 0 {
		err := fmt.Errorf("%s holds %s and no record store: %w", p.files.dir(), entries[0].Name(), errs.ErrExists)
		return errs.WithHint(err, "dmlayer pool import "+p.files.dir()+" takes a pool over whose record store is lost; else move the folder out of the way")
	}
	return nil
}

// removeFiles removes files; one that is not there is no error.
func removeFiles(paths ...string) error {
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// removeEmpty removes a folder of links and of empty folders, such as mount points. It never enters
// one: something may be mounted there.
func removeEmpty(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() || e.Type()&os.ModeSymlink != 0 {
			_ = os.Remove(dir + "/" + e.Name())
		}
	}
	_ = os.Remove(dir)
}
