package dmtest_test

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"syscall"
	"testing"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/devmapper/dmtest"
)

var (
	meta = devmapper.DevNum{Major: 7, Minor: 0}
	pool = devmapper.ByName("pool")
)

// activate makes a running device of one target.
func activate(t *testing.T, c *devmapper.Client, name devmapper.Name, target devmapper.Target) devmapper.Info {
	t.Helper()
	if _, err := c.Create(name, ""); err != nil {
		t.Fatal(err)
	}
	if err := c.Load(devmapper.ByName(name), devmapper.LoadOptions{}, target); err != nil {
		t.Fatal(err)
	}
	info, err := c.Resume(devmapper.ByName(name), devmapper.ResumeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func poolTarget() devmapper.Target {
	return devmapper.Target{Length: 128 * 64, Type: "thin-pool", Params: "7:0 7:1 128 0"}
}

func send(t *testing.T, c *devmapper.Client, messages ...string) {
	t.Helper()
	for _, m := range messages {
		if _, err := c.Message(pool, 0, m); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReboot(t *testing.T) {
	k := dmtest.NewKernel()
	c := k.Client()
	if k.Pool(meta) != nil {
		t.Error("a pool on a device that never had one")
	}
	activate(t, c, "pool", poolTarget())
	send(t, c, "create_thin 1", "create_snap 2 1", "set_transaction_id 0 9")
	k.Reboot()
	if names := k.Names(); len(names) > 0 {
		t.Errorf("after the reboot there are %q", names)
	}
	p := k.Pool(meta)
	if ids := p.IDs(); !slices.Equal(ids, []uint32{1, 2}) || p.Time() != 1 {
		t.Errorf("ids %v, time %d", ids, p.Time())
	}
	activate(t, c, "pool", poolTarget())
	status, err := c.Status(pool, devmapper.StatusOptions{NoFlush: true})
	if want := "9 444/4096 0/64 - rw discard_passdown queue_if_no_space - 1024 "; err != nil || status[0].Status != want {
		t.Errorf("status %q, want %q, %v", status[0].Status, want, err)
	}
	if _, err := c.Remove(pool, devmapper.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	k.Format(meta)
	activate(t, c, "pool", poolTarget())
	if ids := k.Pool(meta).IDs(); len(ids) > 0 {
		t.Errorf("after formatting there are %v", ids)
	}
}

// TestFailCommits loses the message that meets the failure, and nothing else.
func TestFailCommits(t *testing.T) {
	k := dmtest.NewKernel()
	c := k.Client()
	activate(t, c, "pool", poolTarget())
	send(t, c, "create_thin 1")
	k.Pool(meta).FailCommits()
	send(t, c, "delete 1") // "succeeds"
	if ids := k.Pool(meta).IDs(); !slices.Equal(ids, []uint32{1}) {
		t.Errorf("ids %v", ids)
	}
	if _, err := c.Message(pool, 0, "delete 1"); !errors.Is(err, syscall.EOPNOTSUPP) {
		t.Errorf("the next message: %v", err)
	}
	k.Pool(meta).Repair()
	send(t, c, "delete 1")
}

func TestMap(t *testing.T) {
	k := dmtest.NewKernel()
	c := k.Client()
	dev := activate(t, c, "pool", poolTarget()).Dev
	send(t, c, "create_thin 1")
	activate(t, c, "thin", devmapper.Target{Length: 1024, Type: "thin", Params: dev.String() + " 1"})
	k.Pool(meta).Map(1, 256)
	send(t, c, "create_snap 2 1")
	activate(t, c, "snap", devmapper.Target{Length: 1024, Type: "thin", Params: dev.String() + " 2"})
	for _, name := range []devmapper.Name{"thin", "snap"} {
		status, err := c.Status(devmapper.ByName(name), devmapper.StatusOptions{})
		if err != nil || status[0].Status != "256 255" {
			t.Errorf("%s: %v, %v", name, status, err)
		}
	}
}

func TestIntercept(t *testing.T) {
	k := dmtest.NewKernel()
	c := k.Client()
	var seen []dmtest.Request
	k.Intercept(func(_ context.Context, r dmtest.Request) error {
		seen = append(seen, r)
		if r.Cmd == devmapper.CmdTableLoad {
			return syscall.EIO
		}
		return nil
	})
	if _, err := c.Create("a", "u"); err != nil {
		t.Fatal(err)
	}
	if err := c.Load(devmapper.ByUUID("u"), devmapper.LoadOptions{ReadOnly: true}, devmapper.Target{Length: 8, Type: "zero"}); !errors.Is(err, syscall.EIO) {
		t.Errorf("load: %v", err)
	}
	if len(seen) != 2 || seen[0].Name != "a" || seen[0].UUID != "u" || seen[1].UUID != "u" || seen[1].Flags&dmtest.ReadOnly == 0 ||
		!slices.Equal(seen[1].Targets, []devmapper.Target{{Length: 8, Type: "zero"}}) {
		t.Errorf("requests %+v", seen)
	}
	k.Intercept(nil)
	if info, err := c.Info(devmapper.ByName("a")); err != nil || info.Inactive {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestOpenIsBusy(t *testing.T) {
	k := dmtest.NewKernel()
	c := k.Client()
	activate(t, c, "a", devmapper.Target{Length: 8, Type: "zero"})
	closeIt, err := k.Open("a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Remove(devmapper.ByName("a"), devmapper.RemoveOptions{}); !errors.Is(err, devmapper.ErrBusy) {
		t.Errorf("remove: %v", err)
	}
	closeIt()
	closeIt()
	if _, err := c.Remove(devmapper.ByName("a"), devmapper.RemoveOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := k.Open("a"); !errors.Is(err, syscall.ENXIO) {
		t.Errorf("open what is gone: %v", err)
	}
}

// FuzzDecode takes requests apart that no client of ours sends.
func FuzzDecode(f *testing.F) {
	var seeds [][]byte
	var cmds []uint8
	record := recorder(func(cmd devmapper.Command, b []byte) {
		seeds, cmds = append(seeds, slices.Clone(b)), append(cmds, uint8(cmd))
	})
	c := devmapper.New(record)
	_ = c.Load(devmapper.ByName("a"), devmapper.LoadOptions{}, devmapper.Target{Length: 8, Type: "zero"}, devmapper.Target{Start: 8, Length: 8, Type: "linear", Params: "7:0 0"})
	_ = c.Rename("a", "b")
	_, _ = c.Message(devmapper.ByName("a"), 0, "create_thin 1")
	for i := range seeds {
		f.Add(cmds[i], seeds[i][:min(len(seeds[i]), 512)])
	}
	f.Fuzz(func(t *testing.T, cmd uint8, b []byte) {
		if len(b) >= 20 { // get past the header
			binary.NativeEndian.PutUint32(b[12:], uint32(len(b)))
			binary.NativeEndian.PutUint32(b[16:], 312)
		}
		k := dmtest.NewKernel()
		activate(t, k.Client(), "pool", poolTarget())
		_, _ = dmtest.Decode(devmapper.Command(cmd), b)
		// A client does not get past its own checks; the transport below does.
		_ = k.Transport().Ioctl(context.Background(), devmapper.Command(cmd), slices.Clone(b))
	})
}

type recorder func(devmapper.Command, []byte)

func (r recorder) Ioctl(_ context.Context, cmd devmapper.Command, b []byte) error {
	r(cmd, b)
	return syscall.EIO
}
func (r recorder) Events() (devmapper.EventSource, error) { return nil, syscall.ENOTTY }
func (r recorder) Close() error                           { return nil }
