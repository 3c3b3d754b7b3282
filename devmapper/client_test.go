package devmapper_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/devmapper/dmtest"
)

// TestOpen opens the kernel's node, or is told why not.
func TestOpen(t *testing.T) {
	c, err := devmapper.Open()
	if err != nil {
		if !errors.Is(err, devmapper.ErrUnsupported) && !errors.Is(err, devmapper.ErrPermission) {
			t.Errorf("neither unsupported nor forbidden: %v", err)
		}
		if !strings.HasPrefix(err.Error(), "devmapper: ") {
			t.Errorf("unexpected text: %v", err)
		}
		return
	}
	v, err := c.Version()
	if err != nil || v.Major != 4 {
		t.Errorf("version %s, %v", v, err)
	}
	if got, want := c.Stats(), (map[string]uint64{"version": 1}); !maps.Equal(got, want) {
		t.Errorf("ioctls %v, want %v", got, want)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.List(""); !errors.Is(err, syscall.EBADF) {
		t.Errorf("after Close: %v", err)
	}
}

// TestManyTargets needs answers that do not fit into the first buffer.
func TestManyTargets(t *testing.T) {
	onBoth(t, func(t *testing.T, l lab) {
		var targets []devmapper.Target
		for i := range 1000 {
			typ := []string{"zero", "error"}[i%2]
			targets = append(targets, devmapper.Target{Start: devmapper.Sectors(8 * i), Length: 8, Type: typ})
		}
		activate(t, l, "test-many", targets...)
		before := l.Stats()["table/status"]
		got, err := l.Table(devmapper.ByName("test-many"))
		if err != nil || !slices.Equal(got, targets) {
			t.Errorf("%d targets come back as %d, %v", len(targets), len(got), err)
		}
		// 48 bytes each: 2 to 32 KiB are too little.
		if n := l.Stats()["table/status"] - before; n != 6 {
			t.Errorf("%d ioctls for the table, want 6", n)
		}
	})
}

func TestManyDevices(t *testing.T) {
	onBoth(t, func(t *testing.T, l lab) {
		const n = 150
		long := strings.Repeat("x", 100)
		for i := range n {
			name := devmapper.Name(fmt.Sprintf("test-%d", i))
			if _, err := l.Create(name, devmapper.UUID(fmt.Sprintf("DMLTEST-%s-%d", long, i))); err != nil {
				t.Fatal(err)
			}
			defer func() { _, _ = l.Remove(devmapper.ByName(name), devmapper.RemoveOptions{}) }()
		}
		list, err := l.List("DMLTEST-" + devmapper.UUID(long))
		if err != nil || len(list) != n {
			t.Fatalf("%d devices, want %d, %v", len(list), n, err)
		}
		seen := make(map[devmapper.UUID]bool)
		for _, e := range list {
			if want := devmapper.UUID("DMLTEST-" + long + strings.TrimPrefix(string(e.Name), "test")); e.UUID != want {
				t.Errorf("%s has uuid %q", e.Name, e.UUID)
			}
			seen[e.UUID] = true
		}
		if len(seen) != n {
			t.Errorf("%d different devices, want %d", len(seen), n)
		}
	})
}

// TestBadArguments are refused before they reach the kernel.
func TestBadArguments(t *testing.T) {
	c := dmtest.New(func(r dmtest.Request) (dmtest.Reply, error) {
		if r.Cmd != devmapper.CmdVersion {
			t.Errorf("the kernel sees %+v", r)
		}
		return dmtest.Reply{}, nil
	})
	ctx := context.Background()
	long := strings.Repeat("x", 129)
	good, none := devmapper.ByName("a"), devmapper.Ref{}
	target := devmapper.Target{Length: 8, Type: "zero"}
	for what, err := range map[string]error{
		"no name":          second(c.Create("", "")),
		"long name":        second(c.Create(devmapper.Name(long), "")),
		"long uuid":        second(c.Create("a", devmapper.UUID(long))),
		"remove":           second(c.Remove(none, devmapper.RemoveOptions{})),
		"deferred":         second(c.Remove(none, devmapper.RemoveOptions{Deferred: true})),
		"cancel":           c.CancelDeferredRemove(none),
		"rename":           c.Rename("a", "b/c"),
		"rename from":      c.Rename("", "b"),
		"uuid":             c.SetUUID("a", ""),
		"long late uuid":   c.SetUUID("a", devmapper.UUID(long)),
		"info":             second(c.Info(devmapper.ByName(devmapper.Name(long)))),
		"suspend":          c.Suspend(ctx, none, devmapper.SuspendOptions{}),
		"resume":           second(c.Resume(none, devmapper.ResumeOptions{})),
		"load":             c.Load(none, devmapper.LoadOptions{}, target),
		"empty table":      c.Load(good, devmapper.LoadOptions{}),
		"no type":          c.Load(good, devmapper.LoadOptions{}, devmapper.Target{Length: 8}),
		"long type":        c.Load(good, devmapper.LoadOptions{}, devmapper.Target{Length: 8, Type: "sixteen-bytes-xx"}),
		"no length":        c.Load(good, devmapper.LoadOptions{}, devmapper.Target{Type: "zero"}),
		"NUL":              c.Load(good, devmapper.LoadOptions{}, devmapper.Target{Length: 8, Type: "zero", Params: "a\x00b"}),
		"clear":            c.Clear(none),
		"table":            second(c.Table(none)),
		"status":           second(c.Status(none, devmapper.StatusOptions{})),
		"deps":             second(c.Deps(none)),
		"empty message":    second(c.Message(good, 0, "")),
		"message with NUL": second(c.Message(good, 0, "a\x00b")),
		"list":             second(c.List(devmapper.UUID(long))),
		"target":           second(c.TargetVersion("")),
	} {
		var e *devmapper.Error
		if !errors.Is(err, devmapper.ErrInvalid) || !errors.As(err, &e) || e.Op == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestOldKernel has what came later refused, or done in another way.
func TestOldKernel(t *testing.T) {
	c := dmtest.New(func(r dmtest.Request) (dmtest.Reply, error) {
		rep := dmtest.Reply{Version: devmapper.Version{Major: 4, Minor: 26, Patch: 1}}
		info := func(i int, uuid devmapper.UUID) devmapper.Info {
			return devmapper.Info{Name: devmapper.Name(fmt.Sprint("dev", i)), UUID: uuid, Dev: devmapper.DevNum{Major: 254, Minor: uint32(i)}}
		}
		switch r.Cmd {
		case devmapper.CmdVersion:
		case devmapper.CmdListDevices:
			rep.NoUUIDs = true
			for i := range 3 {
				rep.List = append(rep.List, devmapper.ListEntry{Name: info(i, "").Name, Dev: info(i, "").Dev})
			}
		case devmapper.CmdDevStatus:
			switch r.Name {
			case "dev0":
				rep.Info = info(0, "OURS-0")
			case "dev1":
				rep.Info = info(1, "THEIRS-1")
			default:
				return rep, syscall.ENXIO // gone meanwhile
			}
		case devmapper.CmdListVersions:
			rep.Versions = []devmapper.TargetVersion{{Type: "thin", Version: devmapper.Version{Major: 1, Minor: 9}}}
		default:
			t.Errorf("the kernel sees %+v", r)
		}
		return rep, nil
	})
	ref := devmapper.ByName("a")
	for what, err := range map[string]error{
		"deferred removal":   second(c.Remove(ref, devmapper.RemoveOptions{Deferred: true})),
		"cancel":             c.CancelDeferredRemove(ref),
		"events":             second(c.Events(t.Context())),
		"version of nothing": second(c.TargetVersion("nothing")),
	} {
		if !errors.Is(err, devmapper.ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if v, err := c.TargetVersion("thin"); err != nil || v.Minor != 9 {
		t.Errorf("version of thin: %s, %v", v, err)
	}
	list, err := c.List("OURS-")
	want := []devmapper.ListEntry{{Name: "dev0", UUID: "OURS-0", Dev: devmapper.DevNum{Major: 254}}}
	if err != nil || !slices.Equal(list, want) {
		t.Errorf("list %+v, want %+v, %v", list, want, err)
	}
}

// TestMessageOnce has an answer that does not fit: asking again would do twice
// what was asked for.
func TestMessageOnce(t *testing.T) {
	answer := "yes"
	var asked int
	c := dmtest.New(func(r dmtest.Request) (dmtest.Reply, error) {
		asked++
		if r.Text != "do it" || r.Sector != 5 {
			t.Errorf("the kernel sees %+v", r)
		}
		return dmtest.Reply{Text: answer}, nil
	})
	got, err := c.Message(devmapper.ByName("a"), 5, "do it")
	if err != nil || got != "yes" || asked != 1 {
		t.Errorf("%q, %v, asked %d times", got, err, asked)
	}
	answer = strings.Repeat("very ", 10000) + "long"
	got, err = c.Message(devmapper.ByName("a"), 5, "do it")
	if !errors.Is(err, devmapper.ErrBadReply) || got != "" || asked != 2 {
		t.Errorf("%d bytes, %v, asked %d times", len(got), err, asked)
	}
}

// TestMessageAnswer gets text from a kernel.
func TestMessageAnswer(t *testing.T) {
	l := lab{Client: openKernel(t)}
	activate(t, l, "test-stats", devmapper.Target{Length: 8, Type: "zero"})
	ref := devmapper.ByName("test-stats")
	id, err := l.Message(ref, 0, "@stats_create - /1")
	if err != nil || strings.TrimSpace(id) != "0" {
		t.Errorf("stats_create: %q, %v", id, err)
	}
	list, err := l.Message(ref, 0, "@stats_list")
	if err != nil || !strings.HasPrefix(list, "0: 0+8 8 ") {
		t.Errorf("stats_list: %q, %v", list, err)
	}
}

func TestUdevFlags(t *testing.T) {
	for _, tt := range []struct {
		opts []devmapper.Option
		want uint32
	}{
		{nil, 0x004e0000},
		{[]devmapper.Option{devmapper.WithUdevFlags(devmapper.DefaultUdevFlags | devmapper.UdevDisableDMRules)}, 0x004f0000},
		{[]devmapper.Option{devmapper.WithUdevFlags(0)}, 0},
	} {
		cookies := make(map[string]uint32)
		c := dmtest.New(func(r dmtest.Request) (dmtest.Reply, error) {
			what := r.Cmd.String()
			if r.Flags&dmtest.Suspend != 0 {
				what = "suspend"
			}
			cookies[what] = r.EventNr
			return dmtest.Reply{}, nil
		}, tt.opts...)
		ref := devmapper.ByName("a")
		if err := errors.Join(
			second(c.Create("a", "")),
			c.Load(ref, devmapper.LoadOptions{}, devmapper.Target{Length: 8, Type: "zero"}),
			c.Suspend(context.Background(), ref, devmapper.SuspendOptions{}),
			second(c.Resume(ref, devmapper.ResumeOptions{})),
			c.Rename("a", "b"),
			second(c.Remove(ref, devmapper.RemoveOptions{})),
		); err != nil {
			t.Fatal(err)
		}
		want := map[string]uint32{"create": 0, "load": 0, "suspend": 0, "suspend/resume": tt.want, "rename": tt.want, "remove": tt.want}
		if !maps.Equal(cookies, want) {
			t.Errorf("cookies %#x, want %#x", cookies, want)
		}
	}
}

func TestSuspendOptions(t *testing.T) {
	var flags dmtest.Flags
	c := dmtest.New(func(r dmtest.Request) (dmtest.Reply, error) {
		flags = r.Flags
		return dmtest.Reply{}, nil
	})
	ref := devmapper.ByName("a")
	for _, tt := range []struct {
		o    devmapper.SuspendOptions
		want dmtest.Flags
	}{
		{devmapper.SuspendOptions{}, 0},
		{devmapper.SuspendOptions{NoLockFS: true}, dmtest.SkipLockFS},
		{devmapper.SuspendOptions{NoFlush: true}, dmtest.NoFlush},
		{devmapper.SuspendOptions{NoLockFS: true, NoFlush: true}, dmtest.SkipLockFS | dmtest.NoFlush},
	} {
		if err := c.Suspend(t.Context(), ref, tt.o); err != nil || flags != tt.want|dmtest.Suspend {
			t.Errorf("suspend %+v: flags %#x, %v", tt.o, flags, err)
		}
		if _, err := c.Resume(ref, tt.o); err != nil || flags != tt.want {
			t.Errorf("resume %+v: flags %#x, %v", tt.o, flags, err)
		}
	}
}

// TestSuspendInterrupted ends the context while the fake kernel is in a wait
// that can be interrupted.
func TestSuspendInterrupted(t *testing.T) {
	k := dmtest.NewKernel()
	c := k.Client()
	l := lab{Client: c}
	activate(t, l, "a", devmapper.Target{Length: 8, Type: "zero"})
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	k.Intercept(func(ctx context.Context, r dmtest.Request) error {
		if r.Flags&dmtest.Suspend == 0 {
			return nil
		}
		cancel(enough)
		<-ctx.Done()
		return ctx.Err()
	})
	err := c.Suspend(ctx, devmapper.ByName("a"), devmapper.SuspendOptions{})
	if !errors.Is(err, devmapper.ErrInterrupted) || !errors.Is(err, context.Canceled) || !errors.Is(err, enough) {
		t.Errorf("suspend: %v", err)
	}
	if info, err := c.Info(devmapper.ByName("a")); err != nil || info.Suspended {
		t.Errorf("afterwards: %+v, %v", info, err)
	}
	before := c.Stats()["suspend/resume"]
	if err := c.Suspend(ctx, devmapper.ByName("a"), devmapper.SuspendOptions{}); !errors.Is(err, devmapper.ErrInterrupted) {
		t.Errorf("suspend with a context that has ended: %v", err)
	}
	if n := c.Stats()["suspend/resume"] - before; n != 0 {
		t.Errorf("%d ioctls for it", n)
	}
}

// TestSuspendTooLate has a kernel that cannot be interrupted and suspends the
// device long after nobody waits for it any more.
func TestSuspendTooLate(t *testing.T) {
	k := dmtest.NewKernel()
	c := k.Client()
	activate(t, lab{Client: k.Client()}, "a", devmapper.Target{Length: 8, Type: "zero"})
	ctx, cancel := context.WithCancel(t.Context())
	frozen := make(chan struct{})
	var resumed atomic.Int32
	k.Intercept(func(_ context.Context, r dmtest.Request) error {
		switch {
		case r.Flags&dmtest.Suspend != 0:
			cancel()
			<-frozen
		case r.Cmd == devmapper.CmdSuspend:
			resumed.Add(1)
		}
		return nil
	})
	err := c.Suspend(ctx, devmapper.ByName("a"), devmapper.SuspendOptions{})
	if !errors.Is(err, devmapper.ErrInterrupted) || !errors.Is(err, context.Canceled) {
		t.Errorf("suspend: %v", err)
	}
	if !strings.Contains(err.Error(), "not returned") {
		t.Errorf("the error does not say that it still runs: %v", err)
	}
	close(frozen)
	if err := c.Close(); err != nil { // waits for it
		t.Fatal(err)
	}
	if n := resumed.Load(); n != 1 {
		t.Errorf("resumed %d times", n)
	}
	if info, err := k.Client().Info(devmapper.ByName("a")); err != nil || info.Suspended {
		t.Errorf("afterwards: %+v, %v", info, err)
	}
}

// TestSuspendFails keeps the failure of a suspension apart from the end of its
// context.
func TestSuspendFails(t *testing.T) {
	c := dmtest.New(func(dmtest.Request) (dmtest.Reply, error) { return dmtest.Reply{}, syscall.EBUSY })
	err := c.Suspend(t.Context(), devmapper.ByName("a"), devmapper.SuspendOptions{})
	if !errors.Is(err, devmapper.ErrBusy) || errors.Is(err, devmapper.ErrInterrupted) {
		t.Errorf("%v", err)
	}
}
