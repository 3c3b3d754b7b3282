package layer_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// childHammer does random operations: Args are its number, a seed and the number of rounds. What it has
// made and not removed it says in a ledger, written before and after each change.
func childHammer(ctx context.Context, j pooltest.Job) error {
	seed, err := strconv.ParseUint(j.Args[1], 10, 64)
	if err != nil {
		return err
	}
	rounds, err := strconv.Atoi(j.Args[2])
	if err != nil {
		return err
	}
	s, err := layer.Open(ctx, layer.Config{Dirs: j.Dirs, Pool: j.Pool})
	if err != nil {
		return err
	}
	defer s.Close()
	h := &hammer{s: s, rnd: rand.New(rand.NewPCG(seed, 0)), prefix: "h" + j.Args[0] + "-", files: map[string]string{}}
	for round := range rounds {
		if err := h.round(ctx, round); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
	}
	return h.finish(ctx)
}

// hammer is one process that works on nodes of its own and on parents that all share. It knows what each
// of its snapshots must hold.
type hammer struct {
	s      *layer.Store
	rnd    *rand.Rand
	prefix string
	files  map[string]string // snapshot -> text of its file "own"; "" for none
}

// round does one operation on a random snapshot of its own.
func (h *hammer) round(ctx context.Context, n int) error {
	name := h.prefix + strconv.Itoa(h.rnd.IntN(3))
	if _, ok := h.files[name]; !ok {
		return h.create(ctx, name)
	}
	switch h.rnd.IntN(9) {
	case 0, 1, 2:
		return h.write(ctx, name, fmt.Sprintf("%s round %d", name, n))
	case 3:
		return h.commit(ctx, name, n)
	case 4:
		delete(h.files, name)
		return h.s.Remove(ctx, name)
	case 5:
		h.files[name] = ""
		return h.s.Reset(ctx, name, "")
	case 6:
		i, err := h.s.Get(ctx, name)
		if err != nil {
			return err
		}
		return h.s.Resize(ctx, name, i.Size+16<<20)
	case 7:
		return h.look(ctx)
	default:
		return h.check(ctx, name)
	}
}

func (h *hammer) create(ctx context.Context, name string) error {
	parent := []string{"", "base", "top"}[h.rnd.IntN(3)]
	if _, err := h.s.CreateSnapshot(ctx, name, layer.SnapshotOptions{Parent: parent}); err != nil {
		return err
	}
	h.files[name] = ""
	return nil
}

func (h *hammer) write(ctx context.Context, name, text string) error {
	m, err := h.s.Mount(ctx, name, "", layer.MountOptions{})
	if err != nil {
		return err
	}
	err = os.WriteFile(filepath.Join(m.Dir, "own"), []byte(text), 0o600)
	if err == nil {
		h.files[name] = text
	}
	return errors.Join(err, h.s.Unmount(ctx, name))
}

// commit makes a layer of a snapshot while it is mounted, compares and removes it.
func (h *hammer) commit(ctx context.Context, name string, n int) error {
	m, err := h.s.Mount(ctx, name, "", layer.MountOptions{})
	if err != nil {
		return err
	}
	text := fmt.Sprintf("committed in round %d", n)
	err = os.WriteFile(filepath.Join(m.Dir, "own"), []byte(text), 0o600)
	if err == nil {
		h.files[name] = text
		_, err = h.s.Commit(ctx, name, name+"-layer", layer.CommitOptions{})
	}
	if err = errors.Join(err, h.s.Unmount(ctx, name)); err != nil {
		return err
	}
	if err := h.holds(ctx, name+"-layer", text); err != nil {
		return err
	}
	return h.s.Remove(ctx, name+"-layer")
}

func (h *hammer) look(ctx context.Context) error {
	infos, err := h.s.List(ctx)
	if err != nil {
		return err
	}
	mine := 0
	for _, i := range infos {
		if _, ok := h.files[i.Name]; ok {
			mine++
		}
	}
	if mine != len(h.files) {
		return fmt.Errorf("the list has %d of my %d snapshots", mine, len(h.files))
	}
	return nil
}

func (h *hammer) check(ctx context.Context, name string) error {
	return h.holds(ctx, name, h.files[name])
}

func (h *hammer) holds(ctx context.Context, name, text string) error {
	return h.s.View(ctx, []string{name}, func(_ context.Context, roots []string) error {
		have, err := os.ReadFile(filepath.Join(roots[0], "own"))
		if errors.Is(err, os.ErrNotExist) && text == "" {
			return nil
		}
		if err == nil && string(have) != text {
			err = fmt.Errorf("%s holds %q, want %q", name, have, text)
		}
		return err
	})
}

// finish checks what is left, and removes all but one of it.
func (h *hammer) finish(ctx context.Context) error {
	left := false
	for name := range h.files {
		if err := h.check(ctx, name); err != nil {
			return err
		}
		if !left {
			left = true
			continue
		}
		if err := h.s.Remove(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

const hammerers = 8

// hammerRounds is how many operations each process does. DMLAYER_HAMMER_ROUNDS makes it longer.
func hammerRounds(t testing.TB) string {
	if n := os.Getenv("DMLAYER_HAMMER_ROUNDS"); n != "" {
		if _, err := strconv.Atoi(n); err != nil {
			t.Fatalf("DMLAYER_HAMMER_ROUNDS: %v", err)
		}
		return n
	}
	return "12"
}

func (w *world) hammer(t testing.TB, seed int) []*pooltest.Child {
	children := make([]*pooltest.Child, hammerers)
	for i := range children {
		children[i] = pooltest.Start(t, pooltest.Job{Op: "hammer", Dirs: w.e.Dirs, Pool: w.e.Name,
			Args: []string{strconv.Itoa(i), strconv.Itoa(seed*hammerers + i), hammerRounds(t)}})
	}
	return children
}

// TestHammer lets eight processes work on one pool: nothing fails and nothing is lost.
func TestHammer(t *testing.T) {
	for _, fs := range fileSystems {
		t.Run(fs, func(t *testing.T) {
			w := newWorld(t, fs)
			for _, c := range w.hammer(t, 1) {
				c.Succeed()
			}
			wantFiles(t, w.s, "base", baseFiles)
			wantFiles(t, w.s, "top", topFiles)
			w.p = "h"
			w.cleanUp(t)
		})
	}
}

// TestHammerKilled kills half of the processes at any moment of their work. The others notice nothing.
func TestHammerKilled(t *testing.T) {
	for _, fs := range fileSystems {
		t.Run(fs, func(t *testing.T) {
			w := newWorld(t, fs)
			rnd := rand.New(rand.NewPCG(2, 0))
			children := make([]*pooltest.Child, hammerers)
			for i := range children {
				j := pooltest.Job{Op: "hammer", Dirs: w.e.Dirs, Pool: w.e.Name, Args: []string{strconv.Itoa(i), strconv.Itoa(100 + i), hammerRounds(t)}}
				children[i] = pooltest.Start(t, j)
				if i%2 == 1 {
					children[i].KillSoon(1 + rnd.IntN(60))
				}
			}
			for i, c := range children {
				if err, killed := c.Wait(); err != nil || killed && i%2 == 0 {
					t.Errorf("process %d: killed %v, %v", i, killed, err)
				}
			}
			must(t, w.e.CheckLive(pooltest.Context(t)))
			wantFiles(t, w.s, "base", baseFiles)
			wantFiles(t, w.s, "top", topFiles)
			w.p = "h"
			w.cleanUp(t)
		})
	}
}
