package dmtest

import (
	"fmt"
	"strconv"
	"syscall"

	"github.com/dmlayer/dmlayer/devmapper"
)

// thin is the target.
type thin struct {
	*Pool
	line devmapper.Target
	pool devmapper.DevNum
	id   uint32
	// origin is the external origin, if any.
	origin []devmapper.DevNum
}

func (k *Kernel) newThin(d *device, spec devmapper.Target, args []string) (target, error) {
	if len(args) != 2 && len(args) != 3 {
		return nil, syscall.EINVAL
	}
	poolDev, err := devmapper.ParseDevNum(args[0])
	if err != nil {
		return nil, syscall.ENODEV
	}
	id, err := strconv.ParseUint(args[1], 10, 32)
	if err != nil || id > 1<<24-1 {
		return nil, syscall.EINVAL
	}
	t := &thin{line: spec, pool: poolDev, id: uint32(id)}
	if len(args) == 3 {
		origin, err := devmapper.ParseDevNum(args[2])
		if err != nil {
			return nil, syscall.ENODEV
		}
		t.origin = []devmapper.DevNum{origin}
	}
	holder := k.find(Request{Dev: poolDev})
	if holder == nil {
		return nil, syscall.ENODEV
	}
	if holder == d || holder.live == nil {
		return nil, syscall.EINVAL
	}
	tp, ok := holder.live.targets[0].(*thinPool)
	if !ok {
		return nil, syscall.EINVAL
	}
	t.Pool = tp.Pool
	if t.mode == "Fail" {
		return nil, syscall.EINVAL
	}
	if _, ok := t.thins[t.id]; !ok {
		return nil, errNoData
	}
	return t, nil
}

// thinInUse reports whether a table, live or staged, has the id.
func (k *Kernel) thinInUse(pool *device, id uint32) bool {
	for _, d := range k.devices {
		for _, t := range []*table{d.live, d.staged} {
			if t == nil {
				continue
			}
			for _, tg := range t.targets {
				if th, ok := tg.(*thin); ok && th.Pool.dev == pool && th.id == id {
					return true
				}
			}
		}
	}
	return false
}

func (t *thin) spec() devmapper.Target   { return t.line }
func (t *thin) deps() []devmapper.DevNum { return append([]devmapper.DevNum{t.pool}, t.origin...) }
func (t *thin) resume() error            { return nil }
func (t *thin) message(string) error     { return syscall.EINVAL }

func (t *thin) table() string {
	s := fmt.Sprintf("%s %d", t.pool, t.id)
	for _, o := range t.origin {
		s += " " + o.String()
	}
	return s
}

func (t *thin) status() string {
	if t.mode == "Fail" {
		return "Fail"
	}
	mapped := t.thins[t.id]
	if mapped == 0 {
		return "0 -"
	}
	return fmt.Sprintf("%d %d", mapped, mapped-1)
}
