package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
)

// imagesConfig says what `bench images` measures.
type imagesConfig struct {
	dir     string
	images  string
	image   string
	fs      string
	rounds  int
	command string
	peers   string
	profile string
	size    int64 // of the pool's data, in bytes; 0 is what fits the image
}

// imagesBench measures what loading an image costs, next to what cannot be saved: reading and checking the
// blobs, and unpacking them.
type imagesBench struct {
	imagesConfig
	work   string // on the file system to measure on
	layout string // the image as an OCI layout, in memory
	tar    string // the same as an archive
	dirs   pool.Dirs
	store  *layer.Store
}

const imagesPool = "images"

func runImages(ctx context.Context, args []string) (err error) {
	b := &imagesBench{}
	f := flag.NewFlagSet("bench images", flag.ExitOnError)
	f.StringVar(&b.dir, "dir", os.TempDir(), "folder for the pool, on the file system to measure on")
	f.StringVar(&b.images, "images", ".cache/images", "folder with the images that scripts/images builds")
	f.StringVar(&b.image, "image", "large", "name of the image")
	f.StringVar(&b.fs, "fs", "ext4", "file system of the pool")
	f.IntVar(&b.rounds, "rounds", 5, "rounds that count, of each kind")
	f.StringVar(&b.command, "command", "", "the dmlayer binary")
	f.StringVar(&b.peers, "peers", "", "folder with containerd and ctr; none: they are left out")
	f.StringVar(&b.profile, "profile", "", "only load in this process, and write a CPU profile of that")
	_ = f.Parse(args) // exits
	if err := touchMemory(); err != nil {
		return err
	}
	return b.withImage(ctx, func() error {
		if b.profile != "" {
			return b.profiled(ctx)
		}
		return b.withKinds(ctx, func(kinds []loadKind) error { return b.measure(ctx, kinds) })
	})
}

// withImage runs fn with a pool in a folder of its own, and the image in memory.
func (b *imagesBench) withImage(ctx context.Context, fn func() error) (err error) {
	if b.work, err = os.MkdirTemp(b.dir, "bench"); err != nil {
		return err
	}
	defer os.RemoveAll(b.work)
	if err := b.copyImage(); err != nil {
		return err
	}
	defer os.RemoveAll(filepath.Dir(b.layout))
	return b.inPool(ctx, fn)
}

// touchMemory uses most of the memory once: a virtual machine gets its own from the host at the first
// touch, which is slow, and would slow down whoever comes first. It uses a file in memory, not its own
// memory, for the reason that program gives.
func touchMemory() (err error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("sysinfo: %w", err)
	}
	f, err := os.CreateTemp("", "touch")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	chunk := make([]byte, 1<<20)
	for range info.Freeram * uint64(info.Unit) / 10 * 8 >> 20 {
		if _, err := f.Write(chunk); err != nil {
			return err
		}
	}
	return nil
}

// copyImage puts the image into memory, so that nobody is measured reading the host's files.
func (b *imagesBench) copyImage() error {
	memory, err := os.MkdirTemp("", "image")
	if err != nil {
		return err
	}
	b.layout, b.tar = filepath.Join(memory, "oci"), filepath.Join(memory, "oci.tar")
	from := filepath.Join(b.images, b.image)
	if err := os.CopyFS(b.layout, os.DirFS(from+".oci")); err != nil {
		return err
	}
	in, err := os.Open(from + ".oci.tar")
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(b.tar)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}

// inPool runs fn with a pool. Its size is bounded, so that rounds use the same blocks over and over.
func (b *imagesBench) inPool(ctx context.Context, fn func() error) (err error) {
	b.dirs = pool.Dirs{Root: filepath.Join(b.work, "root"), Run: filepath.Join("/run", filepath.Base(b.work))}
	defer os.RemoveAll(b.dirs.Run)
	spec := pool.Spec{Name: imagesPool, FS: b.fs, DataSize: cmp.Or(b.size, poolSize(b.image)), MetadataSize: 64 << 20}
	if err := pool.Create(ctx, b.dirs, spec); err != nil {
		return err
	}
	defer func() {
		if derr := pool.Destroy(ctx, b.dirs, imagesPool); err == nil {
			err = derr
		}
	}()
	if b.store, err = layer.Open(ctx, layer.Config{Dirs: b.dirs, Pool: imagesPool}); err != nil {
		return err
	}
	defer b.store.Close()
	return fn()
}

func poolSize(image string) int64 {
	if image == "large" || image == "small" {
		return 1 << 30
	}
	return 8 << 30
}

// measure runs every kind once in turn, so that whatever else the machine does meets all of them.
func (b *imagesBench) measure(ctx context.Context, kinds []loadKind) error {
	results := make([]loadResults, len(kinds))
	for round := range b.rounds + 1 { // the first one warms up
		for i, k := range kinds {
			t := &loadTimer{}
			if err := k.run(ctx, t); err != nil {
				return fmt.Errorf("%s: %w", k.name, err)
			}
			if round > 0 {
				results[i].add(t)
			}
		}
	}
	b.print(kinds, results)
	return nil
}

// loadKind is something to measure; run undoes, untimed, what it did.
type loadKind struct {
	name string
	run  func(context.Context, *loadTimer) error
}

// withKinds runs fn with what is to be measured, the floor first.
func (b *imagesBench) withKinds(ctx context.Context, fn func([]loadKind) error) error {
	layers, err := layersOf(b.layout)
	if err != nil {
		return err
	}
	f := &imageFloor{imagesBench: b, layers: layers}
	kinds := []loadKind{{"floor", f.round}}
	if b.command != "" {
		kinds = append(kinds,
			loadKind{"image load DIR", b.loadRound(b.layout)},
			loadKind{"image load FILE", b.loadRound(b.tar)},
			loadKind{"image load -", b.loadRound("-")})
	}
	if b.peers == "" {
		return fn(kinds)
	}
	return b.withContainerd(ctx, "", func(c *containerd) error {
		for _, s := range []string{"overlayfs", "devmapper"} {
			kinds = append(kinds, loadKind{"containerd " + s, c.round(s)})
		}
		return fn(kinds)
	})
}

// loadTimer takes the times of steps, and the most memory that their programs had, in bytes.
type loadTimer struct {
	timer
	peaks map[string]int64
}

// timed runs a program as a step.
func (t *loadTimer) timed(step string, cmd *exec.Cmd) error {
	t.start()
	if err := program(cmd); err != nil {
		return err
	}
	t.lap(step)
	t.peak(step, cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss<<10)
	return nil
}

func (t *loadTimer) peak(step string, bytes int64) {
	if t.peaks == nil {
		t.peaks = map[string]int64{}
	}
	t.peaks[step] = max(t.peaks[step], bytes)
}

// program runs a program. A program starts out with the peak memory of the process that starts it (exec_mmap in
// fs/exec.c, as Go's fork shares memory until then), so this process has to stay small.
func program(cmd *exec.Cmd) error {
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, out.String())
	}
	return nil
}

// loadResults are the times of many rounds of a kind.
type loadResults struct {
	series
	names []string // of the steps, in order
	peaks loadTimer
}

func (r *loadResults) add(t *loadTimer) {
	r.series.add(&t.timer)
	r.names = t.names
	for step, bytes := range t.peaks {
		r.peaks.peak(step, bytes)
	}
}
