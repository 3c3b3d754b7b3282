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
	spec := pool.Spec{BaseSize: 320 * mib, Discard: "passdown", Space: pool.Space{MinFree: -1}}
	const data = 400 * mib
	for name, start := range map[string]func(t *testing.T, spec pool.Spec) (*pooltest.Env, string){
		"loopback": func(t *testing.T, spec pool.Spec) (*pooltest.Env, string) {
			spec.DataSize = data
			e := pooltest.New(t, spec)
			return e, e.Data()
		},
		"device": func(t *testing.T, spec pool.Spec) (*pooltest.Env, string) {
			spec.DataSize = data
			e := pooltest.NewDevice(t, spec, 0)
			return e, e.DataDisk.File
		},
	} {
		for _, fs := range fileSystems {
			if name != "loopback" && fs == "xfs" && os.Getenv(cyclesEnv) == "" {
				continue
			}
			t.Run(name+"/"+fs, func(t *testing.T) {
				spec := spec
				spec.FS = fs
				e, below := start(t, spec)
				s := e.Open(t)
				snapshot(t, s, "kept", "")
				must(t, writeFile(filepath.Join(mount(t, s, "kept"), "f"), 5, mib))
				begin, used := onHost(t, below), *status(t, e).DataUsed
				for n := range cycles(t) {
					cycle(t, e, s, n, below, begin, used)
				}
				wantContent(t, filepath.Join(e.MountPoint("kept"), "f"), 5, mib)
				unmount(t, s, "kept")
				wantSound(t, s, "kept")
			})
		}
	}
}

// slack is what a file system and the kernel may keep of a cycle: a log that has been written once stays.
const slack = 4 * mib

func cycle(t *testing.T, e *pooltest.Env, s *layer.Store, n int, below string, begin, used int64) {
	t.Helper()
	const size = 12 * mib
	name := fmt.Sprintf("n-%d", n)
	snapshot(t, s, name, "")
	dir := mount(t, s, name)
	must(t, writeFile(filepath.Join(dir, "f"), n, size))
	if grown := onHost(t, below) - begin; grown < size {
		t.Fatalf("cycle %d: %d bytes more below, %d were written", n, grown, size)
	}
	wantContent(t, filepath.Join(dir, "f"), n, size)
	must(t, os.Remove(filepath.Join(dir, "f")))
	trimmed(t, s, name)
	if left := onHost(t, below) - begin; left > slack {
		t.Errorf("cycle %d: %d bytes more below after a trim", n, left)
	}
	must(t, writeFile(filepath.Join(dir, "g"), n, size))
	unmount(t, s, name)
	remove(t, s, name)
	if left, more := onHost(t, below)-begin, *status(t, e).DataUsed-used; left > slack || more > mib {
		t.Errorf("cycle %d: %d bytes more below, %d in the pool after the removal", n, left, more)
	}
}
