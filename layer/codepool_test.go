package layer_test

import (
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

var littlePool = pool.Spec{DataSize: 48 << 20, MetadataSize: 4 << 20, BaseSize: 32 << 20, Space: pool.Space{MinFree: -1}}

// mendAll checks with leave for everything.
func mendAll(t testing.TB, e *pooltest.Env) pool.CheckReport {
	t.Helper()
	r, err := pool.Check(pooltest.Context(t), e.Dirs, e.Name, pool.CheckOptions{Mend: func(pool.Finding) bool { return true }})
	must(t, err)
	return noteCodes(r)
}

// The copy of a pool's folder is told from the pool that runs, and is nothing that a check or anybody else changes.
func TestCheckPoolElsewhere(t *testing.T) {
	e := pooltest.New(t, littlePool)
	s := e.Open(t)
	makeLayer(t, s, "base", "", baseFiles)
	twin := *e
	twin.Dirs.Root = t.TempDir()
	must(t, os.CopyFS(twin.Dirs.Root, os.DirFS(e.Dirs.Root)))
	before := fileTexts(t, twin.Store(), twin.Metadata())
	wantCodes(t, &twin, pool.FoundElsewhere)
	r := mendAll(t, &twin)
	if f := r.Findings[0]; f.Code != pool.FoundElsewhere || f.Class != pool.NeedsPerson || f.Mendable() || len(r.Unchecked) == 0 || r.State != "" {
		t.Errorf("found %+v", r)
	}
	_, err := layer.Open(pooltest.Context(t), twin.Config())
	mustFail(t, err, errs.ErrDamaged)
	if after := fileTexts(t, twin.Store(), twin.Metadata()); after[0] != before[0] || after[1] != before[1] {
		t.Error("the copy was changed")
	}
	wantCodes(t, e)
	wantFiles(t, s, "base", baseFiles)
}

// A pool that is full is nothing that a check could mend, nor anything that anybody must repair.
func TestCheckOutOfData(t *testing.T) {
	e := pooltest.New(t, littlePool)
	s := e.Open(t)
	makeLayer(t, s, "base", "", baseFiles)
	makeSnapshot(t, s, "web", "")
	makeSnapshot(t, s, "more", "")
	for _, name := range []string{"web", "more"} {
		fillDevice(t, s, name)
	}
	wantCodes(t, e, pool.FoundOutOfData)
	r := mendAll(t, e)
	if f := r.Findings[0]; r.Err() != nil || f.Class != pool.Harmless || f.Do == "" || r.State != pool.StateOutOfDataSpace {
		t.Errorf("found %+v", r)
	}
	wantFiles(t, s, "base", baseFiles)
	must(t, s.Remove(pooltest.Context(t), "more"))
	wantCodes(t, e)
}

// fillDevice writes to a node's device until there is no room.
func fillDevice(t testing.TB, s *layer.Store, name string) {
	t.Helper()
	path, err := s.Attach(pooltest.Context(t), name, false)
	must(t, err)
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_SYNC|unix.O_CLOEXEC, 0)
	must(t, err)
	f := os.NewFile(uintptr(fd), path)
	b := make([]byte, 64<<10)
	for at := int64(1 << 20); err == nil && at < 30<<20; at += int64(len(b)) {
		_, err = f.WriteAt(b, at)
	}
	_ = f.Close()
	must(t, s.Detach(pooltest.Context(t), name))
}

// leftDevices are what a thin device can be whose pool is gone: nothing, or something that is no thin device any more.
var leftDevices = map[string]func(x tamperer, uuid devmapper.UUID){
	"no table": func(x tamperer, uuid devmapper.UUID) {
		_, err := x.dm().Create(devmapper.Name(uuid), uuid)
		must(x.t, err)
	},
	"error": func(x tamperer, uuid devmapper.UUID) {
		_, err := x.dm().Create(devmapper.Name(uuid), uuid)
		must(x.t, err)
		must(x.t, x.dm().Load(devmapper.ByUUID(uuid), devmapper.LoadOptions{}, devmapper.Target{Length: 8, Type: "error"}))
		_, err = x.dm().Resume(devmapper.ByUUID(uuid), devmapper.ResumeOptions{})
		must(x.t, err)
	},
}

// Thin devices that are there while their pool is not, as after a dmsetup wipe_table, are in nobody's way: who opens the pool takes them away.
func TestCheckDeviceLeft(t *testing.T) {
	e := pooltest.New(t, littlePool)
	s := e.Open(t)
	makeLayer(t, s, "base", "", baseFiles)
	makeSnapshot(t, s, "web", "base")
	x := tamperer{t: t, e: e, s: s, uuid: checkPool(t, e).UUID}
	for _, id := range []int{int(x.id("web")), int(strange)} {
		for kind, leave := range leftDevices {
			t.Run(kind+" "+strconv.Itoa(id), func(t *testing.T) {
				ctx := pooltest.Context(t)
				must(t, pool.Stop(ctx, e.Dirs, e.Name))
				x := x
				x.t = t
				leave(x, devmapper.UUID("DMLAYER-"+x.uuid+"-"+strconv.Itoa(id)))
				wantCodes(t, e, pool.FoundDeviceLeft)
				if r := mendAll(t, e); len(r.Findings) != 1 || r.Findings[0].Class != pool.MendedOnOpen || r.Err() != nil {
					t.Errorf("found %+v", r)
				}
				again, err := layer.Open(ctx, e.Config())
				must(t, err)
				wantCodes(t, e)
				wantFiles(t, again, "web", baseFiles)
				must(t, again.Close())
			})
		}
	}
	wantCodes(t, e)
}
