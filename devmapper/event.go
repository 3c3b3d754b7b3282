package devmapper

import (
	"context"
	"time"
)

// Events tells that something has happened in the device-mapper: a device was
// created, removed, renamed or got a new table, or a target raised an event,
// as a thin pool does when it runs low. The kernel does not say what, nor
// which device: look at the EventNr of [Client.List]. Everybody's devices
// count, so most wake-ups mean nothing to you.
//
// Events has begun to watch when it returns, so that a List after it misses
// nothing. Events that come faster than they are received become one. The
// channel is closed when the context ends and everything is released, or
// should the kernel refuse to go on.
//
// Each call has a descriptor of its own and takes no thread. Needs interface
// 4.37 (Linux 4.14).
func (c *Client) Events(ctx context.Context) (<-chan struct{}, error) {
	return c.EventsWithin(ctx, 0)
}

// EventsWithin is [Client.Events] for a receiver who need not know at once: he
// is told so much later, of all that has happened until then. In a burst of
// events he, and the watching itself, cost as much as for one of them.
func (c *Client) EventsWithin(ctx context.Context, later time.Duration) (<-chan struct{}, error) {
	r := &request{cmd: CmdArmPoll, op: opEvents}
	if err := c.need(versionArmPoll, r); err != nil {
		return nil, err
	}
	src, err := c.transport.Events()
	if err != nil {
		return nil, r.fail(err)
	}
	if err := c.arm(src); err != nil {
		src.Close()
		return nil, r.fail(err)
	}
	ch := make(chan struct{}, 1)
	go func() {
		defer close(ch)
		defer src.Close()
		for {
			if src.Wait(ctx) != nil || !pause(ctx, later) {
				return
			}
			// Armed before the receiver looks, or what happens between his
			// look and the arming would be lost.
			if c.arm(src) != nil {
				return
			}
			select {
			case ch <- struct{}{}:
			default:
			}
		}
	}()
	return ch, nil
}

// pause is false where the context ends first.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (c *Client) arm(src EventSource) error {
	c.stats[CmdArmPoll].Add(1)
	return src.Arm()
}
