package layer_test

import (
	"context"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// Whatever makes a node says that a size does not go into the sectors of the pool's disks, before it makes anything.
func TestSizesAndSectors(t *testing.T) {
	e := pooltest.NewDevice(t, pool.Spec{DataSize: 512 << 20, BaseSize: 64 << 20}, 4096)
	s, ctx := e.Open(t), pooltest.Context(t)
	makeLayer(t, s, "base", "", baseFiles)
	const odd = 64<<20 + 512
	nothing := func(context.Context, *layer.LayerWriter) error { return nil }
	for what, err := range map[string]error{
		"snapshot": func() error {
			_, err := s.CreateSnapshot(ctx, "s", layer.SnapshotOptions{Parent: "base", Size: odd})
			return err
		}(),
		"prepare": func() error {
			_, _, err := s.Prepare(ctx, "s", layer.SnapshotOptions{Parent: "base", Size: odd}, layer.ClaimOptions{Claim: testClaim}, nil)
			return err
		}(),
		"layer": func() error {
			_, err := s.CreateLayer(ctx, "l", layer.LayerOptions{Parent: "base", Size: odd}, nothing)
			return err
		}(),
		"second layer": func() error {
			_, err := s.CreateLayers(ctx, []layer.NewLayer{
				{Name: "l", Options: layer.LayerOptions{Parent: "base"}, Fill: nothing}, {Name: "m", Options: layer.LayerOptions{Size: odd}, Fill: nothing},
			})
			return err
		}(),
	} {
		t.Log(what)
		mustFail(t, err, layer.ErrInvalid)
	}
	must(t, e.CheckLive(ctx))
}

// A file system that is larger than mkfs made it is known as that, whatever it became so by: of an xfs a power cut may have left copies of the
// superblock behind.
func TestGrownIsRemembered(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s, ctx := e.Open(t), pooltest.Context(t)
	makeLayer(t, s, "base", "", baseFiles)
	_, _, err := s.Prepare(ctx, "s", layer.SnapshotOptions{Parent: "base", Size: grown}, layer.ClaimOptions{Claim: testClaim}, nil)
	must(t, err)
	_, err = s.Commit(ctx, "s", "copy", layer.CommitOptions{})
	must(t, err)
	_, _, err = s.Prepare(ctx, "child", layer.SnapshotOptions{Parent: "copy"}, layer.ClaimOptions{Claim: testClaim}, nil)
	must(t, err)
	for name, want := range map[string]bool{"base": false, "s": true, "copy": true, "child": true} {
		if n, err := e.Node(ctx, name); err != nil || n.Grown != want {
			t.Errorf("%s: grown %v, %v", name, n.Grown, err)
		}
	}
	for _, name := range []string{"s", "child"} {
		must(t, s.Deactivate(ctx, name, testClaim))
	}
}
