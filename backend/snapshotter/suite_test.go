package snapshotter_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"

	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// TestSuite runs containerd's own tests of snapshotters through the socket, all at once on one pool.
func TestSuite(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.Ext4, testenv.XFS)
			s := pooltest.New(t, pool.Spec{FS: fs, DataSize: 4 << 30}).Open(t)
			client := dialed(t, s)
			var cases atomic.Int32
			testsuite.SnapshotterSuite(t, "dmlayer", func(context.Context, string) (snapshots.Snapshotter, func() error, error) {
				p := prefixed{client, fmt.Sprintf("case-%d-", cases.Add(1))}
				return p, func() error { return removeAll(pooltest.Context(t), p) }, nil
			})
		})
	}
}
