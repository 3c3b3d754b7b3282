package devmapper_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/devmapper/dmtest"
	"github.com/dmlayer/dmlayer/internal/testenv"
)

// lab is a device-mapper to try things on: the kernel's or dmtest's.
type lab struct {
	*devmapper.Client
	// open opens a device the way a program does.
	open func(t *testing.T, info devmapper.Info) (close func())
}

// onBoth runs a test on the fake and, where there is one, on the kernel: what
// it expects is what both do.
func onBoth(t *testing.T, test func(t *testing.T, l lab)) {
	t.Run("fake", func(t *testing.T) {
		k := dmtest.NewKernel()
		t.Cleanup(func() { // the first one is the last to run
			if left := k.Names(); len(left) > 0 {
				t.Errorf("the test left %q behind", left)
			}
		})
		test(t, lab{k.Client(), func(t *testing.T, info devmapper.Info) func() {
			closeIt, err := k.Open(info.Name)
			if err != nil {
				t.Fatal(err)
			}
			return closeIt
		}})
	})
	t.Run("kernel", func(t *testing.T) {
		test(t, lab{openKernel(t), func(t *testing.T, info devmapper.Info) func() {
			f, err := os.Open(node(info.Dev))
			if err != nil {
				t.Fatal(err)
			}
			return func() { f.Close() }
		}})
	})
}

func openKernel(t *testing.T) *devmapper.Client {
	t.Helper()
	testenv.Need(t, testenv.DM)
	c, err := devmapper.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func node(d devmapper.DevNum) string { return fmt.Sprintf("/dev/dm-%d", d.Minor) }

// transcript notes what a client says.
type transcript struct {
	t     *testing.T
	lines []string
	dev   devmapper.DevNum // is written as DEV
}

func (s *transcript) note(what string, v any, err error) {
	line := what + ":"
	if v != nil {
		line += fmt.Sprintf(" %+v", v)
	}
	if err != nil {
		line += " error"
		for _, known := range []error{devmapper.ErrNotFound, devmapper.ErrExists, devmapper.ErrBusy, devmapper.ErrInvalid, devmapper.ErrUnsupported} {
			if errors.Is(err, known) {
				line += " (" + known.Error() + ")"
			}
		}
	}
	if !s.dev.IsZero() {
		line = strings.ReplaceAll(line, s.dev.String(), "DEV")
	}
	s.lines = append(s.lines, line)
}

func (s *transcript) want(lines ...string) {
	s.t.Helper()
	for i := range max(len(lines), len(s.lines)) {
		var got, want string
		if i < len(s.lines) {
			got = s.lines[i]
		}
		if i < len(lines) {
			want = lines[i]
		}
		if got != want {
			s.t.Errorf("step %d\ngot  %s\nwant %s", i, got, want)
		}
	}
}

// state is Info in brief.
func state(i devmapper.Info) string {
	s := fmt.Sprintf("%s %q %s open=%d event=%d targets=%d", i.Name, i.UUID, i.Dev, i.OpenCount, i.EventNr, i.TargetCount)
	for _, f := range []struct {
		on   bool
		name string
	}{
		{i.ReadOnly, "ro"}, {i.Suspended, "suspended"}, {i.InternalSuspended, "internal"}, {i.Active, "active"},
		{i.Inactive, "inactive"}, {i.DeferredRemove, "deferred"},
	} {
		if f.on {
			s += " " + f.name
		}
	}
	return s
}

func TestLifeCycle(t *testing.T) {
	onBoth(t, func(t *testing.T, l lab) {
		ctx := context.Background()
		s := &transcript{t: t}
		a := devmapper.ByName("test-life")
		zero := devmapper.Target{Length: 2048, Type: "zero"}
		info, err := l.Create("test-life", "DMLTEST-life")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _, _ = l.Remove(devmapper.ByUUID("DMLTEST-life"), devmapper.RemoveOptions{}) }()
		s.dev = info.Dev
		s.note("create", state(info), nil)
		_, err = l.Create("test-life", "")
		s.note("create again", nil, err)
		_, err = l.Create("test-life2", "DMLTEST-life")
		s.note("create with the uuid", nil, err)
		look := func() {
			info, err := l.Info(a)
			s.note("info", state(info), err)
		}
		table := func() {
			table, err := l.Table(a)
			s.note("table", table, err)
			table, err = l.InactiveTable(a)
			s.note("inactive table", table, err)
			status, err := l.Status(a, devmapper.StatusOptions{NoFlush: true})
			s.note("status", status, err)
			deps, err := l.Deps(a)
			s.note("deps", deps, err)
		}
		look()
		table()
		s.note("load of an unknown target", nil, l.Load(a, devmapper.LoadOptions{}, devmapper.Target{Length: 8, Type: "nonsense"}))
		s.note("load with a gap", nil, l.Load(a, devmapper.LoadOptions{}, zero, devmapper.Target{Start: 4096, Length: 8, Type: "error"}))
		look()
		s.note("load", nil, l.Load(a, devmapper.LoadOptions{}, zero))
		look()
		table()
		info, err = l.Resume(a, devmapper.ResumeOptions{})
		s.note("resume", state(info), err)
		table()
		s.note("load more", nil, l.Load(a, devmapper.LoadOptions{ReadOnly: true}, zero, devmapper.Target{Start: 2048, Length: 8, Type: "error"}))
		look()
		s.note("clear", nil, l.Clear(a))
		look()
		s.note("suspend", nil, l.Suspend(ctx, a, devmapper.SuspendOptions{}))
		s.note("suspend again", nil, l.Suspend(ctx, a, devmapper.SuspendOptions{}))
		look()
		s.note("load read-only", nil, l.Load(a, devmapper.LoadOptions{ReadOnly: true}, zero, devmapper.Target{Start: 2048, Length: 8, Type: "error"}))
		info, err = l.Resume(a, devmapper.ResumeOptions{})
		s.note("resume", state(info), err)
		info, err = l.Resume(a, devmapper.ResumeOptions{})
		s.note("resume again", state(info), err)
		table()
		s.note("rename", nil, l.Rename("test-life", "test-new"))
		look()
		a = devmapper.ByName("test-new")
		look()
		s.note("set a second uuid", nil, l.SetUUID("test-new", "DMLTEST-other"))
		_, err = l.Message(a, 0, "hello")
		s.note("message", nil, err)
		deferred, err := l.Remove(a, devmapper.RemoveOptions{})
		s.note("remove", deferred, err)
		look()
		_, err = l.Remove(a, devmapper.RemoveOptions{})
		s.note("remove again", nil, err)
		s.want(lifeCycle...)
	})
}

