package space

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// Nodes that come and go leave a little each below, as so little is not worth a discard. A trim of the pool brings it back, while somebody
// writes, from whatever the pool lies on; where it passes no discards down, when asked.
func TestPoolTrim(t *testing.T) {
	spec := pool.Spec{DataSize: 256 * mib, MetadataSize: metadataOnDisk, BaseSize: 64 * mib, Discard: "passdown"}
	everywhere(t, spec, func(t *testing.T, e *place, s *layer.Store) {
		trimPool(t, e, s, false)
	})
	for _, b := range backings(t, "")[1:] {
		t.Run(b+"/asked", func(t *testing.T) {
			spec := spec
			spec.Discard = "nopassdown"
			e := newPlace(t, b, spec)
			trimPool(t, e, e.Open(t), true)
		})
	}
}

func trimPool(t *testing.T, e *place, s *layer.Store, asked bool) {
	ctx := pooltest.Context(t)
	snapshot(t, s, "base", "")
	snapshot(t, s, "kept", "")
	kept := mount(t, s, "kept")
	must(t, writeFile(filepath.Join(kept, "first"), 1, 4*mib))
	before := onHost(t, e.below)
	for i := range 16 {
		name := fmt.Sprintf("n-%d", i)
		snapshot(t, s, name, "base")
		must(t, writeFile(filepath.Join(mount(t, s, name), "f"), i, 512<<10))
		unmount(t, s, name)
		remove(t, s, name)
	}
	churned := onHost(t, e.below)
	if churned < before+6*mib {
		t.Fatalf("%d below, then %d: there is nothing to test", before, churned)
	}
	written := make(chan error)
	go func() {
		var err error
		for i := 0; i < 16 && err == nil; i++ {
			err = writeFile(filepath.Join(kept, fmt.Sprint(i)), i, 64<<10)
		}
		written <- err
	}()
	r, err := s.TrimFree(ctx, layer.TrimFreeOptions{Discard: asked})
	must(t, err)
	must(t, <-written)
	now := onHost(t, e.below)
	t.Logf("%.1f MiB below, %.1f after nodes came and went, %.1f after a trim of %.0f MiB and 1 MiB of writing", inMiB(before), inMiB(churned), inMiB(now), inMiB(r.Swept))
	if now > before+e.slack() || r.Swept < 64*mib || r.Kept || r.Full {
		t.Errorf("%d below, %d after nodes came and went, %d after a trim: %+v", before, churned, now, r)
	}
	wantContent(t, filepath.Join(kept, "first"), 1, 4*mib)
	for i := range 16 {
		wantContent(t, filepath.Join(kept, fmt.Sprint(i)), i, 64<<10)
	}
	unmount(t, s, "kept")
	wantSound(t, s, "kept")
}
