package dmtest

import (
	"context"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/dmlayer/dmlayer/devmapper"
)

// Major is the major number of the devices of a [Kernel].
const Major = 254

// Kernel is a device-mapper in memory. Its methods and the clients on it are
// safe for concurrent use; it carries out one request after the other.
type Kernel struct {
	mu        sync.Mutex
	devices   []*device
	pools     map[devmapper.DevNum]*Pool // by metadata device
	events    uint64
	changed   chan struct{} // closed and replaced with every event
	intercept func(context.Context, Request) error
}

// NewKernel makes a device-mapper without devices.
func NewKernel() *Kernel {
	return &Kernel{pools: make(map[devmapper.DevNum]*Pool), changed: make(chan struct{})}
}

// Client makes a client that talks to k.
func (k *Kernel) Client(opts ...devmapper.Option) *devmapper.Client {
	return devmapper.New(k.Transport(), opts...)
}

// Transport is what a client of k is made with; for tests that put something
// in between.
func (k *Kernel) Transport() devmapper.Transport {
	return &transport{
		handle: k.handle,
		events: func() devmapper.EventSource { return &eventSource{kernel: k} },
	}
}

// Intercept makes k call f before each request, outside of its lock; nil stops
// that. A request for which f returns an error fails with it and does nothing.
// f may block, to hold a request back; the context is the request's.
func (k *Kernel) Intercept(f func(context.Context, Request) error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.intercept = f
}

// Reboot takes all devices away and keeps what the pools had committed.
func (k *Kernel) Reboot() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.devices = nil
	for _, p := range k.pools {
		p.reboot()
	}
	k.event()
}

// Open opens a device as a mount or a program would, which makes it busy.
// Calling close again does nothing. The error is ENXIO without such a device.
func (k *Kernel) Open(name devmapper.Name) (close func(), err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.find(Request{Name: string(name)})
	if d == nil {
		return nil, syscall.ENXIO
	}
	d.opens++
	return sync.OnceFunc(func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		d.opens--
		k.reap()
	}), nil
}

// Names are the names of all devices, sorted.
func (k *Kernel) Names() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var names []string
	for _, d := range k.devices {
		names = append(names, d.name)
	}
	slices.Sort(names)
	return names
}

type device struct {
	name, uuid string
	dev        devmapper.DevNum
	live       *table
	staged     *table
	suspended  bool
	deferred   bool
	eventNr    uint32
	opens      int32 // by Open
}

type table struct {
	targets  []target
	readOnly bool
}

