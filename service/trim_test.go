package service_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/service"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// What nodes that came and went have left on the host, the service gives back by itself, once it is worth it.
func TestTrimsFreeBlocks(t *testing.T) {
	e := pooltest.New(t, pool.Spec{DataSize: 256 << 20, BaseSize: 128 << 20})
	s, ctx := e.Open(t), pooltest.Context(t)
	_, err := s.CreateSnapshot(ctx, "base", layer.SnapshotOptions{})
	must(t, err)
	onHost := func() int64 {
		var st unix.Stat_t
		must(t, unix.Stat(e.Data(), &st))
		return st.Blocks * 512
	}
	before := onHost()
	for i := range 10 {
		name := fmt.Sprint("n", i)
		_, err := s.CreateSnapshot(ctx, name, layer.SnapshotOptions{Parent: "base"})
		must(t, err)
		m, err := s.Mount(ctx, name, "", layer.MountOptions{})
		must(t, err)
		must(t, os.WriteFile(filepath.Join(m.Dir, "f"), bytes.Repeat([]byte("x"), 500<<10), 0o600))
		must(t, s.Unmount(ctx, name))
		must(t, s.Remove(ctx, name))
	}
	churned := onHost()
	if churned < before+4<<20 {
		t.Fatalf("%d on the host, then %d: there is nothing to test", before, churned)
	}
	looks := make(chan time.Time)
	r := &served{t: t, logs: newLogs()}
	running, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		c := service.Config{Dirs: e.Dirs, Pool: e.Name, Logger: slog.New(r.logs), Ticks: make(chan time.Time), TrimTicks: looks, TrimLeast: 2 << 20}
		ended <- service.Run(running, c)
		r.logs.end()
	}()
	defer func() { cancel(); must(t, <-ended) }()
	for r.logs.count("gave free blocks back", "kept before") == 0 { // a look that is disturbed by what else the service does is tried again later
		select {
		case looks <- time.Time{}:
		case <-ctx.Done():
			t.Fatal(context.Cause(ctx))
		}
	}
	looks <- time.Time{} // is taken when the one before is over, and finds nothing
	looks <- time.Time{}
	if n := r.logs.count("gave free blocks back"); n != 1 {
		t.Errorf("%d times", n)
	}
	if now := onHost(); now > before+3<<20 {
		t.Errorf("%d on the host, %d after nodes came and went, %d after that", before, churned, now)
	}
}
