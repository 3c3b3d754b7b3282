package space

import (
	"os"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// longEnv has every test run on everything that a pool can lie on, with each file system. Without it that is so for files, and on the others run the
// tests of usually.
const longEnv = "DMLAYER_TEST_LONG"

// usually are the tests that also run on disks and on volumes every day, each with one file system, where the file system matters.
var usually = map[string]string{
	"device": "TestP02MetadataFullStillDeletes TestP03RemovedLayersGiveTheHostItsBlocksBack/ext4 TestFillDeleteTrim/ext4 TestPoolTrim",
	"lvm":    "TestP01FullPoolHangsNobody/ext4 TestFillDeleteTrim/ext4",
}

// place is a pool on something.
type place struct {
	*pooltest.Env
	backing string
	below   string // the file that the data is in at the end: of the pool, or of the disk

	disk *pooltest.LoopDisk // that the volume group of a pool on volumes is on
}

const volumeGroup = "spacevg"

// spareRoom is how much more than a pool needs there is in a volume group.
const spareRoom = 64 * mib

// newPlace makes a pool of a spec whose sizes are the pool's own. A pool on disks has a default of 2 GiB as others have.
func newPlace(t testing.TB, backing string, spec pool.Spec) *place {
	t.Helper()
	return newPlaceWith(t, backing, spec, 0)
}

// newPlaceWith is newPlace where the data of a pool on volumes can come to have so much.
func newPlaceWith(t testing.TB, backing string, spec pool.Spec, most int64) *place {
	t.Helper()
	p := &place{backing: backing}
	switch backing {
	case "loopback":
		p.Env = pooltest.New(t, spec)
		p.below = p.Data()
	case "device":
		p.Env = pooltest.NewDevice(t, spec, 0)
		p.below = p.DataDisk.File
	case "lvm":
		testenv.Need(t, testenv.LVM)
		if spec.DataSize == 0 {
			spec.DataSize = 2 << 30
		}
		p.disk = pooltest.NewLoopDisk(t, max(spec.DataSize+spareRoom, most)+2*max(spec.MetadataSize, 16*mib), 0)
		pooltest.NewVG(t, volumeGroup, &fsutil.Loop{Path: p.disk.Path})
		spec.Backing, spec.VG = pool.BackingLVM, volumeGroup
		p.Env = pooltest.New(t, spec)
		p.below = p.disk.File
	}
	return p
}

// backings are what the test runs on, with a file system, "" for one that does not mind.
func backings(t testing.TB, fs string) []string {
	all := []string{"loopback"}
	for _, b := range []string{"device", "lvm"} {
		name := t.Name()
		if fs != "" {
			name += "/" + fs
		}
		if os.Getenv(longEnv) != "" || strings.Contains(usually[b]+" ", name+" ") {
			all = append(all, b)
		}
	}
	return all
}

// everywhere runs a test on a fresh pool on everything that a pool can lie on.
func everywhere(t *testing.T, spec pool.Spec, fn func(t *testing.T, p *place, s *layer.Store)) {
	for _, b := range backings(t, "") {
		t.Run(b, func(t *testing.T) {
			p := newPlace(t, b, spec)
			fn(t, p, p.Open(t))
		})
	}
}

// each runs a test on a fresh pool of each file system, on everything that a pool can lie on.
func each(t *testing.T, spec pool.Spec, fn func(t *testing.T, p *place, s *layer.Store)) {
	for _, fs := range fileSystems {
		for _, b := range backings(t, fs) {
			t.Run(b+"/"+fs, func(t *testing.T) {
				spec := spec
				spec.FS = fs
				if fs == "xfs" { // a file system of its has 300 MiB at least, and writes more at once
					spec.BaseSize = max(spec.BaseSize, 320<<20)
					if spec.DataSize > 0 {
						spec.DataSize += 64 << 20
					}
				}
				p := newPlace(t, b, spec)
				fn(t, p, p.Open(t))
			})
		}
	}
}
