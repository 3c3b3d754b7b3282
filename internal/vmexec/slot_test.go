package vmexec

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/internal/testenv"
)

func TestSlotsAreExclusive(t *testing.T) {
	dir := t.TempDir()
	ctx := context.Background()
	first, err := takeSlot(ctx, dir, []int{3, 5}, time.Hour, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	second, err := takeSlot(ctx, dir, []int{3, 5}, time.Hour, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	if first.cpu == second.cpu {
		t.Fatalf("core %d was given twice", first.cpu)
	}
	got := make(chan *slot)
	go func() {
		s, err := takeSlot(ctx, dir, []int{3, 5}, time.Hour, os.Stderr)
		if err != nil {
			t.Error(err)
		}
		got <- s
	}()
	if err := first.lock.Close(); err != nil {
		t.Fatal(err)
	}
	third := <-got
	if third.cpu != first.cpu {
		t.Errorf("got core %d, want %d, which was given back", third.cpu, first.cpu)
	}
	for _, s := range []*slot{second, third} {
		if err := s.lock.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestWaitForASlot(t *testing.T) {
	dir := t.TempDir()
	held, err := takeSlot(context.Background(), dir, []int{0}, time.Hour, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	said := &notify{said: make(chan string, 1)}
	ended := make(chan error)
	go func() {
		_, err := takeSlot(ctx, dir, []int{0}, 0, said)
		ended <- err
	}()
	if text := <-said.said; !strings.Contains(text, "waiting for one of 1 cores") || !strings.Contains(text, dir) {
		t.Errorf("said %q", text)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want a cancelled wait", err)
	}
	if err := held.lock.Close(); err != nil {
		t.Fatal(err)
	}
	// The cancelled wait holds nothing: the slot can be had.
	again, err := takeSlot(context.Background(), dir, []int{0}, time.Hour, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.lock.Close(); err != nil {
		t.Fatal(err)
	}
}

type notify struct {
	bytes.Buffer
	said chan string
}

func (n *notify) Write(p []byte) (int, error) {
	n.said <- string(p)
	return len(p), nil
}

func TestSweepKeepsWhatIsInUse(t *testing.T) {
	testenv.Need(t, testenv.Host) // in a virtual machine /tmp is read-only
	slots := t.TempDir()
	used, usedLock, err := makeRunDir(slots)
	if err != nil {
		t.Fatal(err)
	}
	dead, deadLock, err := makeRunDir(slots)
	if err != nil {
		t.Fatal(err)
	}
	if err := deadLock.Close(); err != nil {
		t.Fatal(err)
	}
	if err := sweepRunDirs(slots); err != nil {
		t.Fatal(err)
	}
	if !exists(used) || exists(dead) {
		t.Errorf("folder in use is there: %v, folder of a dead run is there: %v", exists(used), exists(dead))
	}
	if err := os.Remove(used); err != nil {
		t.Error(err)
	}
	if err := usedLock.Close(); err != nil {
		t.Error(err)
	}
}
