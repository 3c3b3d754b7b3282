package service

import (
	"net"
	"os"
)

// notifier tells systemd how the service is, as sd_notify(3) says: lines NAME=value in a datagram to the socket that
// NOTIFY_SOCKET names. Where nobody asked, nothing is told.
type notifier struct{ address *net.UnixAddr }

func newNotifier() *notifier {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return &notifier{}
	}
	return &notifier{&net.UnixAddr{Name: name, Net: "unixgram"}} // Go takes @ for the abstract name space as systemd does
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
