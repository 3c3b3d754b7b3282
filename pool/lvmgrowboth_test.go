package pool_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// Data and metadata that are both due live off the same free extents: the metadata grows, and the data takes what is left.
func TestVolumesGrowBoth(t *testing.T) {
	e := pooltest.NewLVM(t, 56<<20, pool.Spec{DataSize: 24 << 20, MetadataSize: 4 << 20, BaseSize: 32 << 20, Space: pool.Space{GrowBy: 100, MinFree: -1}})
	ctx := pooltest.Context(t)
	s := e.Open(t)
	_, err := s.CreateSnapshot(ctx, "one", layer.SnapshotOptions{})
	must(t, err)
	m, err := s.Mount(ctx, "one", "", layer.MountOptions{})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(m.Dir, "file"), make([]byte, 14<<20), 0o600))
	must(t, s.Unmount(ctx, "one"))
	st := state(t, e)
	used := int(*st.MetadataUsed * 100 / *st.MetadataTotal)
	_, err = pool.SetSpace(ctx, e.Dirs, e.Name, func(s *pool.Space) { s.GrowAt = used })
	must(t, err)
	p, err := pool.Open(ctx, e.Dirs, e.Name, nil)
	must(t, err)
	defer p.Close()
	seen, err := p.Tender().Look(ctx, true)
	must(t, err)
	if seen.After.Metadata <= seen.Before.Metadata || seen.After.Data <= seen.Before.Data {
		t.Errorf("from %+v to %+v: %v", seen.Before, seen.After, seen.Stuck)
	}
}
