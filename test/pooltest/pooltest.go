// Package pooltest makes pools for tests on a real kernel and checks them afterwards: records, thin
// devices, dm devices, loop devices, mounts, claims and side files must agree, and thin_check must be
// content.
package pooltest

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
)

// PoolName is the name of the pools that New makes.
const PoolName = "test"

// Env is a pool of a test.
type Env struct {
	Dirs pool.Dirs
	Name string

	// Of a pool that NewDevice has made.
	DataDisk, MetadataDisk *LoopDisk
}

// Config returns what layer.Open needs.
func (e *Env) Config() layer.Config { return layer.Config{Dirs: e.Dirs, Pool: e.Name} }

// Paths of what the tests tamper with.
func (e *Env) Store() string    { return filepath.Join(e.Dirs.Root, "pools", e.Name, "records.db") }
func (e *Env) Data() string     { return filepath.Join(e.Dirs.Root, "pools", e.Name, "data") }
func (e *Env) Metadata() string { return filepath.Join(e.Dirs.Root, "pools", e.Name, "metadata") }

// MountPoint returns where a node is mounted by default.
func (e *Env) MountPoint(node string) string { return filepath.Join(e.Dirs.Run, "mnt", e.Name, node) }

// FSSize returns the size of the file system that dir is on, in bytes.
func FSSize(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return int64(st.Blocks) * st.Bsize, nil
}

// Dirs returns fresh root and run directories.
func Dirs(t testing.TB) pool.Dirs {
	t.Helper()
	dir := t.TempDir()
	return pool.Dirs{Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run")}
}

// New makes a loopback pool that is checked and destroyed when the test ends. Zero sizes in spec
// become small ones.
func New(t testing.TB, spec pool.Spec) *Env {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.ThinCheck)
	e := &Env{Dirs: Dirs(t), Name: PoolName}
	spec.Name = e.Name
	if spec.DataSize == 0 {
		spec.DataSize = 2 << 30
	}
	if spec.BaseSize == 0 {
		spec.BaseSize = 1 << 30
	}
	if err := pool.Create(Context(t), e.Dirs, spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.finish(t) })
	return e
}

// Context returns a context that ends before the test's deadline.
func Context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Scale(2*time.Minute))
	t.Cleanup(cancel)
	return ctx
}

// Open opens the pool's nodes for the length of the test.
func (e *Env) Open(t testing.TB) *layer.Store {
	t.Helper()
	s, err := layer.Open(Context(t), e.Config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (e *Env) finish(t testing.TB) {
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Scale(time.Minute))
	defer cancel()
	if _, err := os.Stat(e.Store()); errors.Is(err, os.ErrNotExist) {
		return // the test destroyed it
	}
	if err := e.Check(ctx); err != nil {
		t.Errorf("check after the test: %v", err)
	}
	e.unmountAll(ctx, t)
	e.dropClaims(t)
	if err := pool.Destroy(ctx, e.Dirs, e.Name); err != nil {
		t.Errorf("destroy: %v", err)
	}
}

// unmountAll lets a test that failed in the middle end without leaving mounts.
func (e *Env) unmountAll(ctx context.Context, t testing.TB) {
	mounts, err := fsutil.Mounts()
	if err != nil {
		t.Error(err)
	}
	for _, m := range slices.Backward(mounts) {
		if strings.HasPrefix(m.Dir, e.Dirs.Run+"/") || strings.HasPrefix(m.Dir, filepath.Dir(e.Dirs.Run)+"/") && strings.HasPrefix(m.Source, "/dev/dm-") {
			if err := fsutil.Unmount(ctx, m.Dir, fsutil.UnmountOptions{}); err != nil {
				t.Errorf("left mounted: %v", err)
			}
		}
	}
}

func (e *Env) dropClaims(t testing.TB) {
	claims, _ := filepath.Glob(filepath.Join(e.Dirs.Run, "state", "*", "claims"))
	for _, c := range claims {
		if err := os.RemoveAll(c); err != nil {
			t.Error(err)
		}
	}
}

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
			if f.Class != pool.Harmless {
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

// LockFile returns the pool's lock file, which also holds the cursor of thin ids.
func (e *Env) LockFile(t testing.TB) string {
	t.Helper()
	path, err := e.lockFile()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func (e *Env) lockFile() (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(e.Dirs.Root, &st); err != nil {
		return "", fmt.Errorf("root directory %s: %w", e.Dirs.Root, err)
	}
	return filepath.Join(e.Dirs.Run, "lock", fmt.Sprintf("%s-%x-%x", e.Name, st.Dev, st.Ino)), nil
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

// thinDump is what thin_dump says of a pool's metadata.
type thinDump struct {
	TransactionID uint64 `xml:"transaction,attr"`
	Devices       []struct {
		ID uint64 `xml:"dev_id,attr"`
	} `xml:"device"`
}

// dumpThins runs thin_check and thin_dump.
func dumpThins(ctx context.Context, file string) (dump thinDump, err error) {
	if st, err := os.Stat(file); err == nil && st.Mode()&os.ModeDevice != 0 {
		return dumpDevice(ctx, file)
	}
	// The tools want direct I/O, which a loop device has whatever the file lies on.
	loop, err := fsutil.Attach(ctx, fsutil.LoopOptions{Path: file, ReadOnly: true})
	if err != nil {
		return dump, err
	}
	defer func() { err = errors.Join(err, loop.Close(), fsutil.Detach(ctx, loop.Number)) }()
	return dumpDevice(ctx, loop.Path)
}

func dumpDevice(ctx context.Context, path string) (dump thinDump, err error) {
	if out, err := exec.CommandContext(ctx, "thin_check", path).CombinedOutput(); err != nil {
		return dump, fmt.Errorf("thin_check: %w\n%s", err, out)
	}
	out, err := exec.CommandContext(ctx, "thin_dump", path).Output()
	if err != nil {
		return dump, fmt.Errorf("thin_dump: %w", err)
	}
	if err := xml.Unmarshal(out, &dump); err != nil {
		return dump, fmt.Errorf("thin_dump: %w", err)
	}
	return dump, nil
}

// checkThins compares the thin devices with the records.
func (r *records) checkThins(ctx context.Context, file string) (err error) {
	dump, err := dumpThins(ctx, file)
	if err != nil {
		return err
	}
	if dump.TransactionID != r.pool.TransactionID || r.pool.Pending {
		return fmt.Errorf("pool has transaction %d, the store %d, pending %v", dump.TransactionID, r.pool.TransactionID, r.pool.Pending)
	}
	var all error
	thins := map[metadata.ThinID]bool{}
	for _, d := range dump.Devices {
		id := metadata.ThinID(d.ID)
		thins[id] = true
		if _, ok := r.nodes[id]; !ok && id != 0 && !r.tombs[id] {
			all = errors.Join(all, fmt.Errorf("thin device %d belongs to no node", id))
		}
	}
	if !thins[0] {
		all = errors.Join(all, errors.New("the label is gone"))
	}
	for id, n := range r.nodes {
		if !thins[id] {
			all = errors.Join(all, fmt.Errorf("node %q has no thin device %d", n.Name, id))
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
