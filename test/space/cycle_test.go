package space

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// cyclesEnv is how often a pool is filled and emptied: a few times with every run, as often as one wants with it.
const cyclesEnv = "DMLAYER_SPACE_CYCLES"

func cycles(t testing.TB) int {
	text := os.Getenv(cyclesEnv)
	if text == "" {
		return 2
	}
	n, err := strconv.Atoi(text)
	must(t, err)
	return n
}

// Fill, delete, trim; fill, remove: whatever a pool lies on has its blocks back each time, and nothing is lost on the way.
func TestFillDeleteTrim(t *testing.T) {
	spec := pool.Spec{DataSize: 400 * mib, MetadataSize: metadataOnDisk, BaseSize: 320 * mib, Discard: "passdown", Space: pool.Space{MinFree: -1}}
	each(t, spec, func(t *testing.T, e *place, s *layer.Store) {
		snapshot(t, s, "kept", "")
		must(t, writeFile(filepath.Join(mount(t, s, "kept"), "f"), 5, mib))
		begin, used := onHost(t, e.below), inUse(t, s)
		var most int64
		for n := range cycles(t) {
			most = max(most, cycle(t, e, s, n, begin, used))
		}
		t.Logf("%d cycles of 24 MiB: %.1f MiB below before, at most %.1f MiB more after a cycle, %.1f MiB at the end; used %.1f and %.1f MiB", cycles(t),
			inMiB(begin), inMiB(most), inMiB(onHost(t, e.below)), inMiB(used), inMiB(inUse(t, s)))
		wantContent(t, filepath.Join(e.MountPoint("kept"), "f"), 5, mib)
		unmount(t, s, "kept")
		wantSound(t, s, "kept")
	})
}

// inUse is how much of the data is in use, in bytes, by the kernel's word alone: nobody asks lvm2, which takes longer than all the rest.
func inUse(t testing.TB, s *layer.Store) int64 {
	t.Helper()
	m, err := s.Moment(pooltest.Context(t))
	must(t, err)
	return int64(m.Data) * block
}

func inMiB(n int64) float64 { return float64(n) / mib }

// metadataOnDisk is the size of the metadata: of a pool on volumes it is on the same disk as the data, and in the end all of it has been
// written to once.
const metadataOnDisk = 4 * mib

// slack is what a file system and the kernel may keep of a cycle: a log that has been written once stays.
func (p *place) slack() int64 {
	if p.backing == "lvm" {
		return 4*mib + metadataOnDisk
	}
	return 4 * mib
}

// cycle is one of them; it returns how much more the backing has afterwards.
func cycle(t *testing.T, e *place, s *layer.Store, n int, begin, used int64) int64 {
	t.Helper()
	const size = 12 * mib
	name := fmt.Sprintf("n-%d", n)
	snapshot(t, s, name, "")
	dir := mount(t, s, name)
	must(t, writeFile(filepath.Join(dir, "f"), n, size))
	if grown := onHost(t, e.below) - begin; grown < size {
		t.Fatalf("cycle %d: %d bytes more below, %d were written", n, grown, size)
	}
	wantContent(t, filepath.Join(dir, "f"), n, size)
	must(t, os.Remove(filepath.Join(dir, "f")))
	trimmed(t, s, name)
	if left := onHost(t, e.below) - begin; left > e.slack() {
		t.Errorf("cycle %d: %d bytes more below after a trim", n, left)
	}
	must(t, writeFile(filepath.Join(dir, "g"), n, size))
	unmount(t, s, name)
	remove(t, s, name)
	left, more := onHost(t, e.below)-begin, inUse(t, s)-used
	if left > e.slack() || more > mib {
		t.Errorf("cycle %d: %d bytes more below, %d in the pool after the removal", n, left, more)
	}
	return left
}
