package layer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

const lossFiles = 40 // of 1 MiB

// cutPool is a stopped pool with a layer "cut" and its child "kid", in whose metadata a part of what they share is damaged, and with a layer
// "other" that has its own.
func cutPool(t *testing.T) *pooltest.Env {
	e := pooltest.New(t, pool.Spec{DataSize: 512 << 20, BaseSize: 64 << 20})
	s := e.Open(t)
	ctx := pooltest.Context(t)
	makeLayer(t, s, "other", "", baseFiles)
	makeSnapshot(t, s, "large", "")
	dir := mount(t, s, "large")
	for i := range lossFiles {
		must(t, os.WriteFile(fmt.Sprintf("%s/f%d", dir, i), bytes.Repeat([]byte{byte(i) + 1}, 1<<20), 0o644))
	}
	unmount(t, s, "large")
	_, err := s.Commit(ctx, "large", "cut", layer.CommitOptions{})
	must(t, err)
	must(t, s.Remove(ctx, "large"))
	makeSnapshot(t, s, "kid", "cut")
	m := stoppedMetadata(t, e)
	m.garble(m.child(m.root(node(t, e, "cut").ID), 1))
	m.save()
	return e
}

// dieAt has the next operation fail at a point, with the error that it returns.
func dieAt(point string) error {
	died := errors.New("died")
	fault.Set(func(name string) error {
		pooltest.Reached(name)
		if name == point {
			return died
		}
		return nil
	})
	return died
}

// A repair that loses a part of a layer marks it and its children: nothing is made of them, and nothing takes them for whole.
func TestRepairMarksLoss(t *testing.T) {
	e := cutPool(t)
	ctx := pooltest.Context(t)
	failedRepairs(t, e)
	r := repair(t, e)
	wantFound(t, e, "node-loss cut", "node-loss kid")
	if l := node(t, e, "cut").Lost; l == nil || l.Blocks < 100 || l.Of < 600 || !slices.ContainsFunc(r.Losses, func(told pool.Loss) bool { return told.Node == "cut" && told.Blocks == l.Blocks && told.Of == l.Of }) {
		t.Errorf("lost %v, the repair said %v", l, r.Losses)
	}
	if l := node(t, e, "other").Lost; l != nil {
		t.Errorf("other lost %v", l)
	}
	s := e.Open(t)
	wantFiles(t, s, "other", baseFiles)
	wantRefused(t, s, "cut", "kid")
	wantReadable(t, s, e)

	// Of what is taken as it is, whatever is made is whole.
	_, err := s.Mount(ctx, "kid", "", layer.MountOptions{Trust: true})
	if errors.Is(err, layer.ErrDamaged) { // the file system itself was hit
		_, err = s.Fsck(ctx, "kid", true)
		must(t, err)
		_, err = s.Mount(ctx, "kid", "", layer.MountOptions{Trust: true})
	}
	must(t, err)
	unmount(t, s, "kid")
	must(t, s.Remove(ctx, "kid"))
	must(t, s.Remove(ctx, "cut"))
	wantFound(t, e)
}

// wantRefused checks that nothing is made of a layer that was cut, nor of its child.
func wantRefused(t *testing.T, s *layer.Store, cut, kid string) {
	t.Helper()
	ctx := pooltest.Context(t)
	for what, try := range map[string]func() error{
		"snapshot":            func() error { _, err := s.CreateSnapshot(ctx, "x", layer.SnapshotOptions{Parent: cut}); return err },
		"snapshot of the kid": func() error { _, err := s.CreateSnapshot(ctx, "x", layer.SnapshotOptions{Parent: kid}); return err },
		"layer":               func() error { _, err := s.CreateLayer(ctx, "x", layer.LayerOptions{Parent: cut}, nil); return err },
		"commit":              func() error { _, err := s.Commit(ctx, kid, "x", layer.CommitOptions{}); return err },
		"trusting commit":     func() error { _, err := s.Commit(ctx, kid, "x", layer.CommitOptions{Trust: true}); return err },
		"commit in its place": func() error { _, err := s.Commit(ctx, kid, "x", layer.CommitOptions{Move: true}); return err },
		"mount":               func() error { _, err := s.Mount(ctx, cut, "", layer.MountOptions{}); return err },
		"mount for writing":   func() error { _, err := s.Mount(ctx, kid, "", layer.MountOptions{}); return err },
		"mount for a user":    func() error { _, err := s.MountFor(ctx, kid, "somebody", layer.UserOptions{Holder: "x"}); return err },
		"activation":          func() error { _, err := s.Activate(ctx, kid, layer.ClaimOptions{Claim: "somebody"}); return err },
		"reset to the parent": func() error { return s.Reset(ctx, kid, "") },
		"prepare": func() error {
			_, _, err := s.Prepare(ctx, "x", layer.SnapshotOptions{Parent: cut}, layer.ClaimOptions{Claim: "somebody"}, nil)
			return err
		},
		"look": func() error { return s.View(ctx, []string{cut}, nil) },
	} {
		err := try()
		if !errors.Is(err, layer.ErrDamaged) || !strings.Contains(fmt.Sprint(err), "in a repair") || errs.Hint(err) == "" {
			t.Errorf("%s: %v (%s)", what, err, errs.Hint(err))
		}
	}
	for _, name := range []string{cut, kid} {
		n, err := s.Get(ctx, name)
		must(t, err)
		if n.Lost == nil || n.Err() == nil {
			t.Errorf("%s: %+v", name, n)
		}
	}
}

