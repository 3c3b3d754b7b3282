package pool

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
)

// List returns the names of the pools under the root, sorted.
func List(_ context.Context, dirs Dirs) ([]string, error) {
	entries, err := os.ReadDir(files{dirs: dirs}.poolsDir())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list pools: %w", err)
	}
	names := []string{}
	for _, e := range entries {
		if _, err := os.Stat(files{dirs: dirs, name: e.Name()}.store()); err == nil {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Inspect tells what a pool is and how it is, without starting it.
func Inspect(ctx context.Context, dirs Dirs, name string) (Status, error) {
	p, err := Open(ctx, dirs, name, nil)
	if err != nil {
		return Status{}, err
	}
	defer p.Close()
	return p.Inspect(ctx)
}

// Inspect tells what the pool is and how it is, without starting it.
func (p *Pool) Inspect(ctx context.Context) (Status, error) {
	s, err := p.session(ctx)
	if err != nil {
		return Status{}, err
	}
	defer s.Exit()
	var st Status
	var record metadata.Pool
	var writable int64
	err = s.Records.View(ctx, func(tx *metadata.Tx) (err error) {
		if record, err = tx.Pool(); err != nil {
			return err
		}
		if writable, err = tx.Writable(); err != nil {
			return err
		}
		return tx.Nodes(func(n metadata.Node) error {
			st.count(n.Kind)
			return nil
		})
	})
	if err != nil {
		return st, p.notFound(err)
	}
	st.describe(record)
	st.describeSpace(record, writable)
	if record.Backing.Type == BackingLoopback {
		st.DataFile, st.MetadataFile = p.files.data(), p.files.metadata()
	}
	st.DataDevice, st.MetadataDevice = record.Backing.DataDevice, record.Backing.MetadataDevice
	backups, err := listBackups(p.files.backupDir(record.UUID))
	if err != nil {
		return st, fmt.Errorf("inspect pool %q: %w", p.files.name, err)
	}
	if st.Backups = len(backups); st.Backups > 0 {
		st.LastBackup = &backups[st.Backups-1].Taken
	}
	p.lookBelow(ctx, &st)
	err = s.look()
	switch {
	case errors.Is(err, devmapper.ErrNotFound):
		st.State = StateInactive
		return st, nil
	case err != nil:
		return st, fmt.Errorf("inspect pool %q: %w", p.files.name, kernelError(err))
	}
	if err := p.measure(ctx, &st, record, s.Status); err != nil {
		return st, fmt.Errorf("inspect pool %q: %w", p.files.name, err)
	}
	return st, nil
}

func (st *Status) count(k metadata.Kind) {
	switch k {
	case metadata.KindLayer:
		st.Layers++
	case metadata.KindSnapshot:
		st.Snapshots++
	case metadata.KindVolume:
		st.Volumes++
	}
}

func (st *Status) describe(r metadata.Pool) {
	st.Name, st.UUID, st.Backing, st.FS = r.Name, r.UUID, r.Backing.Type, r.FS
	st.BaseSize, st.BlockSize = r.BaseSize, r.BlockSize
	st.Discard, st.Zero, st.ForbidDevices, st.Created = r.Discard, !r.NoZero, r.ForbidDevices, r.Created
	st.MkfsOptions, st.MountOptions = orEmpty(r.MkfsOptions), orEmpty(r.MountOptions)
	st.TransactionID, st.SnapshotsTaken = &r.TransactionID, &r.SnapshotsTaken
	life := lifeOf(r, 0)
	st.SnapshotLimit, st.IDsTaken, st.IDLimit = life.SnapshotLimit, life.IDs, life.IDLimit
}

func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

// measure adds what only a running pool tells.
func (p *Pool) measure(ctx context.Context, st *Status, r metadata.Pool, k thinpool.PoolStatus) error {
	st.State = stateOf(k)
	if st.State == StateFailed {
		return nil
	}
	bytes := func(n uint64, unit int64) *int64 { v := int64(n) * unit; return &v }
	st.DataUsed, st.DataTotal = bytes(k.UsedData, r.BlockSize), bytes(k.TotalData, r.BlockSize)
	st.MetadataUsed, st.MetadataTotal = bytes(k.UsedMetadata, thinpool.MetadataBlockSize), bytes(k.TotalMetadata, thinpool.MetadataBlockSize)
	st.TransactionID = &k.TransactionID
	p.measureSpace(st, r, k)
	st.SnapshotsTaken = nil
	if taken, err := p.snapshotsTaken(r); err == nil { // else the metadata cannot be read, and nothing is known
		st.SnapshotsTaken = &taken
	}
	b, err := p.backing()
	if err != nil {
		return err
	}
	st.DataDevice, st.MetadataDevice, err = b.paths(ctx)
	return err
}

func stateOf(k thinpool.PoolStatus) string {
	switch {
	case k.Mode == thinpool.ModeFail || k.Mode == thinpool.ModeError:
		return StateFailed
	case k.NeedsCheck:
		return StateNeedsCheck
	case k.Mode == thinpool.ModeReadOnly:
		return StateReadOnly
	case k.Mode == thinpool.ModeOutOfDataSpace:
		return StateOutOfDataSpace
	}
	return StateActive
}

// Life is what the status says of it.
func (st Status) Life() Life {
	l := Life{SnapshotLimit: st.SnapshotLimit, IDs: st.IDsTaken, IDLimit: st.IDLimit}
	if st.SnapshotsTaken != nil {
		l.Snapshots = *st.SnapshotsTaken
	}
	return l
}
