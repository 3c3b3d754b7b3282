package metadata_test

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/metadata"
)

// TestReserveInterrupted makes room on a file system that gives up at a signal, with signals coming in.
func TestReserveInterrupted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file") // in the virtual machine on a tmpfs
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pid, tid := os.Getpid(), unix.Gettid()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 2000 {
			if ctx.Err() != nil {
				return
			}
			_ = unix.Tgkill(pid, tid, unix.SIGURG) // as the scheduler does
		}
	}()
	err := metadata.Reserve(path, 64<<20)
	cancel()
	<-done
	if err != nil {
		t.Error(err)
	}
}