var lifeCycle = []string{
	`create: test-life "DMLTEST-life" DEV open=0 event=0 targets=0`,
	`create again: error (device-mapper name or uuid is taken)`,
	`create with the uuid: error (device-mapper name or uuid is taken)`,
	`info: test-life "DMLTEST-life" DEV open=0 event=0 targets=0`,
	`table: []`,
	`inactive table: []`,
	`status: []`,
	`deps: []`,
	`load of an unknown target: error (invalid argument)`,
	`load with a gap: error (invalid argument)`,
	`info: test-life "DMLTEST-life" DEV open=0 event=0 targets=0`,
	`load:`,
	`info: test-life "DMLTEST-life" DEV open=0 event=0 targets=0 inactive`,
	`table: []`,
	`inactive table: [0 2048 zero]`,
	`status: []`,
	`deps: []`,
	`resume: test-life "DMLTEST-life" DEV open=0 event=0 targets=1 active`,
	`table: [0 2048 zero]`,
	`inactive table: []`,
	`status: [0 2048 zero]`,
	`deps: []`,
	`load more:`,
	`info: test-life "DMLTEST-life" DEV open=0 event=0 targets=1 active inactive`,
	`clear:`,
	`info: test-life "DMLTEST-life" DEV open=0 event=0 targets=1 active`,
	`suspend:`,
	`suspend again:`,
	`info: test-life "DMLTEST-life" DEV open=0 event=0 targets=1 suspended active`,
	`load read-only:`,
	`resume: test-life "DMLTEST-life" DEV open=0 event=0 targets=2 ro active`,
	`resume again: test-life "DMLTEST-life" DEV open=0 event=0 targets=2 ro active`,
	`table: [0 2048 zero 2048 8 error]`,
	`inactive table: []`,
	`status: [0 2048 zero 2048 8 error]`,
	`deps: []`,
	`rename:`,
	`info:  "" 0:0 open=0 event=0 targets=0 error (no such device-mapper device)`,
	`info: test-new "DMLTEST-life" DEV open=0 event=1 targets=2 ro active`,
	`set a second uuid: error (invalid argument)`,
	`message: error (invalid argument)`,
	`remove: false`,
	`info:  "" 0:0 open=0 event=0 targets=0 error (no such device-mapper device)`,
	`remove again: error (no such device-mapper device)`,
}

