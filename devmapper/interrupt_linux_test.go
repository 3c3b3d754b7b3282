package devmapper_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
)

// stuck is a device that cannot be suspended for the time being, because a
// read is in flight on a device below it that is suspended itself.
type stuck struct {
	lab
	bottom, top devmapper.Ref
	info        devmapper.Info
	read        chan error
}

func newStuck(t *testing.T) *stuck {
	l := lab{Client: openKernel(t)}
	bottom := activate(t, l, "test-stuck-bottom", devmapper.Target{Length: 64, Type: "zero"})
	top := activate(t, l, "test-stuck-top", devmapper.Target{Length: 64, Type: "linear", Params: bottom.Dev.String() + " 0"})
	s := &stuck{l, devmapper.ByDev(bottom.Dev), devmapper.ByDev(top.Dev), top, make(chan error, 1)}
	if err := l.Suspend(t.Context(), s.bottom, devmapper.SuspendOptions{}); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(node(top.Dev), os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer f.Close()
		_, err := f.ReadAt(aligned(4096), 0)
		s.read <- err
	}()
	for !s.inFlight(t) {
		runtime.Gosched()
	}
	return s
}

// release lets the read go.
func (s *stuck) release(t *testing.T) {
	t.Helper()
	if _, err := s.Resume(s.bottom, devmapper.ResumeOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := <-s.read; err != nil {
		t.Errorf("read: %v", err)
	}
}

func (s *stuck) inFlight(t *testing.T) bool {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/sys/block/dm-%d/inflight", s.info.Dev.Minor))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(strings.Fields(string(b)), func(n string) bool { return n != "0" })
}

// aligned is a buffer that direct I/O accepts.
func aligned(n int) []byte {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		panic(err)
	}
	return b
}

// TestKernelInterruptsSuspend ends the context at many moments of a suspension
// that would not end by itself.
func TestKernelInterruptsSuspend(t *testing.T) {
	s := newStuck(t)
	for _, after := range []time.Duration{1, time.Microsecond, 10 * time.Microsecond, 50 * time.Microsecond, 100 * time.Microsecond,
		500 * time.Microsecond, time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond} {
		for range 10 {
			ctx, cancel := context.WithTimeout(t.Context(), after)
			err := s.Suspend(ctx, s.top, devmapper.SuspendOptions{NoLockFS: true})
			cancel()
			if !errors.Is(err, devmapper.ErrInterrupted) || !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("after %s: %v", after, err)
			}
			if strings.Contains(err.Error(), "not returned") {
				t.Errorf("after %s: the kernel was not interrupted: %v", after, err)
			}
			if info, err := s.Info(s.top); err != nil || info.Suspended {
				t.Fatalf("after %s: %+v, %v", after, info, err)
			}
		}
	}
	s.release(t)
	// With nothing in flight it is as always, and by any kind of reference.
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	for _, ref := range []devmapper.Ref{s.top, devmapper.ByName(s.info.Name), devmapper.ByUUID(s.info.UUID)} {
		if err := s.Suspend(ctx, ref, devmapper.SuspendOptions{}); err != nil {
			t.Error(err)
		}
		if info, err := s.Info(ref); err != nil || !info.Suspended {
			t.Errorf("%+v, %v", info, err)
		}
		if _, err := s.ResumeContext(ctx, ref, devmapper.ResumeOptions{}); err != nil {
			t.Error(err)
		}
	}
}

// TestKernelInterruptsByAnyReference does it once by name and once by uuid.
func TestKernelInterruptsByAnyReference(t *testing.T) {
	s := newStuck(t)
	for _, ref := range []devmapper.Ref{devmapper.ByName(s.info.Name), devmapper.ByUUID(s.info.UUID)} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		err := s.Suspend(ctx, ref, devmapper.SuspendOptions{})
		cancel()
		if !errors.Is(err, devmapper.ErrInterrupted) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	s.release(t)
}

// TestKernelInterruptsResume gives up while the kernel suspends the device to
// change its table.
func TestKernelInterruptsResume(t *testing.T) {
	s := newStuck(t)
	if err := s.Load(s.top, devmapper.LoadOptions{}, devmapper.Target{Length: 128, Type: "zero"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	_, err := s.ResumeContext(ctx, s.top, devmapper.ResumeOptions{NoLockFS: true})
	cancel()
	if !errors.Is(err, devmapper.ErrInterrupted) {
		t.Errorf("resume: %v", err)
	}
	if info, err := s.Info(s.top); err != nil || info.Suspended || !info.Inactive {
		t.Errorf("afterwards: %+v, %v", info, err)
	}
	if table, err := s.Table(s.top); err != nil || len(table) != 1 || table[0].Type != "linear" {
		t.Errorf("afterwards: %v, %v", table, err)
	}
	s.release(t)
	if info, err := s.ResumeContext(t.Context(), s.top, devmapper.ResumeOptions{}); err != nil || info.Inactive {
		t.Errorf("resume: %+v, %v", info, err)
	}
	if table, err := s.Table(s.top); err != nil || len(table) != 1 || table[0].Type != "zero" {
		t.Errorf("in the end: %v, %v", table, err)
	}
}

// TestWaitingSuspendIsNotLost suspends with a context that does not end: the
// signals with which the Go runtime preempts goroutines must not disturb it.
func TestWaitingSuspendIsNotLost(t *testing.T) {
	s := newStuck(t)
	done := make(chan error, 1)
	go func() { done <- s.Suspend(context.Background(), s.top, devmapper.SuspendOptions{NoLockFS: true}) }()
	for range 50 {
		_ = unix.Kill(unix.Getpid(), unix.SIGURG)
		runtime.Gosched()
	}
	s.release(t)
	if err := <-done; err != nil {
		t.Errorf("suspend: %v", err)
	}
	if info, err := s.Info(s.top); err != nil || !info.Suspended {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := s.Resume(s.top, devmapper.ResumeOptions{}); err != nil {
		t.Error(err)
	}
}