// wantReadable checks that what is left can be read by whoever wants it.
func wantReadable(t *testing.T, s *layer.Store, e *pooltest.Env) {
	t.Helper()
	ctx := pooltest.Context(t)
	for _, name := range []string{"cut", "kid"} {
		_, err := s.Mount(ctx, name, "", layer.MountOptions{Trust: true, ReadOnly: true})
		must(t, err)
		list, err := filepath.Glob(e.MountPoint(name) + "/f*")
		must(t, err)
		whole := slices.DeleteFunc(list, func(path string) bool {
			b, err := os.ReadFile(path)
			return err != nil || len(b) == 0 || slices.Contains(b, 0)
		})
		if len(whole) == 0 || len(whole) == lossFiles {
			t.Errorf("%s: %d files can be read", name, len(whole))
		}
		unmount(t, s, name)
		if node(t, e, name).Lost == nil {
			t.Errorf("%s is whole for having been read", name)
		}
	}
}

// A node that has lost blocks is given back to whoever takes it as it is, or begins anew.
func TestLossTakenAsIs(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	ctx := pooltest.Context(t)
	s := e.Open(t)
	makeLayer(t, s, "base", "", baseFiles)
	for _, name := range []string{"taken", "reset", "vm"} {
		makeSnapshot(t, s, name, "base")
		must(t, e.MarkLost(ctx, name))
	}
	died := dieAt("layer.trust.loss-taken")
	_, err := s.Mount(ctx, "taken", "", layer.MountOptions{Trust: true})
	fault.Set(nil)
	if !errors.Is(err, died) {
		t.Errorf("it was not interrupted: %v", err)
	}
	_, err = s.Mount(ctx, "taken", "", layer.MountOptions{Trust: true})
	must(t, err)
	unmount(t, s, "taken")
	must(t, s.Reset(ctx, "reset", ""))
	for _, name := range []string{"taken", "reset"} {
		if l := node(t, e, name).Lost; l != nil {
			t.Errorf("%s has lost %v", name, l)
		}
		wantFiles(t, s, name, baseFiles)
	}
	wantFound(t, e, "node-loss vm")
	// A machine gets its disk; its file system is checked when it is trusted.
	asVM(t, s, "vm", func(device string) { mountAsVM(t, "ext4", device, func(string) {}) })
	if n := node(t, e, "vm"); !n.Foreign || n.Lost == nil {
		t.Errorf("after a machine: %+v", n)
	}
	must(t, s.Trust(ctx, "vm"))
	if n := node(t, e, "vm"); n.Foreign || n.Lost == nil {
		t.Errorf("trusted: %+v", n)
	}
	_, err = s.Mount(ctx, "vm", "", layer.MountOptions{Trust: true})
	must(t, err)
	unmount(t, s, "vm")
	wantFound(t, e)
	// What is left of a layer is shown, and it stays marked.
	must(t, s.Remove(ctx, "taken"))
	must(t, e.MarkLost(ctx, "base"))
	must(t, s.ViewLeft(ctx, []string{"base"}, func(_ context.Context, roots []string) error {
		list, err := os.ReadDir(roots[0])
		if err == nil && len(list) == 0 {
			err = errors.New("nothing is shown")
		}
		return err
	}))
	wantFound(t, e, "node-loss base")
	for _, name := range []string{"reset", "vm", "base"} {
		must(t, s.Remove(ctx, name))
	}
}

// Of a template that a repair has emptied nothing is made any more: the next node makes another one, and a reset goes there.
func TestRepairEmptiesTemplate(t *testing.T) {
	e, m := brokenPool(t)
	ctx := pooltest.Context(t)
	m.garble(m.root(1)) // the template's
	m.save()
	if r := repair(t, e); len(r.Losses) == 0 {
		t.Fatal("nothing is lost")
	}
	wantFound(t, e)
	s := e.Open(t)
	must(t, s.Reset(ctx, "large", ""))
	makeSnapshot(t, s, "new", "")
	for _, name := range []string{"new", "large"} {
		mount(t, s, name)
		unmount(t, s, name)
	}
	for _, name := range []string{"new", "large", "small", "base"} {
		must(t, s.Remove(ctx, name))
	}
	_, err := s.Prune(ctx, false)
	must(t, err)
	if _, err := e.Node(ctx, ".missing-1"); !errors.Is(err, layer.ErrNotFound) {
		t.Errorf("the template of before: %v", err)
	}
	makeSnapshot(t, s, "again", "")
	wantFound(t, e)
}

// A template that somebody deleted is found, and mended by setting it aside.
func TestTemplateMissing(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	ctx := pooltest.Context(t)
	makeSnapshot(t, s, "old", "")
	x := tamperer{t: t, e: e, s: s, uuid: checkPool(t, e).UUID}
	must(t, x.thin().Delete(1))
	_, err := s.CreateSnapshot(ctx, "new", layer.SnapshotOptions{})
	mustFail(t, err, layer.ErrDamaged)
	r := checkPool(t, e)
	if !slices.Equal(found(r), []string{"node-missing"}) || r.Findings[0].Class != pool.NeedsRepair {
		t.Errorf("found %+v", r.Findings)
	}
	_ = dieAt("pool.mend.set-aside")
	r, err = pool.Check(ctx, e.Dirs, e.Name, pool.CheckOptions{Mend: func(pool.Finding) bool { return true }})
	fault.Set(nil)
	must(t, err)
	if !r.Has(pool.FoundNodeMissing) {
		t.Error("it was not interrupted")
	}
	wantFound(t, e) // the record is made, or it would be found again
	makeSnapshot(t, s, "new", "")
	mount(t, s, "new")
	unmount(t, s, "new")
}
