package service

import (
	"context"
	"net"
	"os"
	"strconv"
	"sync"
	"time"
)

// notifier tells systemd how the service is, as sd_notify(3) says: lines NAME=value in a datagram to the socket that
// NOTIFY_SOCKET names. Where nobody asked, nothing is told.
type notifier struct {
	address *net.UnixAddr
	every   time.Duration // at least as often it wants to hear that we live; 0 is never
}

// newNotifier takes what systemd has put into the environment, so that programs that are started do not speak for us.
func newNotifier() *notifier {
	n := &notifier{}
	if name := os.Getenv("NOTIFY_SOCKET"); name != "" {
		n.address = &net.UnixAddr{Name: name, Net: "unixgram"} // Go takes @ for the abstract name space as systemd does
	}
	pid, usec := os.Getenv("WATCHDOG_PID"), os.Getenv("WATCHDOG_USEC")
	if us, err := strconv.ParseInt(usec, 10, 64); err == nil && us > 0 && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		n.every = time.Duration(us) * time.Microsecond / 2
	}
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"} {
		_ = os.Unsetenv(name)
	}
	return n
}

// send tells; that nobody listens is no reason to stop working.
func (n *notifier) send(state string) {
	if n.address == nil {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, n.address)
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = conn.Write([]byte(state))
}

// moreTime is how much longer systemd is to wait for the start, each time that a disk is waited for. It is looked for once a minute at least.
const moreTime = 150 * time.Second

// extend asks for more time to start.
func (n *notifier) extend() {
	n.send("EXTEND_TIMEOUT_USEC=" + strconv.FormatInt(moreTime.Microseconds(), 10))
}

// live says that the process lives, until the function that it returns is called, and that it stops as soon as ctx has ended: what runs is finished
// after that.
func (n *notifier) live(ctx context.Context) (end func()) {
	stopping := sync.OnceFunc(func() { n.send("STOPPING=1") })
	unwatch := context.AfterFunc(ctx, stopping)
	alive, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var dog sync.WaitGroup
	dog.Go(func() { n.watchdog(alive) })
	return func() {
		unwatch()
		stopping()
		cancel()
		dog.Wait()
	}
}

// watchdog says that the process lives, as often as it was asked to, until ctx ends. It says nothing about the pool: a process
// that waits for a device which does not answer is not helped by being killed.
func (n *notifier) watchdog(ctx context.Context) {
	if n.every == 0 {
		return
	}
	t := time.NewTicker(n.every)
	defer t.Stop()
	for {
		n.send("WATCHDOG=1")
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}
