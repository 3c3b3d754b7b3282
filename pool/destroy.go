package pool

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
)

var (
	pointDestroyRecord  = fault.New("pool.destroy.recorded")
	pointDestroyDevices = fault.New("pool.destroy.devices")
	pointDestroyBacking = fault.New("pool.destroy.backing")
)

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

// removeFiles removes files; one that is not there is no error, on a file system that is read-only neither.
func removeFiles(paths ...string) error {
	for _, path := range paths {
		if err := os.Remove(path); err != nil && exists(path) {
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
