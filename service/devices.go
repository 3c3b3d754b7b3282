package service

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sysfs is where the kernel shows the devices that its events name.
const sysfs = "/sys"

// ownUUID begins the UUIDs of dmlayer's own dm devices, whose sizes nobody else changes.
const ownUUID = "DMLAYER-"

// deviceEvents tells what happens to the block devices of this machine: a disk comes, a loop device or volume gets another size. The kernel
// says so to whoever listens; of other actions than these it wakes nobody. What comes faster than it is received becomes one. The channel is closed when ctx ends.
func deviceEvents(ctx context.Context, wanted func(deviceEvent) bool, actions ...string) (<-chan struct{}, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("listen to the kernel's events of devices: %w", err)
	}
	f := os.NewFile(uintptr(fd), "uevents")
	if err := onlyActions(fd, actions); err != nil {
		return nil, errors.Join(fmt.Errorf("listen to the kernel's events of devices: %w", err), f.Close())
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return nil, errors.Join(fmt.Errorf("listen to the kernel's events of devices: %w", err), f.Close())
	}
	ch := make(chan struct{}, 1)
	go func() {
		defer close(ch)
		defer f.Close()
		stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
		defer stop()
		b := make([]byte, 64<<10)
		for {
			n, err := f.Read(b)
			if err != nil && !errors.Is(err, unix.ENOBUFS) { // more came than there was room for: it may have been among them
				return
			}
			if err == nil && !wanted(parseEvent(b[:n])) {
				continue
			}
			select {
			case ch <- struct{}{}:
			default:
			}
		}
	}()
	return ch, nil
}

// onlyActions has the kernel pass only events over a socket that begin with one of these actions: a thin device that comes and goes raises a dozen others.
func onlyActions(fd int, actions []string) error {
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}} // their first four bytes, "add@" or "chan"
	for i, a := range actions {
		past := uint8(len(actions) - i) // to the last instruction, which takes the event
		filter = append(filter, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: binary.BigEndian.Uint32([]byte(a + "@")), Jt: past})
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: math.MaxUint32})
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
}

// deviceEvent is what the kernel says of a block device; the zero value is said of anything else.
type deviceEvent struct {
	action  string // "add", "change", …
	path    string // below sysfs
	resized bool
}

// parseEvent reads texts that end with a zero byte: ACTION@PATH, and KEY=VALUE.
func parseEvent(text []byte) (e deviceEvent) {
	block := false
	for part := range bytes.SplitSeq(text, []byte{0}) {
		switch key, value, _ := strings.Cut(string(part), "="); key {
		case "ACTION":
			e.action = value
		case "DEVPATH":
			e.path = filepath.Clean("/" + value)
		case "SUBSYSTEM":
			block = value == "block"
		case "RESIZE":
			e.resized = value == "1"
		}
	}
	if !block {
		return deviceEvent{}
	}
	return e
}

// own tells whether it is of one of dmlayer's own devices.
func (e deviceEvent) own(sys string) bool {
	uuid, err := os.ReadFile(filepath.Join(sys, e.path, "dm", "uuid"))
	return err == nil && strings.HasPrefix(string(uuid), ownUUID)
}

// resizedDevice is wanted by whoever makes pools as large as their devices.
func resizedDevice(e deviceEvent) bool { return e.resized && !e.own(sysfs) }

// newDevice is wanted by whoever waits for a disk: a loop device and a dm device get what is on them with a change.
func newDevice(e deviceEvent) bool {
	return (e.action == "add" || e.action == "change") && !e.own(sysfs)
}
