package dmtest

import (
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/dmlayer/dmlayer/devmapper"
)

// target is one line of a table. All methods are called with the kernel's
// lock held.
type target interface {
	spec() devmapper.Target
	deps() []devmapper.DevNum
	table() string
	status() string
	resume() error
	message(text string) error
}

var targetVersions = []devmapper.TargetVersion{
	{Type: "thin-pool", Version: devmapper.Version{Major: 1, Minor: 22}},
	{Type: "thin", Version: devmapper.Version{Major: 1, Minor: 22}},
	{Type: "zero", Version: devmapper.Version{Major: 1, Minor: 2}},
	{Type: "linear", Version: devmapper.Version{Major: 1, Minor: 4}},
	{Type: "error", Version: devmapper.Version{Major: 1, Minor: 6}},
}

func versions(r Request) (Reply, error) {
	if r.Cmd == devmapper.CmdListVersions {
		return Reply{Versions: targetVersions}, nil
	}
	for _, v := range targetVersions {
		if v.Type == r.Name {
			return Reply{Versions: []devmapper.TargetVersion{v}}, nil
		}
	}
	return Reply{}, syscall.EINVAL
}

func (k *Kernel) newTarget(d *device, spec devmapper.Target, readOnly bool) (target, error) {
	args := strings.Fields(spec.Params)
	switch spec.Type {
	case "zero", "error":
		return &plain{line: spec}, nil
	case "linear":
		return newLinear(spec, args)
	case "thin-pool":
		return k.newThinPool(d, spec, args, readOnly)
	case "thin":
		return k.newThin(d, spec, args)
	}
	return nil, syscall.EINVAL
}

// plain is a target without a state.
type plain struct {
	line  devmapper.Target
	below []devmapper.DevNum
}

func newLinear(spec devmapper.Target, args []string) (target, error) {
	if len(args) != 2 {
		return nil, syscall.EINVAL
	}
	dev, err := devmapper.ParseDevNum(args[0])
	if err != nil {
		return nil, syscall.ENODEV
	}
	if _, err := strconv.ParseUint(args[1], 10, 64); err != nil {
		return nil, syscall.EINVAL
	}
	spec.Params = strings.Join(args, " ")
	return &plain{line: spec, below: []devmapper.DevNum{dev}}, nil
}

func (p *plain) spec() devmapper.Target   { return p.line }
func (p *plain) deps() []devmapper.DevNum { return p.below }
func (p *plain) table() string            { return p.line.Params }
func (p *plain) status() string           { return "" }
func (p *plain) resume() error            { return nil }
func (p *plain) message(string) error     { return syscall.EINVAL }

// poolSuspended reports whether d is a thin device of a suspended pool.
func (k *Kernel) poolSuspended(d *device) bool {
	if d.live == nil {
		return false
	}
	return slices.ContainsFunc(d.live.targets, func(t target) bool {
		th, ok := t.(*thin)
		if !ok {
			return false
		}
		pool := k.find(Request{Dev: th.pool})
		return pool != nil && pool.suspended
	})
}
