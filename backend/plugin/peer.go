package plugin

import (
	"context"
	"net"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/process"
)

type peerKey struct{}

// Peer returns the process that asks, by the context of its request: a dockerd. It is "" where the kernel does not tell, as of a process in a namespace that is not seen from here.
func Peer(ctx context.Context) process.Identity {
	p, _ := ctx.Value(peerKey{}).(process.Identity)
	return p
}

// withPeer notes who is at the other end of a connection.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	p, err := peerOf(c)
	if err != nil || p == "" {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, p)
}

func peerOf(c net.Conn) (process.Identity, error) {
	conn, ok := c.(syscall.Conn)
	if !ok {
		return "", nil
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return "", err
	}
	var cred *unix.Ucred
	var cerr error
	if err = raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err == nil {
		err = cerr
	}
	if err != nil || cred.Pid <= 0 {
		return "", err
	}
	return process.Identify(int(cred.Pid))
}
