package pool_test

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustFail(t testing.TB, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Fatalf("got %v, want %v", err, class)
	}
}

var small = pool.Spec{DataSize: 256 << 20, BaseSize: 64 << 20}

func newPool(t *testing.T) *pooltest.Env { return pooltest.New(t, small) }

func state(t testing.TB, e *pooltest.Env) pool.Status {
	t.Helper()
	st, err := pool.Inspect(pooltest.Context(t), e.Dirs, e.Name)
	must(t, err)
	return st
}

func TestStartStop(t *testing.T) {
	e := newPool(t)
	ctx := pooltest.Context(t)
	if st := state(t, e); st.State != pool.StateActive || st.DataUsed == nil || st.DataDevice == "" {
		t.Errorf("after create: %+v", st)
	}
	for range 2 { // the second time it is no error
		must(t, pool.Stop(ctx, e.Dirs, e.Name))
		if st := state(t, e); st.State != pool.StateInactive || st.DataUsed != nil || st.DataDevice != "" {
			t.Errorf("after stop: %+v", st)
		}
	}
	for range 2 {
		must(t, pool.Start(ctx, e.Dirs, e.Name))
		if st := state(t, e); st.State != pool.StateActive {
			t.Errorf("after start: %+v", st)
		}
	}
	mustFail(t, pool.Create(ctx, e.Dirs, pool.Spec{Name: e.Name, DataSize: 1 << 30}), errs.ErrExists)
	names, err := pool.List(ctx, e.Dirs)
	must(t, err)
	if len(names) != 1 || names[0] != e.Name {
		t.Errorf("pools %v", names)
	}
}

func TestUnknownPool(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM)
	dirs, ctx := pooltest.Dirs(t), pooltest.Context(t)
	for what, op := range map[string]func() error{
		"start":   func() error { return pool.Start(ctx, dirs, "none") },
		"stop":    func() error { return pool.Stop(ctx, dirs, "none") },
		"destroy": func() error { return pool.Destroy(ctx, dirs, "none") },
		"inspect": func() error { _, err := pool.Inspect(ctx, dirs, "none"); return err },
	} {
		if err := op(); !errors.Is(err, errs.ErrNotFound) || errs.Hint(err) == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// While something is mounted or claimed, the pool is neither stopped nor destroyed, and who uses it is
// named.
func TestBusyPool(t *testing.T) {
	e := newPool(t)
	ctx := pooltest.Context(t)
	s := e.Open(t)
	_, err := s.CreateSnapshot(ctx, "web", layer.SnapshotOptions{})
	must(t, err)
	refused := func(who string) {
		t.Helper()
		for _, op := range []func(context.Context, pool.Dirs, string) error{pool.Stop, pool.Destroy} {
			err := op(ctx, e.Dirs, e.Name)
			mustFail(t, err, errs.ErrBusy)
			if !strings.Contains(err.Error(), who) || errs.Hint(err) == "" {
				t.Errorf("it does not say who: %v", err)
			}
		}
		if st := state(t, e); st.State != pool.StateActive {
			t.Errorf("%s", st.State)
		}
	}
	m, err := s.Mount(ctx, "web", "", layer.MountOptions{})
	must(t, err)
	refused(m.Dir)
	must(t, s.Unmount(ctx, "web"))
	_, err = s.Attach(ctx, "web", false)
	must(t, err)
	refused("attached")
	must(t, s.Detach(ctx, "web"))
}

// Somebody's files without a record are not taken for a pool, nor overwritten.
func TestCreateOverSomebodysFiles(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop)
	dirs, ctx := pooltest.Dirs(t), pooltest.Context(t)
	spec := small
	spec.Name = "p"
	data := filepath.Join(dirs.Root, "pools", "p", "data")
	must(t, os.MkdirAll(filepath.Dir(data), 0o700))
	must(t, os.WriteFile(data, []byte("precious"), 0o600))
	err := pool.Create(ctx, dirs, spec)
	mustFail(t, err, errs.ErrExists)
	if text, _ := os.ReadFile(data); string(text) != "precious" || errs.Hint(err) == "" {
		t.Errorf("%q, %v", text, err)
	}
}

