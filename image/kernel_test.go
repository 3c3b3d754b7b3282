package image_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(child())
	}
	pooltest.Main(m, childOperations)
}

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// each runs a test on a fresh pool of each file system.
func each(t *testing.T, fn func(t *testing.T, e *pooltest.Env)) {
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			testenv.Need(t, testenv.Feature(fs))
			fn(t, pooltest.New(t, pool.Spec{FS: fs}))
		})
	}
}

func archiveFile(t testing.TB, f image.Fixture) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "archive.tar")
	if err := os.WriteFile(name, f.Archive, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// nodeNames lists all nodes.
func nodeNames(t testing.TB, s *layer.Store) []string {
	t.Helper()
	var names []string
	for _, i := range must[[]layer.Info](t)(s.List(pooltest.Context(t))) {
		names = append(names, i.Name)
	}
	return names
}

// checkRebuild writes the layer tars of a fixture again.
func checkRebuild(t testing.TB, s *layer.Store, f image.Fixture) {
	t.Helper()
	for i, names := range f.Layers {
		for n, name := range names {
			var b bytes.Buffer
			if err := image.RebuildLayer(pooltest.Context(t), s, name, &b); err != nil {
				t.Error(err)
			}
			if !bytes.Equal(b.Bytes(), f.Tars[i][n]) {
				t.Errorf("layer %d of image %d was rebuilt differently", n, i)
			}
		}
	}
}

func TestLoadKinds(t *testing.T) {
	each(t, func(t *testing.T, e *pooltest.Env) {
		s, ctx, f := e.Open(t), pooltest.Context(t), image.Kinds()
		loaded, err := image.Load(ctx, s, archiveFile(t, f), image.LoadOptions{})
		if want := []image.Loaded{{Ref: "kinds:1", ID: f.IDs[0]}}; err != nil || !slices.Equal(loaded, want) {
			t.Fatalf("loaded %v (%v), want %v", loaded, err, want)
		}
		checkRebuild(t, s, f)
		top := must[string](t)(image.Resolve(ctx, s, "kinds:1"))
		err = s.View(ctx, []string{top}, func(_ context.Context, roots []string) error {
			checkKinds(t, roots[0])
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// checkKinds looks at what became of the entries of image.Kinds.
func checkKinds(t *testing.T, root string) {
	for _, c := range []struct {
		name string
		mode uint32
		rdev uint64
		link uint64
	}{
		{"dev/null", unix.S_IFCHR | 0o666, unix.Mkdev(1, 3), 1},
		{"dev/block", unix.S_IFBLK | 0o660, unix.Mkdev(7, 200), 1},
		{"dev/fifo", unix.S_IFIFO | 0o600, 0, 1},
		{"bin/su", unix.S_IFREG | 0o4755, 0, 1},
		{"bin/ping", unix.S_IFREG | 0o755, 0, 2},
		{"bin/ping-link", unix.S_IFREG | 0o755, 0, 2},
		{"tmp", unix.S_IFDIR | 0o1777, 0, 2},
		{"opaque", unix.S_IFDIR | 0o755, 0, 2},
		{"opaque/upper", unix.S_IFREG | 0o644, 0, 1},
	} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, c.name), &st); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if st.Mode != c.mode || st.Rdev != c.rdev || uint64(st.Nlink) != c.link || st.Mtim != (unix.Timespec{Sec: 1700000000, Nsec: 123456789}) {
			t.Errorf("%s: mode %o, device %x, %d links, time %v", c.name, st.Mode, st.Rdev, st.Nlink, st.Mtim)
		}
	}
	for _, name := range []string{"etc/old", "opaque/lower", "lost+found"} {
		if _, err := os.Lstat(filepath.Join(root, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	buf := make([]byte, 64)
	if n, err := unix.Lgetxattr(filepath.Join(root, "bin/ping"), "security.capability", buf); err != nil || n != 20 {
		t.Errorf("capability: %d bytes (%v)", n, err)
	}
	if n, err := unix.Lgetxattr(filepath.Join(root, "bin/ping"), "user.note", buf); err != nil || string(buf[:n]) != "kept" {
		t.Errorf("user.note: %q (%v)", buf[:max(n, 0)], err)
	}
}

// TestLife loads, uses and removes images that share a layer.
func TestLife(t *testing.T) {
	each(t, func(t *testing.T, e *pooltest.Env) {
		s, ctx, f := e.Open(t), pooltest.Context(t), image.TwoImages()
		source := archiveFile(t, f)
		for range 2 {
			if _, err := image.Load(ctx, s, source, image.LoadOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if got := nodeNames(t, s); len(got) != 3 {
			t.Fatalf("nodes %q, want 3", got)
		}
		checkRebuild(t, s, f)
		top := must[string](t)(image.Resolve(ctx, s, "app:1"))
		must[layer.Node](t)(s.CreateSnapshot(ctx, "web", layer.SnapshotOptions{Parent: top}))
		if err := s.Remove(ctx, f.Layers[1][1]); !errors.Is(err, layer.ErrBusy) {
			t.Errorf("removing a layer of an image: %v", err)
		}
		gone := must[[]image.Removed](t)(image.Remove(ctx, s, "app:1"))
		if len(gone) != 1 || !gone[0].Image || !slices.Equal(gone[0].Kept, f.Layers[0]) {
			t.Errorf("removed %+v", gone)
		}
		if got := nodeNames(t, s); len(got) != 4 {
			t.Errorf("nodes %q, want 4", got)
		}
		must[[]image.Removed](t)(image.Remove(ctx, s, "other", "example.com:5000/team/other:v2"))
		if err := s.Remove(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		pruned := must[[]string](t)(s.Prune(ctx, false))
		if got := nodeNames(t, s); len(got) != 0 || len(pruned) != 2 {
			t.Errorf("left %q, pruned %q", got, pruned)
		}
	})
}

// TestNothingOfADamagedArchive fails in the last layer, after others were made.
func TestNothingOfADamagedArchive(t *testing.T) {
	each(t, func(t *testing.T, e *pooltest.Env) {
		s, ctx := e.Open(t), pooltest.Context(t)
		_, err := image.Load(ctx, s, archiveFile(t, image.WrongDiffID()), image.LoadOptions{})
		if !errors.Is(err, image.ErrDamaged) {
			t.Errorf("load: %v", err)
		}
		if got := nodeNames(t, s); len(got) != 0 {
			t.Errorf("left: %q", got)
		}
		if images := must[[]image.Image](t)(image.List(ctx, s)); len(images) != 0 {
			t.Errorf("listed: %+v", images)
		}
	})
}

// The child loads or removes in a process of its own: childEnv is "load ARCHIVE", "stream" or "rm REF…", and
// killEnv the number of the crash point at which it kills itself; 0 prints how many it reached.
const (
	childEnv = "DMLAYER_IMAGE_TEST_CHILD"
	dirsEnv  = "DMLAYER_IMAGE_TEST_DIRS"
	killEnv  = "DMLAYER_IMAGE_TEST_KILL"
	peakEnv  = "DMLAYER_IMAGE_TEST_PEAK" // set: print /proc/self/status in the end instead
)

func child() int {
	ctx := context.Background()
	root, run, _ := strings.Cut(os.Getenv(dirsEnv), ":")
	s, err := layer.Open(ctx, layer.Config{Dirs: pool.Dirs{Root: root, Run: run}, Pool: pooltest.PoolName})
	if err != nil {
		println(err.Error())
		return 1
	}
	defer s.Close()
	kill, _ := strconv.Atoi(os.Getenv(killEnv))
	hits := 0
	fault.Set(func(string) error {
		if hits++; hits == kill {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return nil
	})
	args := strings.Fields(os.Getenv(childEnv))
	switch args[0] {
	case "load":
		_, err = image.Load(ctx, s, args[1], image.LoadOptions{})
	case "stream":
		_, err = image.Load(ctx, s, "-", image.LoadOptions{Input: os.Stdin})
	default:
		_, err = image.Remove(ctx, s, args[1:]...)
	}
	if err != nil {
		println(err.Error())
		return 1
	}
	if os.Getenv(peakEnv) != "" {
		status, err := os.ReadFile("/proc/self/status")
		os.Stdout.Write(status)
		if err != nil {
			return 1
		}
		return 0
	}
	os.Stdout.WriteString(strconv.Itoa(hits))
	return 0
}

// childCommand prepares a child. It ends with the test's context.
func childCommand(ctx context.Context, t testing.TB, e *pooltest.Env, what string, kill int) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(ctx, must[string](t)(os.Executable()))
	cmd.Env = append(os.Environ(), childEnv+"="+what, dirsEnv+"="+e.Dirs.Root+":"+e.Dirs.Run, killEnv+"="+strconv.Itoa(kill))
	cmd.Stderr = os.Stderr
	return cmd
}

// TestLoadByProcesses has several processes load the same archive: interleaving 14.
func TestLoadByProcesses(t *testing.T) {
	each(t, func(t *testing.T, e *pooltest.Env) {
		f := image.TwoImages()
		source := archiveFile(t, f)
		var all []*exec.Cmd
		for range 3 {
			cmd := childCommand(pooltest.Context(t), t, e, "load "+source, 0)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			all = append(all, cmd)
		}
		for _, cmd := range all {
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		}
		s := e.Open(t)
		if got := nodeNames(t, s); len(got) != 3 {
			t.Errorf("nodes %q, want 3", got)
		}
		checkRebuild(t, s, f)
	})
}

// TestKilled kills a load and a removal at every crash point: what is listed is whole, and doing it again
// comes to the same end.
func TestKilled(t *testing.T) {
	each(t, func(t *testing.T, e *pooltest.Env) {
		f := image.TwoImages()
		source := archiveFile(t, f)
		ctx := pooltest.Context(t)
		load, rm := "load "+source, "rm app:1 other example.com:5000/team/other:v2"
		count := func(what string) int {
			out := must[[]byte](t)(childCommand(ctx, t, e, what, 0).Output())
			return must[int](t)(strconv.Atoi(string(out)))
		}
		count(load) // and makes the template, which stays
		count(rm)
		loads := count(load)
		removals := count(rm)
		if loads < 20 || removals < 8 {
			t.Fatalf("%d crash points in a load, %d in a removal", loads, removals)
		}
		step := 1
		if testing.Short() {
			step = 5
		}
		for n := 1; n <= loads; n += step {
			killAt(ctx, t, e, load, n)
			checkWhole(t, e, f)
			loadAgain(t, e, source, f)
			killAt(ctx, t, e, rm, 1+n%removals)
			checkWhole(t, e, f)
			finishRemoval(t, e)
		}
	})
}

// loadAgain loads after a kill: what that has left is whole, and not unpacked again.
func loadAgain(t *testing.T, e *pooltest.Env, source string, f image.Fixture) {
	t.Helper()
	s := must[*layer.Store](t)(layer.Open(pooltest.Context(t), e.Config()))
	defer s.Close()
	checkLayers(t, s, f)
	goesOn(t, s, source, image.LoadOptions{})
}

func killAt(ctx context.Context, t testing.TB, e *pooltest.Env, what string, n int) {
	t.Helper()
	err := childCommand(ctx, t, e, what, n).Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("%s: was not killed at point %d: %v", strings.Fields(what)[0], n, err)
	}
}

// checkWhole fails where an image is listed of which a layer is missing or not what it was.
func checkWhole(t *testing.T, e *pooltest.Env, f image.Fixture) {
	t.Helper()
	ctx := pooltest.Context(t)
	s := must[*layer.Store](t)(layer.Open(ctx, e.Config()))
	defer s.Close()
	for _, i := range must[[]image.Image](t)(image.List(ctx, s)) {
		if !slices.Contains(f.IDs, i.ID) || len(i.Layers) != 2 {
			t.Errorf("listed %+v", i)
		}
		for _, l := range i.Layers {
			if err := image.RebuildLayer(ctx, s, l.Name, &bytes.Buffer{}); err != nil {
				t.Error(err)
			}
		}
	}
}

// finishRemoval removes what is left after a killed removal, until nothing is.
func finishRemoval(t *testing.T, e *pooltest.Env) {
	t.Helper()
	ctx := pooltest.Context(t)
	s := must[*layer.Store](t)(layer.Open(ctx, e.Config()))
	defer s.Close()
	for _, i := range must[[]image.Image](t)(image.List(ctx, s)) {
		name := i.Ref
		if name == "" {
			name = i.ID
		}
		must[[]image.Removed](t)(image.Remove(ctx, s, name))
	}
	must[[]string](t)(s.Prune(ctx, false))
	if got := nodeNames(t, s); len(got) != 0 {
		t.Fatalf("left: %q", got)
	}
}
