package pool_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// Metadata on a disk is written over by a repair and by a renewal. Until that is done for good, a file has it: whoever dies in between
// leaves a pool that a check understands and the next start finishes.
func TestDeviceRepairInterrupted(t *testing.T) {
	const payload = 1 << 20 // behind the header
	e := pooltest.NewDevice(t, pool.Spec{DataSize: 256 << 20, MetadataSize: 8 << 20, BaseSize: 64 << 20}, 0)
	ctx := pooltest.Context(t)
	s := opened(t, e)
	_, err := s.CreateSnapshot(ctx, "one", layer.SnapshotOptions{})
	must(t, err)
	must(t, s.Close())
	found := func(want ...string) {
		t.Helper()
		r, err := pool.Check(ctx, e.Dirs, e.Name, pool.CheckOptions{})
		must(t, err)
		// thin_repair leaves numbers that nothing depends on as they come.
		if got := slices.DeleteFunc(codes(r), func(code string) bool { return code == pool.FoundMetadataStale }); !slices.Equal(got, want) {
			t.Errorf("found %q, want %q: %+v", got, want, r.Findings)
		}
	}
	garbage := []byte(strings.Repeat("half", 16<<10))

	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	write(t, e.MetadataDisk, payload, garbage[:4096])
	found("metadata-unreadable")
	cut := cutAt(t, "pool.repair.swapped")
	r, err := pool.RepairMetadata(ctx, e.Dirs, e.Name, pool.RepairOptions{})
	cut()
	if !errors.Is(err, errCut) || r.Unreadable == "" {
		t.Fatalf("%v: %+v", err, r)
	}
	write(t, e.MetadataDisk, payload, garbage) // as a copy that was cut short leaves it
	found("metadata-unfinished", "spare-missing")
	must(t, pool.Start(ctx, e.Dirs, e.Name))
	s = opened(t, e)
	useNode(t, s, "one")
	must(t, s.Close())
	old, err := filepath.Glob(filepath.Join(folder(e), "metadata.damaged-*"))
	must(t, err)
	if len(old) != 1 {
		t.Fatalf("kept: %v", old)
	}
	if b, err := os.ReadFile(old[0]); err != nil || string(b[:8]) != "halfhalf" {
		t.Errorf("what is kept begins with %q, %v", b[:8], err)
	}
	_, err = pool.Check(ctx, e.Dirs, e.Name, pool.CheckOptions{Mend: func(pool.Finding) bool { return true }}) // the spare
	must(t, err)

	cut = cutAt(t, "pool.renew.recorded")
	_, err = pool.Renew(ctx, e.Dirs, e.Name, nil)
	cut()
	if !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	write(t, e.MetadataDisk, payload, garbage)
	found("metadata-unfinished")
	must(t, pool.Start(ctx, e.Dirs, e.Name))
	found()
	s = opened(t, e)
	useNode(t, s, "one")
	must(t, s.Close())
	if left, _ := filepath.Glob(filepath.Join(folder(e), "*.re*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
