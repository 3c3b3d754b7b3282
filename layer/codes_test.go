package layer_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// codesOf returns the codes of all that is found, each once.
func codesOf(r pool.CheckReport) (list []string) {
	for _, f := range r.Findings {
		list = append(list, f.Code)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func wantCodes(t testing.TB, e *pooltest.Env, want ...string) {
	t.Helper()
	slices.Sort(want)
	if r := checkPool(t, e); !slices.Equal(codesOf(r), want) {
		t.Errorf("found %q, want %q: %+v", codesOf(r), want, r.Findings)
	}
}

// A file system that its owner mounted read-only, or made so, is none that the kernel stopped; one that has run into an error is.
func TestCheckReadOnlyMounts(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	ctx := pooltest.Context(t)
	makeSnapshot(t, s, "vm", "")
	asVM(t, s, "vm", func(device string) {
		dir := t.TempDir()
		must(t, unix.Mount(device, dir, "ext4", unix.MS_RDONLY, ""))
		wantCodes(t, e)
		must(t, unix.Unmount(dir, 0))
	})
	makeSnapshot(t, s, "web", "")
	m := mount(t, s, "web")
	must(t, unix.Mount("", m, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	wantCodes(t, e)
	unmount(t, s, "web")

	mount(t, s, "web")
	info, err := s.Inspect(ctx, "web")
	must(t, err)
	must(t, os.WriteFile(filepath.Join("/sys/fs/ext4", filepath.Base(info.Device), "trigger_fs_error"), []byte("test"), 0))
	count := filepath.Join("/sys/fs/ext4", filepath.Base(info.Device), "errors_count")
	for n := []byte("0\n"); string(n) == "0\n"; { // it is counted by a worker of the kernel's
		must(t, ctx.Err())
		n, err = os.ReadFile(count)
		must(t, err)
	}
	wantCodes(t, e, pool.FoundMountReadOnly)
	unmount(t, s, "web")
	_, err = s.Fsck(ctx, "web", true)
	must(t, err)
	wantCodes(t, e)
}

// codes are findings that can be made cheaply of a pool with the layer "base" and the snapshot "web".
var codes = []struct {
	code string
	stop bool // the pool is stopped before
	make func(x tamperer)
	undo func(x tamperer)
}{
	{
		code: pool.FoundDeviceSize,
		make: func(x tamperer) {
			x.activate(x.ours(x.id("web")), x.id("web"), node(x.t, x.e, "web").Size/2, false)
			x.claim("web")
		},
		undo: func(x tamperer) { must(x.t, x.s.Detach(pooltest.Context(x.t), "web")) },
	},
	{code: pool.FoundClaimIdle, make: func(x tamperer) { x.claim("web") }, undo: func(x tamperer) { must(x.t, x.s.Detach(pooltest.Context(x.t), "web")) }},
	{
		code: pool.FoundPoolSuspended,
		make: func(x tamperer) { x.suspend("pool") }, undo: func(x tamperer) { x.resume("pool") },
	},
	{
		code: pool.FoundPoolSuspended, // whoever asks it for its metadata waits
		make: func(x tamperer) { x.suspend("metadata") }, undo: func(x tamperer) { x.resume("metadata") },
	},
	{
		code: pool.FoundAboveWindow,
		make: func(x tamperer) { x.record(func(p *metadata.Pool) { p.LowID, p.HighID = 2, 2 }) },
	},
	{
		code: pool.FoundPairing,
		make: func(x tamperer) { x.record(func(p *metadata.Pool) { p.TransactionID += 77 }) },
	},
	{
		code: pool.FoundMetadataForeign, stop: true, // metadata of a pool with blocks of another size
		make: func(x tamperer) { x.record(func(p *metadata.Pool) { p.BlockSize *= 2 }) },
	},
	{
		code: pool.FoundPairingBehind, stop: true,
		make: func(x tamperer) { x.record(func(p *metadata.Pool) { p.TransactionID++; p.Pending = true }) },
	},
	{
		code: pool.FoundStartDied, stop: true,
		make: func(x tamperer) {
			must(x.t, os.MkdirAll(x.runDir(), 0o700))
			must(x.t, os.WriteFile(x.runDir("starting"), nil, 0o600))
		},
		undo: func(x tamperer) { must(x.t, os.Remove(x.runDir("starting"))) },
	},
	{
		code: pool.FoundBackingSize, stop: true,
		make: func(x tamperer) {
			st, err := os.Stat(x.e.Data())
			must(x.t, err)
			must(x.t, os.Truncate(x.e.Data(), st.Size()-1<<20))
			x.t.Cleanup(func() { must(x.t, os.Truncate(x.e.Data(), st.Size())) })
		},
	},
	{
		code: pool.FoundLabel, stop: true, // another byte in its text, which its sum is of
		make: func(x tamperer) { x.flip(x.e.Data(), x.labelAt()+30) },
		undo: func(x tamperer) { x.flip(x.e.Data(), x.labelAt()+30) },
	},
	{
		code: pool.FoundBackingLeft, stop: true,
		make: func(x tamperer) {
			loop, err := fsutil.Attach(pooltest.Context(x.t), fsutil.LoopOptions{Path: x.e.Data()})
			must(x.t, err)
			x.t.Cleanup(func() {
				must(x.t, loop.Close())
				must(x.t, fsutil.Detach(context.WithoutCancel(pooltest.Context(x.t)), loop.Number))
			})
		},
	},
	{
		code: pool.FoundRecordsUnreadable, stop: true,
		make: func(x tamperer) { must(x.t, os.WriteFile(x.e.Store(), make([]byte, 1<<15), 0o600)) },
	},
	{
		code: pool.FoundRecordsParent, stop: true,
		make: func(x tamperer) {
			x.records(func(tx *metadata.Tx) error {
				n, err := tx.Node("base")
				if err != nil {
					return err
				}
				return tx.DeleteNode(n.Key)
			})
		},
	},
	{
		code: pool.FoundRecordsDocument, stop: true,
		make: func(x tamperer) {
			x.records(func(tx *metadata.Tx) error {
				n, err := tx.Node("web")
				if err != nil {
					return err
				}
				if err := tx.PutDocument(metadata.Document{Kind: "test", Key: "k", Nodes: []metadata.Key{n.Key}, Data: []byte("{}")}); err != nil {
					return err
				}
				return tx.DeleteNode(n.Key)
			})
		},
	},
}

func (x tamperer) suspend(suffix string) {
	x.t.Helper()
	must(x.t, x.dm().Suspend(pooltest.Context(x.t), x.ref(suffix), devmapper.SuspendOptions{NoLockFS: true}))
}

func (x tamperer) resume(suffix string) {
	x.t.Helper()
	_, err := x.dm().Resume(x.ref(suffix), devmapper.ResumeOptions{})
	must(x.t, err)
}

// claim says that a node is attached.
func (x tamperer) claim(name string) {
	x.t.Helper()
	dir := x.runDir("claims", strconv.Itoa(int(x.id(name))))
	must(x.t, os.MkdirAll(dir, 0o700))
	must(x.t, os.WriteFile(filepath.Join(dir, "attached"), nil, 0o600))
}

func (x tamperer) records(fn func(tx *metadata.Tx) error) {
	x.t.Helper()
	must(x.t, x.e.Tamper(pooltest.Context(x.t), fn))
}

func (x tamperer) record(fn func(p *metadata.Pool)) {
	x.t.Helper()
	x.records(func(tx *metadata.Tx) error {
		p, err := tx.Pool()
		if err != nil {
			return err
		}
		fn(&p)
		return tx.PutPool(p)
	})
}

// labelAt is where the label is in the data file of a stopped pool.
func (x tamperer) labelAt() int64 {
	x.t.Helper()
	b, err := os.ReadFile(x.e.Metadata())
	must(x.t, err)
	m, err := thinmeta.Open(bytes.NewReader(b), thinmeta.Options{})
	must(x.t, err)
	for run, err := range m.Mappings(pooltest.Context(x.t), 0) {
		must(x.t, err)
		return int64(run.Data) * int64(m.Superblock().DataBlockSize) * devmapper.SectorSize
	}
	x.t.Fatal("no label")
	return 0
}

func (x tamperer) flip(path string, at int64) {
	x.t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(x.t, err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	must(x.t, err)
	b[0] ^= 1
	_, err = f.WriteAt(b, at)
	must(x.t, errors.Join(err, f.Sync(), f.Close()))
}

// TestCheckCodes makes what is behind findings that no other test makes. The records are put back as they were.
func TestCheckCodes(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	makeLayer(t, s, "base", "", baseFiles)
	makeSnapshot(t, s, "web", "base")
	x := tamperer{t: t, e: e, s: s, uuid: checkPool(t, e).UUID}
	stopped := false
	for _, c := range codes {
		t.Run(c.code, func(t *testing.T) {
			x := x
			x.t = t
			if c.stop && !stopped {
				must(t, pool.Stop(pooltest.Context(t), e.Dirs, e.Name))
				stopped = true
			}
			wantCodes(t, e)
			before, err := os.ReadFile(e.Store())
			must(t, err)
			t.Cleanup(func() { must(t, os.WriteFile(e.Store(), before, 0o600)) })
			c.make(x)
			r := checkPool(t, e)
			if !r.Has(c.code) {
				t.Errorf("found %+v, want %s", r.Findings, c.code)
			}
			if c.undo != nil {
				c.undo(x)
			}
		})
	}
	wantCodes(t, e)
}
