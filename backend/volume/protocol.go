package volume

import (
	"context"

	"github.com/dmlayer/dmlayer/backend/plugin"
)

// Kind is what a plugin with these methods says that it is.
const Kind = "VolumeDriver"

type request struct {
	Name string
	ID   string
	Opts map[string]string
}

type (
	empty       struct{}
	mountAnswer struct{ Mountpoint string }
	getAnswer   struct{ Volume Volume }
	listAnswer  struct{ Volumes []Volume }
	capsAnswer  struct{ Capabilities capabilities }
)

// capabilities: a volume is on this machine only.
type capabilities struct{ Scope string }

// Register adds the methods of a volume driver to a server.
func (d *Driver) Register(s *plugin.Server) {
	s.OnActivate(d.wake)
	plugin.Handle(s, "VolumeDriver.Create", func(ctx context.Context, r request) (empty, error) { return empty{}, d.Create(ctx, r.Name, r.Opts) })
	plugin.Handle(s, "VolumeDriver.Remove", func(ctx context.Context, r request) (empty, error) { return empty{}, d.Remove(ctx, r.Name) })
	plugin.Handle(s, "VolumeDriver.Mount", func(ctx context.Context, r request) (mountAnswer, error) {
		dir, err := d.Mount(ctx, r.Name, r.ID)
		return mountAnswer{dir}, err
	})
	plugin.Handle(s, "VolumeDriver.Unmount", func(ctx context.Context, r request) (empty, error) { return empty{}, d.Unmount(ctx, r.Name, r.ID) })
	plugin.Handle(s, "VolumeDriver.Path", func(ctx context.Context, r request) (mountAnswer, error) {
		v, err := d.Get(ctx, r.Name)
		return mountAnswer{v.Mountpoint}, err
	})
	plugin.Handle(s, "VolumeDriver.Get", func(ctx context.Context, r request) (getAnswer, error) {
		v, err := d.Get(ctx, r.Name)
		return getAnswer{v}, err
	})
	plugin.Handle(s, "VolumeDriver.List", func(ctx context.Context, _ request) (listAnswer, error) {
		list, err := d.List(ctx)
		return listAnswer{list}, err
	})
	plugin.Handle(s, "VolumeDriver.Capabilities", func(context.Context, request) (capsAnswer, error) {
		return capsAnswer{capabilities{"local"}}, nil
	})
}
