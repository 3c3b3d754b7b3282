package devmapper

import (
	"context"
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
			if src.Wait(ctx) != nil {
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

func (c *Client) arm(src EventSource) error {
	c.stats[CmdArmPoll].Add(1)
	return src.Arm()
}
