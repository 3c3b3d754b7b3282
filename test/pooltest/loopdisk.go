package pooltest

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/pool"
)

// LoopDisk is a disk for a pool: a loop device on a sparse file, which nothing but the disk's own Close detaches.
type LoopDisk struct {
	File string
	Path string // of the device as it is attached now

	sector uint32
	loop   *fsutil.Loop
}

// NewLoopDisk makes a blank disk of that many bytes, with sectors of that many, 0 for 512. It goes when the test ends.
func NewLoopDisk(t testing.TB, size int64, sector uint32) *LoopDisk {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.Loop)
	d := &LoopDisk{File: filepath.Join(t.TempDir(), "disk"), sector: sector}
	if err := os.WriteFile(d.File, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.File, size); err != nil {
		t.Fatal(err)
	}
	d.Attach(t)
	t.Cleanup(func() { d.Detach(t) })
	return d
}

// Attach attaches the disk, under any name.
func (d *LoopDisk) Attach(t testing.TB) {
	t.Helper()
	loop, err := fsutil.Attach(Context(t), fsutil.LoopOptions{Path: d.File, BlockSize: d.sector, Autoclear: true})
	if err != nil {
		t.Fatal(err)
	}
	d.loop, d.Path = loop, loop.Path
}

// Detach takes the disk away. One that is not there is no error.
func (d *LoopDisk) Detach(t testing.TB) {
	t.Helper()
	if d.loop == nil {
		return
	}
	if err := detach(d.loop, detachTime); err != nil {
		t.Error(err)
	}
	d.loop, d.Path = nil, ""
}

// Resize makes the disk larger or smaller, as it is attached.
func (d *LoopDisk) Resize(t testing.TB, size int64) {
	t.Helper()
	if err := os.Truncate(d.File, size); err != nil {
		t.Fatal(err)
	}
	if d.loop != nil {
		if err := d.loop.SetCapacity(); err != nil {
			t.Fatal(err)
		}
	}
}

// Swap gives two disks each other's name.
func Swap(t testing.TB, a, b *LoopDisk) {
	t.Helper()
	first, second := a.Path, b.Path
	a.Detach(t)
	b.Detach(t)
	b.Attach(t)
	a.Attach(t)
	if a.Path == first && b.Path == second {
		t.Fatalf("the disks are %s and %s again", first, second)
	}
}

// NewDevice makes a pool on two loop devices, as New does on files. sector is the size of the disks' logical blocks, 0 for 512. The sizes are
// those that the disks have for it; zero ones become small ones.
func NewDevice(t testing.TB, spec pool.Spec, sector uint32) *Env {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.ThinCheck)
	const head = 1 << 20
	spec.Backing = pool.BackingDevice
	data, meta := spec.DataSize, spec.MetadataSize
	if data == 0 {
		data = 2 << 30
	}
	if meta == 0 {
		meta = 16 << 20
	}
	e := &Env{Dirs: Dirs(t), Name: PoolName}
	e.DataDisk, e.MetadataDisk = NewLoopDisk(t, data+head, sector), NewLoopDisk(t, meta+head, sector)
	spec.Name, spec.DataDevice, spec.MetadataDevice = e.Name, e.DataDisk.Path, e.MetadataDisk.Path
	spec.DataSize, spec.MetadataSize = 0, 0
	if spec.BaseSize == 0 {
		spec.BaseSize = 1 << 30
	}
	if err := pool.Create(Context(t), e.Dirs, spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.finish(t)
		e.checkBlank(t)
	})
	return e
}

// checkBlank looks whether a pool that was destroyed has left anything on its disks that another one would be refused for.
func (e *Env) checkBlank(t testing.TB) {
	t.Helper()
	if _, err := os.Stat(e.Store()); err == nil {
		return // the test has failed before
	}
	for _, d := range []*LoopDisk{e.DataDisk, e.MetadataDisk} {
		if d.loop == nil {
			continue
		}
		if found, err := fsutil.Probe(d.Path); err != nil || len(found) > 0 {
			t.Errorf("%s carries %v, %v", d.Path, found, err)
		}
	}
}

// metadataFile returns a file with the metadata of a pool that does not run, and what is to be called when it is no longer needed.
func (e *Env) metadataFile(ctx context.Context) (path string, done func(), err error) {
	if e.MetadataDisk == nil {
		return e.Metadata(), func() {}, nil
	}
	to, err := os.CreateTemp(filepath.Dir(e.Dirs.Root), "metadata-")
	if err != nil {
		return "", nil, err
	}
	defer to.Close()
	done = func() { _ = os.Remove(to.Name()) }
	from, err := os.Open(e.MetadataDisk.File)
	if err == nil {
		defer from.Close()
		_, err = io.Copy(to, io.NewSectionReader(from, 1<<20, 1<<40))
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		done()
		return "", nil, fmt.Errorf("copy the metadata: %w", err)
	}
	return to.Name(), done, nil
}
