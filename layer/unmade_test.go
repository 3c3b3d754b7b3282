package layer_test

import (
	"errors"
	"os"
	"testing"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// A process is killed while it makes the device that it attaches, after its claim: the device without a table
// goes, and the claim with it. There is no crash point between the kernel calls of an activation; random kills found it.
func TestKilledMakingClaimedDevice(t *testing.T) {
	playOn(t, "ext4", func(t *testing.T, sc *scene) {
		sc.killed("attach", "layer.claim.made")
		n, err := sc.e.Node(sc.ctx, "x-s")
		must(t, err)
		uuid := sc.e.DeviceUUID(sc.ctx, n.ID)
		_, err = sc.s.Devmapper().Create(devmapper.Name(uuid), uuid)
		must(t, err)
		mark(t, sc.e, int64(n.ID))
		must(t, sc.e.CheckLive(sc.ctx))
		if _, err := sc.s.Devmapper().Info(devmapper.ByUUID(uuid)); !errors.Is(err, devmapper.ErrNotFound) {
			t.Errorf("the device is left: %v", err)
		}
		_, err = sc.s.Attach(sc.ctx, "x-s", false)
		must(t, err)
		sc.handedOut("x-s")
		must(t, sc.s.Detach(sc.ctx, "x-s"))
	})
}

// A process is killed while it makes the device anew of a node that somebody was promised before: his word stays.
func TestKilledMakingPromisedDevice(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s, ctx := e.Open(t), pooltest.Context(t)
	makeLayer(t, s, "base", "", baseFiles)
	mine := layer.ClaimOptions{Claim: testClaim}
	_, err := s.Activate(ctx, "base", mine)
	must(t, err)
	n, err := e.Node(ctx, "base")
	must(t, err)
	uuid := e.DeviceUUID(ctx, n.ID)
	_, err = s.Devmapper().Remove(devmapper.ByUUID(uuid), devmapper.RemoveOptions{})
	must(t, err)
	_, err = s.Devmapper().Create(devmapper.Name(uuid), uuid)
	must(t, err)
	mark(t, e, int64(n.ID))
	s = e.Open(t)
	if _, err := s.Devmapper().Info(devmapper.ByUUID(uuid)); !errors.Is(err, devmapper.ErrNotFound) {
		t.Errorf("the device is left: %v", err)
	}
	mustFail(t, s.Remove(ctx, "base"), layer.ErrBusy)
	d, err := s.Activate(ctx, "base", mine)
	must(t, err)
	_, err = os.Stat(d.Path)
	must(t, errors.Join(err, s.Deactivate(ctx, "base", testClaim)))
}

// A process is killed after its claim, before it has made the device that it attaches: the claim was of nobody who
// has got anything, and keeps nobody out.
func TestKilledAfterClaim(t *testing.T) {
	playOn(t, "ext4", func(t *testing.T, sc *scene) {
		sc.killed("attach", "layer.claim.made")
		sc.open()
		_, err := sc.s.Mount(sc.ctx, "x-s", "", layer.MountOptions{Trust: true})
		must(t, err)
		must(t, sc.s.Unmount(sc.ctx, "x-s"))
	})
}

// mark says, as an operation does, that the state of a node's device is about to change: pool/marks.go.
func mark(t testing.TB, e *pooltest.Env, id int64) {
	t.Helper()
	f, err := os.OpenFile(e.LockFile(t), os.O_RDWR, 0)
	must(t, err)
	const marks = 4096
	_, err = f.WriteAt([]byte{1}, marks+id)
	must(t, errors.Join(err, f.Close()))
}
