package pooltest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
)

// CheckLive opens the pool, which recovers it, and compares records, devices and side files.
func (e *Env) CheckLive(ctx context.Context) error {
	_, err := e.checkLive(ctx)
	return err
}

func (e *Env) checkLive(ctx context.Context) (*records, error) {
	var said strings.Builder
	config := e.Config()
	config.Logger = slog.New(slog.NewTextHandler(&said, nil))
	s, err := layer.Open(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	if err := s.Close(); err != nil {
		return nil, err
	}
	r, err := e.read(ctx)
	if err != nil {
		return nil, err
	}
	err = errors.Join(e.checkFindings(ctx), e.checkDevices(r), r.checkBlobs(e), e.checkState(r))
	if err != nil && said.Len() > 0 {
		err = fmt.Errorf("%w\nthe open before said: %s", err, said.String())
	}
	return r, err
}

// checkFindings is the product's own check, which must find nothing that the open before it should have mended, or that
// nothing mends.
func (e *Env) checkFindings(ctx context.Context) error {
	report, err := pool.Check(ctx, e.Dirs, e.Name, pool.CheckOptions{})
	if err != nil {
		return err
	}
	for _, f := range report.Findings {
		switch f.Code {
		case pool.FoundRemoval, pool.FoundDeviceSize: // of what is open elsewhere; of what the next mount grows
		case pool.FoundMetadataLow: // the test has filled it
		default:
			if f.Class != pool.Harmless || f.Code == pool.FoundDeviceUnused { // dmlayer itself must not leave one
				err = errors.Join(err, fmt.Errorf("pool check: %s: %s: %s", f.Code, f.Object, f.Detail))
			}
		}
	}
	return err
}

// Check is CheckLive; where nothing is in use it then stops the pool and compares with what really is in
// its metadata.
func (e *Env) Check(ctx context.Context) error {
	r, err := e.checkLive(ctx)
	if err != nil {
		return err
	}
	err = pool.Stop(ctx, e.Dirs, e.Name)
	if errors.Is(err, errs.ErrBusy) {
		return nil
	}
	if err != nil {
		return err
	}
	if r.pool.Backing.Type == pool.BackingLVM {
		return r.checkVolumes(ctx)
	}
	file, done, err := e.metadataFile(ctx)
	if err != nil {
		return err
	}
	defer done()
	return errors.Join(r.checkThins(ctx, file), checkDetached(e.Data()), checkDetached(e.Metadata()))
}

// records is what the store says.
type records struct {
	pool  metadata.Pool
	nodes map[metadata.ThinID]metadata.Node
	tombs map[metadata.ThinID]bool
}

type noLock struct{}

func (noLock) LockStore(context.Context, bool) (func(), error) { return func() {}, nil }

func (e *Env) read(ctx context.Context) (*records, error) {
	r := &records{nodes: map[metadata.ThinID]metadata.Node{}, tombs: map[metadata.ThinID]bool{}}
	store := metadata.New(e.Store(), noLock{})
	defer store.Close()
	err := store.View(ctx, func(tx *metadata.Tx) (err error) {
		if r.pool, err = tx.Pool(); err != nil {
			return err
		}
		tombs, err := tx.Tombstones()
		if err != nil {
			return err
		}
		for _, t := range tombs {
			r.tombs[t.ID] = true
		}
		return tx.Nodes(func(n metadata.Node) error {
			r.nodes[n.ID] = n
			if n.Parent == 0 {
				return nil
			}
			_, err := tx.NodeByKey(n.Parent)
			return err
		})
	})
	return r, err
}

// checkDevices compares the kernel's devices with the records: none of another's, none suspended.
func (e *Env) checkDevices(r *records) error {
	c, err := devmapper.Open()
	if err != nil {
		return err
	}
	defer c.Close()
	prefix := "DMLAYER-" + r.pool.UUID + "-"
	list, err := c.List(devmapper.UUID(prefix))
	if err != nil {
		return err
	}
	var all error
	for _, d := range list {
		info, err := c.Info(devmapper.ByUUID(d.UUID))
		if err != nil {
			all = errors.Join(all, err)
			continue
		}
		if info.Suspended || !info.Active {
			all = errors.Join(all, fmt.Errorf("device %s is suspended or has no table: %+v", d.UUID, info))
		}
		suffix := strings.TrimPrefix(string(d.UUID), prefix)
		if suffix == "pool" || suffix == "metadata" || suffix == "data" {
			continue
		}
		id, err := strconv.ParseUint(suffix, 10, 24)
		if err != nil {
			all = errors.Join(all, fmt.Errorf("device %s: %w", d.UUID, err))
			continue
		}
		n, ok := r.nodes[metadata.ThinID(id)]
		switch {
		case !ok && !(r.tombs[metadata.ThinID(id)] && info.OpenCount > 0):
			all = errors.Join(all, fmt.Errorf("device %s belongs to no node", d.UUID))
		case ok && info.OpenCount == 0 && !e.claimed(r, id):
			all = errors.Join(all, fmt.Errorf("node %q is active and nobody uses it", n.Name))
		case ok && n.Kind == metadata.KindLayer && !info.ReadOnly:
			all = errors.Join(all, fmt.Errorf("layer %q is active for writing", n.Name))
		}
	}
	return all
}

func (e *Env) claimed(r *records, id uint64) bool {
	claims, _ := os.ReadDir(filepath.Join(e.Dirs.Run, "state", r.pool.UUID, "claims", strconv.FormatUint(id, 10)))
	return len(claims) > 0
}

// checkState looks for marks of what was going on when somebody died, which recovery takes away, and for
// claims on nodes that are no more.
func (e *Env) checkState(r *records) error {
	state := filepath.Join(e.Dirs.Run, "state", r.pool.UUID)
	var all error
	if _, err := os.Lstat(filepath.Join(state, "starting")); err == nil {
		all = errors.Join(all, errors.New("the mark of a start was left behind"))
	}
	path, err := e.lockFile()
	if err != nil {
		return errors.Join(all, err)
	}
	lock, err := os.ReadFile(path)
	if err != nil {
		return errors.Join(all, err)
	}
	const marks = 4096 // pool/marks.go
	for id, b := range lock[min(marks, len(lock)):] {
		if b != 0 {
			all = errors.Join(all, fmt.Errorf("the mark of thin id %d was left behind", id))
		}
	}
	claims, err := filepath.Glob(filepath.Join(state, "claims", "*"))
	for _, c := range claims {
		id, err := strconv.ParseUint(filepath.Base(c), 10, 24)
		if _, ok := r.nodes[metadata.ThinID(id)]; err != nil || !ok {
			all = errors.Join(all, err, fmt.Errorf("claim %s on no node", c))
		}
	}
	links, lerr := filepath.Glob(filepath.Join(e.Dirs.Run, "dev", e.Name, "*"))
	for _, l := range links {
		if _, err := os.Stat(l); err != nil {
			all = errors.Join(all, fmt.Errorf("link without a device: %w", err))
		}
	}
	return errors.Join(all, err, lerr)
}

func (r *records) checkBlobs(e *Env) error {
	entries, err := os.ReadDir(filepath.Join(e.Dirs.Root, "pools", e.Name, "blobs"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var all error
	for _, f := range entries {
		n, err := strconv.ParseUint(f.Name(), 10, 24)
		if _, ok := r.nodes[metadata.ThinID(n)]; err != nil || !ok {
			all = errors.Join(all, fmt.Errorf("side files %s belong to no node", f.Name()))
		}
	}
	return all
}

func checkDetached(path string) error {
	loops, err := fsutil.FindLoops(path)
	if err != nil {
		return err
	}
	if len(loops) > 0 {
		return fmt.Errorf("%s is still attached to %s", path, loops[0].Path)
	}
	return nil
}