// A store and files that do not belong together are refused, and nothing is changed.
func TestSwappedPools(t *testing.T) {
	a := newPool(t)
	ctx := pooltest.Context(t)
	b := &pooltest.Env{Dirs: a.Dirs, Name: "other"}
	spec := small
	spec.Name = b.Name
	must(t, pool.Create(ctx, b.Dirs, spec))
	files := func(e *pooltest.Env) []string { return []string{e.Metadata(), e.Data(), e.Store()} }
	stop := func() {
		for _, e := range []*pooltest.Env{a, b} {
			must(t, pool.Stop(ctx, e.Dirs, e.Name))
		}
	}
	swap := func(i int) {
		tmp := files(a)[i] + ".tmp"
		must(t, os.Rename(files(a)[i], tmp))
		must(t, os.Rename(files(b)[i], files(a)[i]))
		must(t, os.Rename(tmp, files(b)[i]))
	}
	for i, what := range []string{"metadata", "data", "store"} {
		stop()
		before, err := pooltest.Checksum(a.Metadata())
		must(t, err)
		swap(i)
		for _, e := range []*pooltest.Env{a, b} {
			if err := pool.Start(ctx, e.Dirs, e.Name); !errors.Is(err, errs.ErrDamaged) || errs.Hint(err) == "" {
				t.Errorf("%s of another pool: %v", what, err)
			}
			if st, err := pool.Inspect(ctx, e.Dirs, e.Name); !errors.Is(err, errs.ErrDamaged) && st.State != pool.StateInactive {
				t.Errorf("%s of another pool: %s, %v", what, st.State, err)
			}
		}
		swap(i)
		after, err := pooltest.Checksum(a.Metadata())
		must(t, err)
		if i == 0 && before != after {
			t.Error("refusing changed the metadata")
		}
		must(t, pool.Start(ctx, a.Dirs, a.Name))
	}
	must(t, pool.Destroy(ctx, b.Dirs, b.Name))
}

// The kernel formats a blank metadata device: such a one is never activated.
func TestDamagedMetadata(t *testing.T) {
	e := newPool(t)
	ctx := pooltest.Context(t)
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	good, err := os.ReadFile(e.Metadata())
	must(t, err)
	cases := map[string][]byte{
		"blank":   make([]byte, 4096),
		"rubbish": []byte(strings.Repeat("rubbish!", 512)),
		"a flipped bit": func() []byte {
			b := append([]byte(nil), good[:4096]...)
			b[112] ^= 1
			return b
		}(),
	}
	for what, block := range cases {
		t.Run(what, func(t *testing.T) {
			put(t, e.Metadata(), block)
			_, err := layer.Open(ctx, e.Config())
			mustFail(t, err, errs.ErrDamaged)
			if errs.Hint(err) == "" {
				t.Error("no hint")
			}
			now, err := os.ReadFile(e.Metadata())
			must(t, err)
			if string(now[:4096]) != string(block) || string(now[4096:]) != string(good[4096:]) {
				t.Error("the metadata was changed")
			}
			put(t, e.Metadata(), good[:4096])
		})
	}
	must(t, pool.Start(ctx, e.Dirs, e.Name))
}

func put(t testing.TB, path string, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt(b, 0)
	must(t, errors.Join(err, f.Sync(), f.Close()))
}

// A file that is gone, or of another size than it should have.
func TestBackingFilesOfTheWrongSize(t *testing.T) {
	e := newPool(t)
	ctx := pooltest.Context(t)
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	for _, file := range []string{e.Data(), e.Metadata()} {
		must(t, os.Rename(file, file+".away"))
		if err := pool.Start(ctx, e.Dirs, e.Name); err == nil {
			t.Errorf("started without %s", file)
		}
		must(t, os.Rename(file+".away", file))
	}
	must(t, os.Truncate(e.Data(), 128<<20))
	if err := pool.Start(ctx, e.Dirs, e.Name); err == nil {
		t.Error("started on half of the data")
	}
	must(t, os.Truncate(e.Data(), 256<<20))
	must(t, pool.Start(ctx, e.Dirs, e.Name))
}

// Somebody else's device has our pool's name: it is neither used nor removed.
func TestForeignDeviceUnderOurName(t *testing.T) {
	e := newPool(t)
	ctx := pooltest.Context(t)
	name := devmapper.Name("dmlayer-" + state(t, e).UUID[:12] + "-pool")
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	c, err := devmapper.Open()
	must(t, err)
	defer c.Close()
	_, err = c.Create(name, "SOMEBODY-else")
	must(t, err)
	defer func() {
		_, err := c.Remove(devmapper.ByUUID("SOMEBODY-else"), devmapper.RemoveOptions{})
		must(t, err)
		must(t, pool.Start(ctx, e.Dirs, e.Name))
	}()
	if err := pool.Start(ctx, e.Dirs, e.Name); err == nil {
		t.Fatal("started")
	}
	if _, err := c.Info(devmapper.ByName(name)); err != nil {
		t.Errorf("the foreign device: %v", err)
	}
	if st := state(t, e); st.State != pool.StateInactive {
		t.Error(st.State)
	}
}

