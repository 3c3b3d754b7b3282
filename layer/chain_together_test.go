package layer_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// chainNames are the layers of a chain of which the first three are shared by all branches.
func chainNames(branch string) []string {
	return []string{"c0", "c1", "c2", branch + "3", branch + "4"}
}

// childLoad makes a chain on base, with others: Args are the branch and a folder where each layer that is
// filled gets a file, "" where it may be filled again after a kill.
func childLoad(ctx context.Context, j pooltest.Job) error {
	s, err := layer.Open(ctx, layer.Config{Dirs: j.Dirs, Pool: j.Pool})
	if err != nil {
		return err
	}
	defer s.Close()
	names := chainNames(j.Args[0])
	layers := chainOf("base", names...)
	for i, l := range layers {
		layers[i].Fill = func(ctx context.Context, w *layer.LayerWriter) error {
			if ledger := j.Args[1]; ledger != "" {
				f, err := os.OpenFile(filepath.Join(ledger, l.Name), os.O_CREATE|os.O_EXCL, 0o600)
				if err != nil {
					return err
				}
				if err := f.Close(); err != nil {
					return err
				}
			}
			return l.Fill(ctx, w)
		}
	}
	if err := load(ctx, s, layers); err != nil {
		return err
	}
	return wantChain(ctx, s, names...)
}

func branchOf(i int) string { return []string{"x", "y"}[i%2] }

// Processes that load chains with common layers make each layer once, and all end.
func TestChainsTogether(t *testing.T) {
	onEach(t, func(t *testing.T, e *pooltest.Env, _ *layer.Store) {
		ledger := t.TempDir()
		var children []*pooltest.Child
		for i := range 6 {
			children = append(children, pooltest.Start(t, pooltest.Job{Op: "load", Dirs: e.Dirs, Pool: e.Name, Args: []string{branchOf(i), ledger}}))
		}
		for _, c := range children {
			c.Succeed()
		}
		filled, err := os.ReadDir(ledger)
		must(t, err)
		if len(filled) != 7 {
			t.Errorf("filled %v", filled)
		}
	})
}

// Those who are killed on the way leave the others nothing but work.
func TestChainsTogetherKilled(t *testing.T) {
	onEach(t, func(t *testing.T, e *pooltest.Env, s *layer.Store) {
		rnd := rand.New(rand.NewPCG(4, 0))
		children := make([]*pooltest.Child, 8)
		for i := range children {
			children[i] = pooltest.Start(t, pooltest.Job{Op: "load", Dirs: e.Dirs, Pool: e.Name, Args: []string{branchOf(i / 2), ""}})
			if i%2 == 1 {
				children[i].KillSoon(1 + rnd.IntN(60))
			}
		}
		for i, c := range children {
			if err, killed := c.Wait(); err != nil || killed && i%2 == 0 {
				t.Errorf("process %d: killed %v, %v", i, killed, err)
			}
		}
		for i := range 2 {
			must(t, wantChain(pooltest.Context(t), s, chainNames(branchOf(i))...))
		}
		must(t, e.CheckLive(pooltest.Context(t)))
	})
}

// A has its working device suspended, or is between two layers; B opens the pool, works in it, and loads the
// same chain: B leaves A alone, and each layer is filled once. Where A is killed, B goes on from there.
func TestChainsMeet(t *testing.T) {
	play(t, func(t *testing.T, sc *scene) {
		for i, point := range []string{"layer.chain.next-locked", "layer.freeze.suspended", "layer.fill.copy-settled", "layer.chain.recorded", "layer.fill.flushed"} {
			if sc.fs == "xfs" && (point == "layer.freeze.suspended" || point == "layer.fill.copy-settled") {
				continue // xfs has a mount for each layer
			}
			for _, kill := range []bool{false, true} {
				sc.p = "x" + strconv.Itoa(i) + fmt.Sprint(kill) + "-"
				a := sc.stopped("chain", point)
				sc.open()
				makeSnapshot(t, sc.s, sc.p+"other", "base")
				b := sc.start("chain", "", "")
				if kill {
					a.Kill()
				} else {
					a.Continue()
					a.Succeed()
				}
				b.Succeed()
				if filled := filledBy(a) + filledBy(b); filled != 3 && !kill {
					t.Errorf("%s: %d layers were filled", point, filled)
				}
				sc.mustBe(t, sc.ops["chain"], true)
				sc.cleanUp(t)
			}
		}
	})
}

// filledBy returns how many layers a process filled to the end.
func filledBy(c *pooltest.Child) (n int) {
	for _, hit := range c.Hits() {
		if hit == "layer.fill.filled" {
			n++
		}
	}
	return n
}