func (k *Kernel) handle(ctx context.Context, r Request) (Reply, error) {
	k.mu.Lock()
	intercept := k.intercept
	k.mu.Unlock()
	if intercept != nil {
		if err := intercept(ctx, r); err != nil {
			return Reply{}, err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch r.Cmd {
	case devmapper.CmdVersion:
		return Reply{}, nil
	case devmapper.CmdListDevices:
		return k.list(r), nil
	case devmapper.CmdCreate:
		return k.create(r)
	case devmapper.CmdListVersions, devmapper.CmdGetTargetVersion:
		return versions(r)
	}
	d := k.find(r)
	if d == nil {
		return Reply{}, syscall.ENXIO
	}
	switch r.Cmd {
	case devmapper.CmdRemove:
		return k.remove(d, r)
	case devmapper.CmdRename:
		return k.rename(d, r)
	case devmapper.CmdSuspend:
		return k.suspendOrResume(d, r)
	case devmapper.CmdDevStatus:
		return Reply{Info: k.info(d)}, nil
	case devmapper.CmdTableLoad:
		return k.load(d, r)
	case devmapper.CmdTableClear:
		d.staged = nil
		k.reap()
		return Reply{Info: k.info(d)}, nil
	case devmapper.CmdTableDeps:
		return k.deps(d), nil
	case devmapper.CmdTableStatus:
		return k.status(d, r), nil
	case devmapper.CmdTargetMessage:
		return k.message(d, r)
	}
	return Reply{}, syscall.ENOTTY
}

// find looks a device up as the kernel does: by exactly one of the three.
func (k *Kernel) find(r Request) *device {
	if r.Name != "" && r.UUID != "" || (r.Name != "" || r.UUID != "") && !r.Dev.IsZero() {
		return nil
	}
	for _, d := range k.devices {
		switch {
		case r.Name != "" && d.name == r.Name, r.UUID != "" && d.uuid == r.UUID, !r.Dev.IsZero() && d.dev == r.Dev:
			return d
		}
	}
	return nil
}

func (k *Kernel) info(d *device) devmapper.Info {
	i := devmapper.Info{
		Name: devmapper.Name(d.name), UUID: devmapper.UUID(d.uuid), Dev: d.dev,
		OpenCount: k.openCount(d), EventNr: d.eventNr, Suspended: d.suspended,
		InternalSuspended: k.poolSuspended(d),
		Active:            d.live != nil, Inactive: d.staged != nil, DeferredRemove: d.deferred,
	}
	if d.live != nil {
		i.TargetCount, i.ReadOnly = uint32(len(d.live.targets)), d.live.readOnly
	}
	return i
}

// openCount counts opens and the tables, live and staged, that lie on d.
func (k *Kernel) openCount(d *device) int32 {
	n := d.opens
	for _, other := range k.devices {
		for _, t := range []*table{other.live, other.staged} {
			if t != nil && slices.Contains(t.deps(), d.dev) {
				n++
			}
		}
	}
	return n
}

func (t *table) deps() []devmapper.DevNum {
	var deps []devmapper.DevNum
	for _, tg := range t.targets {
		for _, d := range tg.deps() {
			if !slices.Contains(deps, d) {
				deps = append(deps, d)
			}
		}
	}
	return deps
}

func (k *Kernel) event() {
	k.events++
	close(k.changed)
	k.changed = make(chan struct{})
}

// reap carries out deferred removals, from the top down.
func (k *Kernel) reap() {
	for i := 0; i < len(k.devices); i++ {
		if d := k.devices[i]; d.deferred && k.openCount(d) == 0 {
			k.drop(d)
			i = -1
		}
	}
}

func (k *Kernel) drop(d *device) {
	k.devices = slices.DeleteFunc(k.devices, func(o *device) bool { return o == d })
	k.event()
}

func (k *Kernel) list(r Request) Reply {
	var list []devmapper.ListEntry
	for _, d := range k.devices {
		if strings.HasPrefix(d.uuid, r.UUID) && strings.HasPrefix(d.name, r.Name) {
			list = append(list, devmapper.ListEntry{Name: devmapper.Name(d.name), UUID: devmapper.UUID(d.uuid), Dev: d.dev, EventNr: d.eventNr})
		}
	}
	return Reply{List: list}
}

func (k *Kernel) create(r Request) (Reply, error) {
	if r.Name == "" || strings.Contains(r.Name, "/") {
		return Reply{}, syscall.EINVAL
	}
	minor := uint32(0)
	for _, d := range k.devices {
		if d.name == r.Name || r.UUID != "" && d.uuid == r.UUID {
			return Reply{}, syscall.EBUSY
		}
	}
	for slices.ContainsFunc(k.devices, func(d *device) bool { return d.dev.Minor == minor }) {
		minor++
	}
	d := &device{name: r.Name, uuid: r.UUID, dev: devmapper.DevNum{Major: Major, Minor: minor}}
	k.devices = append(k.devices, d)
	k.event()
	return Reply{Info: k.info(d)}, nil
}

func (k *Kernel) remove(d *device, r Request) (Reply, error) {
	if k.openCount(d) > 0 {
		if r.Flags&DeferredRemove == 0 {
			return Reply{}, syscall.EBUSY
		}
		d.deferred = true
		return Reply{Info: devmapper.Info{DeferredRemove: true}}, nil
	}
	k.drop(d)
	k.reap()
	return Reply{UeventGenerated: true}, nil
}

func (k *Kernel) rename(d *device, r Request) (Reply, error) {
	setUUID := r.Flags&UUIDFlag != 0
	if r.Name == "" {
		return Reply{}, syscall.ENXIO
	}
	if setUUID && d.uuid != "" {
		return Reply{}, syscall.EINVAL
	}
	for _, o := range k.devices {
		if setUUID && o.uuid == r.Text || !setUUID && o.name == r.Text {
			return Reply{}, syscall.EBUSY
		}
	}
	rep := Reply{UeventGenerated: true, Info: k.info(d)} // with the old name
	if setUUID {
		d.uuid = r.Text
	} else {
		d.name = r.Text
	}
	d.eventNr++
	k.event()
	return rep, nil
}

func (k *Kernel) suspendOrResume(d *device, r Request) (Reply, error) {
	if r.Flags&Suspend != 0 {
		d.suspended = true
		return Reply{Info: k.info(d)}, nil
	}
	uevent := d.suspended || d.staged != nil
	if d.staged != nil {
		d.live, d.staged, d.suspended = d.staged, nil, true
		k.reap()
		k.event()
	}
	if d.live != nil && d.suspended {
		for _, t := range d.live.targets {
			if err := t.resume(); err != nil {
				return Reply{}, err // stays suspended with the new table
			}
		}
	}
	d.suspended = false
	return Reply{Info: k.info(d), UeventGenerated: uevent}, nil
}

func (k *Kernel) deps(d *device) Reply {
	rep := Reply{Info: k.info(d)}
	if d.live != nil {
		rep.Deps = d.live.deps()
	}
	return rep
}

func (k *Kernel) load(d *device, r Request) (Reply, error) {
	t := &table{readOnly: r.Flags&ReadOnly != 0}
	var end devmapper.Sectors
	for _, spec := range r.Targets {
		if spec.Start != end || spec.Length == 0 {
			return Reply{}, syscall.EINVAL
		}
		end += spec.Length
		tg, err := k.newTarget(d, spec, t.readOnly)
		if err != nil {
			return Reply{}, err
		}
		t.targets = append(t.targets, tg)
	}
	if len(t.targets) == 0 {
		return Reply{}, syscall.EINVAL
	}
	d.staged = t
	k.reap()
	return Reply{Info: k.info(d)}, nil
}

func (k *Kernel) status(d *device, r Request) Reply {
	rep := Reply{Info: k.info(d)}
	t := d.live
	if r.Flags&QueryInactive != 0 {
		t = d.staged
	}
	if t == nil {
		return rep
	}
	for _, tg := range t.targets {
		line := devmapper.TargetStatus{Start: tg.spec().Start, Length: tg.spec().Length, Type: tg.spec().Type}
		if r.Flags&StatusTable != 0 {
			line.Status = tg.table()
		} else {
			line.Status = tg.status()
		}
		rep.Status = append(rep.Status, line)
	}
	return rep
}

func (k *Kernel) message(d *device, r Request) (Reply, error) {
	if r.Text == "@cancel_deferred_remove" {
		d.deferred = false
		return Reply{Info: k.info(d)}, nil
	}
	if d.live == nil {
		return Reply{}, syscall.EINVAL
	}
	for _, t := range d.live.targets {
		if s := t.spec(); r.Sector >= s.Start && r.Sector < s.Start+s.Length {
			if err := t.message(r.Text); err != nil {
				return Reply{}, err
			}
			return Reply{Info: k.info(d)}, nil
		}
	}
	return Reply{}, syscall.EINVAL
}

type eventSource struct {
	kernel *Kernel
	seen   uint64
}

func (e *eventSource) Close() error { return nil }

func (e *eventSource) Arm() error {
	e.kernel.mu.Lock()
	defer e.kernel.mu.Unlock()
	e.seen = e.kernel.events
	return nil
}

func (e *eventSource) Wait(ctx context.Context) error {
	for {
		e.kernel.mu.Lock()
		events, changed := e.kernel.events, e.kernel.changed
		e.kernel.mu.Unlock()
		if events > e.seen {
			return ctx.Err()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