// The host file system under root is too small: creating says so and leaves nothing.
func TestCreateOnAFullHost(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop)
	dirs, ctx := pooltest.Dirs(t), pooltest.Context(t)
	tmpfs(t, dirs.Root, "8m")
	spec := small
	spec.Name, spec.MetadataSize = "p", 16<<20
	err := pool.Create(ctx, dirs, spec)
	mustFail(t, err, errs.ErrNoSpace)
	left, err := filepath.Glob(filepath.Join(dirs.Root, "pools", "*"))
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func tmpfs(t testing.TB, dir, size string) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o700))
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size))
	t.Cleanup(func() { must(t, fsutil.Unmount(context.Background(), dir, fsutil.UnmountOptions{})) })
}

// The host file system fills up under a pool's data file: writers get errors, nothing hangs, removing
// works, and room on the host heals it.
func TestHostFillsUp(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.ThinCheck)
	dirs, ctx := pooltest.Dirs(t), pooltest.Context(t)
	tmpfs(t, dirs.Root, "140m")
	ballast := filepath.Join(dirs.Root, "ballast")
	must(t, os.WriteFile(ballast, make([]byte, 24<<20), 0o600))
	e := &pooltest.Env{Dirs: dirs, Name: pooltest.PoolName}
	spec := small
	spec.Name, spec.MetadataSize = e.Name, 4<<20
	must(t, pool.Create(ctx, dirs, spec))
	t.Cleanup(func() { must(t, pool.Destroy(context.Background(), dirs, e.Name)) })
	fillUp(t, e, func() { must(t, os.Remove(ballast)) })
}

// A pool fills up: writers get errors, nothing hangs, removing works, and heals it.
func TestPoolFillsUp(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			spec := small
			spec.FS, spec.DataSize = fs, 96<<20
			if fs == "xfs" {
				spec.BaseSize = 300 << 20
			}
			fillUp(t, pooltest.New(t, spec), func() {})
		})
	}
}

// fillUp writes until there is no room left, and heals it.
func fillUp(t *testing.T, e *pooltest.Env, heal func()) {
	ctx := pooltest.Context(t)
	s := e.Open(t)
	mounted := func(name string) string {
		_, err := s.CreateSnapshot(ctx, name, layer.SnapshotOptions{})
		must(t, err)
		m, err := s.Mount(ctx, name, "", layer.MountOptions{})
		must(t, err)
		return m.Dir
	}
	keep := mounted("keep")
	must(t, os.WriteFile(filepath.Join(keep, "kept"), []byte("safe"), 0o600))
	must(t, fsutil.SyncFS(keep))
	must(t, s.Unmount(ctx, "keep"))
	big := []string{"one", "two", "three"}
	for _, name := range big { // all before the first of them fills the pool
		mounted(name)
	}
	var full error
	for _, name := range big {
		full = errors.Join(full, fill(filepath.Join(e.MountPoint(name), "big"), 44<<20))
	}
	if full == nil {
		t.Fatal("there is no end of it")
	}
	t.Logf("when it was full: %v", full)
	for _, name := range big {
		must(t, s.Unmount(ctx, name))
		must(t, s.Remove(ctx, name))
	}
	heal()
	again := mounted("again")
	must(t, fill(filepath.Join(again, "some"), 4<<20))
	must(t, s.Unmount(ctx, "again"))
	must(t, s.View(ctx, []string{"keep", "again"}, func(_ context.Context, roots []string) error {
		text, err := os.ReadFile(filepath.Join(roots[0], "kept"))
		if err == nil && string(text) != "safe" {
			t.Errorf("kept: %q", text)
		}
		return err
	}))
	must(t, e.Check(ctx))
}

// fill writes n bytes that are not zero, and syncs.
func fill(path string, n int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	buf := []byte(strings.Repeat("x", 1<<20))
	for range n >> 20 {
		if _, err := f.Write(buf); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(f.Sync(), f.Close())
}

// withSuperblock changes a copy of the superblock and puts its checksum right: CRC-32C of all but the
// first four bytes, without its final inversion, XOR 160774 (drivers/md/dm-thin-metadata.c).
func withSuperblock(metadata []byte, change func(sb []byte)) []byte {
	sb := append([]byte(nil), metadata[:4096]...)
	change(sb)
	sum := ^crc32.Checksum(sb[4:], crc32.MakeTable(crc32.Castagnoli)) ^ 160774
	binary.LittleEndian.PutUint32(sb, sum)
	return sb
}
