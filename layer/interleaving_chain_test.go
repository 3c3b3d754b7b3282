package layer_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// meanwhile is what B does while A is making the second layer of a chain, and how A must end, nil is well.
var meanwhile = []struct {
	name string
	do   func(sc *scene) error
	a    error
}{
	{"look", func(sc *scene) error { return wantChain(sc.ctx, sc.s, "x-c0") }, nil},
	{"snapshot", func(sc *scene) error {
		_, err := sc.s.CreateSnapshot(sc.ctx, "x-b", layer.SnapshotOptions{Parent: "x-c0"})
		return err
	}, nil},
	{"remove", func(sc *scene) error { return sc.s.Remove(sc.ctx, "x-c0") }, layer.ErrNotFound},
	{"prune", func(sc *scene) error {
		gone, err := sc.s.Prune(sc.ctx, false)
		if err == nil && (len(gone) != 1 || gone[0] != "x-c0") {
			err = fmt.Errorf("pruned %v", gone)
		}
		return err
	}, layer.ErrNotFound},
	{"replace", func(sc *scene) error {
		if err := sc.s.Remove(sc.ctx, "x-c0"); err != nil {
			return err
		}
		_, err := sc.s.CreateLayer(sc.ctx, "x-c0", layer.LayerOptions{Parent: "base"}, func(_ context.Context, w *layer.LayerWriter) error {
			return writeFiles(w.Root(), map[string]string{"another": "one"})
		})
		return err
	}, layer.ErrNotFound},
	{"use up the window", func(sc *scene) error {
		for range 2*64 + 1 {
			if _, err := sc.s.CreateSnapshot(sc.ctx, "x-b", layer.SnapshotOptions{Parent: "base"}); err != nil {
				return err
			}
			if err := sc.s.Remove(sc.ctx, "x-b"); err != nil {
				return err
			}
		}
		return nil
	}, nil},
	{"recover without a cursor", func(sc *scene) error {
		err := forgetCursor(sc.e)
		sc.open()
		return err
	}, nil},
}

// TestInterleavingsOfChains plays lines 1, 2, 5, 18, 21 and 22 with a chain: its first layer is there, A is
// somewhere in its second, and B does something. A ends well, or says that its parent is gone; or it is killed.
func TestInterleavingsOfChains(t *testing.T) {
	for _, b := range meanwhile {
		t.Run(b.name, func(t *testing.T) {
			playOn(t, "ext4", func(t *testing.T, sc *scene) {
				for _, point := range []string{"layer.fill.filled", "layer.freeze.suspended", "layer.fill.copy-settled"} {
					for _, killed := range []bool{false, true} {
						j := sc.job(sc.fs, sc.ops["chain"])
						j.Action, j.Point, j.Hit = pooltest.ActionStop, point, 2
						a := pooltest.Start(t, j)
						a.WaitStopped()
						if err := b.do(sc); err != nil {
							t.Fatalf("A at %s: %v", point, err)
						}
						sc.endChain(a, killed, b.a)
						must(t, sc.e.CheckLive(sc.ctx))
						sc.cleanUp(t)
					}
				}
			})
		})
	}
}

// endChain lets A go on, or kills it, and looks at what it has made.
func (sc *scene) endChain(a *pooltest.Child, killed bool, want error) {
	sc.t.Helper()
	if killed {
		a.Kill()
	} else {
		a.Continue()
		if want != nil {
			fails(sc.t, a, want)
		} else {
			a.Succeed()
		}
	}
	if done, err := sc.ops["chain"].done(sc.ctx, sc.world); want == nil && (err != nil || done == killed) {
		sc.t.Fatalf("done %v, %v", done, err)
	}
}
