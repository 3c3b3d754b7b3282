package service

import (
	"context"
	"net"
	"path/filepath"
	"testing"
)

// systemd hears that the process lives from its beginning to its end, also while requests are finished, and at once that it stops.
func TestTellsSystemd(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", "")
	heard := func(want string) {
		t.Helper()
		b := make([]byte, 100)
		for n := 0; string(b[:n]) != want; {
			if n, err = l.Read(b); err != nil {
				t.Fatal(err)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	n := newNotifier()
	end := n.live(ctx)
	heard("WATCHDOG=1")
	n.extend()
	heard("EXTEND_TIMEOUT_USEC=150000000")
	heard("WATCHDOG=1")
	cancel()
	heard("STOPPING=1")
	heard("WATCHDOG=1")
	heard("WATCHDOG=1")
	end()
	n.send("over")
	b := make([]byte, 100)
	for text := ""; text != "over"; {
		k, err := l.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if text = string(b[:k]); text == "STOPPING=1" {
			t.Error("stopped twice")
		}
	}
}
