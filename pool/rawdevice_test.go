package pool_test

import (
	"os"
	"testing"

	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

func TestDevicePool(t *testing.T) {
	for _, sector := range []uint32{512, 4096} {
		e := pooltest.NewDevice(t, pool.Spec{BaseSize: 64 << 20}, sector)
		ctx := pooltest.Context(t)
		st := state(t, e)
		if st.State != pool.StateActive || st.Backing != pool.BackingDevice || st.DataDevice != e.DataDisk.Path || st.MetadataDevice != e.MetadataDisk.Path || st.DataFile != "" {
			t.Errorf("after create: %+v", st)
		}
		if st.DataTotal == nil || *st.DataTotal != 2<<30 || st.Discard != "nopassdown" {
			t.Errorf("after create: %+v", st)
		}
		for range 2 {
			must(t, pool.Stop(ctx, e.Dirs, e.Name))
			if st := state(t, e); st.State != pool.StateInactive || st.DataDevice != e.DataDisk.Path {
				t.Errorf("after stop: %+v", st)
			}
		}
		must(t, pool.Start(ctx, e.Dirs, e.Name))
		left, err := os.ReadDir(e.Dirs.Root + "/pools/" + e.Name)
		must(t, err)
		for _, f := range left {
			if f.Name() != "records.db" && f.Name() != "metadata.spare" && f.Name() != "blobs" {
				t.Errorf("left in the folder: %s", f.Name())
			}
		}
	}
}