// activate makes a running device and removes it with the test.
func activate(t *testing.T, l lab, name devmapper.Name, targets ...devmapper.Target) devmapper.Info {
	t.Helper()
	ref := devmapper.ByName(name)
	if _, err := l.Create(name, devmapper.UUID("DMLTEST-"+name)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := l.Remove(ref, devmapper.RemoveOptions{}); err != nil && !errors.Is(err, devmapper.ErrNotFound) {
			t.Errorf("clean up: %v", err)
		}
	})
	if err := l.Load(ref, devmapper.LoadOptions{}, targets...); err != nil {
		t.Fatal(err)
	}
	info, err := l.Resume(ref, devmapper.ResumeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func TestDeferredRemove(t *testing.T) {
	onBoth(t, func(t *testing.T, l lab) {
		bottom := activate(t, l, "test-bottom", devmapper.Target{Length: 64, Type: "zero"})
		top := activate(t, l, "test-top", devmapper.Target{Length: 64, Type: "linear", Params: bottom.Dev.String() + " 0"})
		b, a := devmapper.ByDev(bottom.Dev), devmapper.ByUUID("DMLTEST-test-top")

		if deps, err := l.Deps(a); err != nil || !slices.Equal(deps, []devmapper.DevNum{bottom.Dev}) {
			t.Errorf("deps of the upper device: %v, %v", deps, err)
		}
		if info, err := l.Info(b); err != nil || info.OpenCount != 1 {
			t.Errorf("the lower device has %d openers, %v", info.OpenCount, err)
		}
		if _, err := l.Remove(b, devmapper.RemoveOptions{}); !errors.Is(err, devmapper.ErrBusy) {
			t.Errorf("remove the lower device: %v", err)
		}
		if deferred, err := l.Remove(b, devmapper.RemoveOptions{Deferred: true}); err != nil || !deferred {
			t.Errorf("remove the lower device later: %v, %v", deferred, err)
		}
		if info, err := l.Info(b); err != nil || !info.DeferredRemove {
			t.Errorf("the lower device is not marked: %+v, %v", info, err)
		}
		if err := l.CancelDeferredRemove(b); err != nil {
			t.Errorf("cancel: %v", err)
		}
		if info, err := l.Info(b); err != nil || info.DeferredRemove {
			t.Errorf("the lower device is still marked: %+v, %v", info, err)
		}

		// Both at once: an opener keeps the upper one, which keeps the lower.
		closeTop := l.open(t, top)
		defer closeTop()
		for _, ref := range []devmapper.Ref{b, a} {
			if deferred, err := l.Remove(ref, devmapper.RemoveOptions{Deferred: true}); err != nil || !deferred {
				t.Errorf("remove %s later: %v, %v", ref, deferred, err)
			}
		}
		events, err := l.Events(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		closeTop()
		waitFor(t, events, func() bool {
			_, err1 := l.Info(a)
			_, err2 := l.Info(b)
			return errors.Is(err1, devmapper.ErrNotFound) && errors.Is(err2, devmapper.ErrNotFound)
		})
		if deferred, err := l.Remove(a, devmapper.RemoveOptions{Deferred: true}); !errors.Is(err, devmapper.ErrNotFound) || deferred {
			t.Errorf("remove what is gone: %v, %v", deferred, err)
		}
	})
}

// waitFor looks again with every event.
func waitFor(t *testing.T, events <-chan struct{}, done func() bool) {
	t.Helper()
	for !done() {
		if _, ok := <-events; !ok {
			t.Fatal("no more events")
		}
	}
}

func TestList(t *testing.T) {
	onBoth(t, func(t *testing.T, l lab) {
		for _, n := range []devmapper.Name{"test-a", "test-b"} {
			activate(t, l, n, devmapper.Target{Length: 8, Type: "error"})
		}
		if _, err := l.Create("test-none", ""); err != nil {
			t.Fatal(err)
		}
		defer func() { _, _ = l.Remove(devmapper.ByName("test-none"), devmapper.RemoveOptions{}) }()
		names := func(prefix devmapper.UUID) string {
			list, err := l.List(prefix)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, e := range list {
				if strings.HasPrefix(string(e.Name), "test-") {
					if info, err := l.Info(devmapper.ByName(e.Name)); err != nil || info.Dev != e.Dev || info.UUID != e.UUID || info.EventNr != e.EventNr {
						t.Errorf("list has %+v, info has %+v, %v", e, info, err)
					}
					names = append(names, string(e.Name))
				}
			}
			slices.Sort(names)
			return strings.Join(names, " ")
		}
		for prefix, want := range map[devmapper.UUID]string{
			"DMLTEST-test-": "test-a test-b", "DMLTEST-test-b": "test-b", "DMLTEST-x": "", "": "test-a test-b test-none",
		} {
			if got := names(prefix); got != want {
				t.Errorf("list of %q: %q, want %q", prefix, got, want)
			}
		}
		if err := l.SetUUID("test-none", "DMLTEST-test-a"); !errors.Is(err, devmapper.ErrExists) {
			t.Errorf("set a uuid that is taken: %v", err)
		}
		if err := l.SetUUID("test-none", "DMLTEST-late"); err != nil {
			t.Error(err)
		}
		if err := l.Rename("test-none", "test-a"); !errors.Is(err, devmapper.ErrExists) {
			t.Errorf("take a name that is taken: %v", err)
		}
		if got := names("DMLTEST-late"); got != "test-none" {
			t.Errorf("the device with the late uuid: %q", got)
		}
	})
}

func TestTargetVersions(t *testing.T) {
	onBoth(t, func(t *testing.T, l lab) {
		one, err := l.TargetVersion("thin-pool")
		if err != nil || one.Major != 1 || one.Minor < 1 {
			t.Errorf("thin-pool: %s, %v", one, err)
		}
		all, err := l.TargetVersions()
		if err != nil || !slices.Contains(all, devmapper.TargetVersion{Type: "thin-pool", Version: one}) {
			t.Errorf("%v, %v", all, err)
		}
		if v, err := l.TargetVersion("nonsense"); !errors.Is(err, devmapper.ErrUnsupported) {
			t.Errorf("nonsense: %s, %v", v, err)
		}
	})
}

func TestEvents(t *testing.T) {
	onBoth(t, func(t *testing.T, l lab) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		events, err := l.Events(ctx)
		if err != nil {
			t.Fatal(err)
		}
		other, err := l.EventsWithin(t.Context(), time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		activate(t, l, "test-event", devmapper.Target{Length: 8, Type: "error"})
		nr := func() uint32 {
			info, err := l.Info(devmapper.ByUUID("DMLTEST-test-event"))
			if err != nil {
				t.Fatal(err)
			}
			return info.EventNr
		}
		for want := range uint32(3) {
			if got := nr(); got != want {
				t.Fatalf("event number %d, want %d", got, want)
			}
			for _, ch := range []<-chan struct{}{events, other} {
				if _, ok := <-ch; !ok {
					t.Fatal("closed")
				}
			}
			name := devmapper.Name(fmt.Sprintf("test-event%d", want))
			info, err := l.Info(devmapper.ByUUID("DMLTEST-test-event"))
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Rename(info.Name, name); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := l.Remove(devmapper.ByUUID("DMLTEST-test-event"), devmapper.RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
		<-events
		<-other
		pausing, err := l.EventsWithin(ctx, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		activate(t, l, "test-event-more", devmapper.Target{Length: 8, Type: "error"})
		cancel()
		for range events { // ends
		}
		for range pausing {
			t.Error("told before its time")
		}
	})
}

// TestReadWhatIsThere reads through a device of two targets.
func TestReadWhatIsThere(t *testing.T) {
	l := lab{Client: openKernel(t)}
	info := activate(t, l, "test-read", devmapper.Target{Length: 8, Type: "zero"}, devmapper.Target{Start: 8, Length: 8, Type: "error"})
	f, err := os.Open(node(info.Dev))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || uint64(size) != devmapper.Sectors(16).Bytes() {
		t.Errorf("size %d, %v", size, err)
	}
	buf := make([]byte, 4096)
	if n, err := f.ReadAt(buf, 0); err != nil || n != len(buf) || strings.Trim(string(buf), "\x00") != "" {
		t.Errorf("read of zeros: %d, %v", n, err)
	}
	if n, err := f.ReadAt(buf, 4096); err == nil {
		t.Errorf("read of errors: %d", n)
	}
}
