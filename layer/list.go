package layer

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/metadata"
)

// List returns all nodes by name, with what the kernel says of each.
func (s *Store) List(ctx context.Context) ([]Info, error) {
	o, err := s.reader(ctx)
	if err != nil {
		return nil, err
	}
	defer o.Exit()
	var nodes []metadata.Node
	names := map[metadata.Key]string{}
	err = o.view(ctx, func(tx *metadata.Tx) error {
		return tx.Nodes(func(n metadata.Node) error {
			if n.Kind != metadata.KindTemplate {
				nodes = append(nodes, n)
				names[n.Key] = n.Name
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	devices, err := s.pool.Devices()
	if err != nil {
		return nil, err
	}
	mounts, err := fsutil.Mounts()
	if err != nil {
		return nil, err
	}
	byDevice := map[fsutil.DevNum][]string{}
	for _, m := range mounts {
		byDevice[m.Dev] = append(byDevice[m.Dev], m.Dir)
	}
	infos := make([]Info, 0, len(nodes))
	for _, n := range nodes {
		i := Info{Node: public(n, names[n.Parent]), State: StateInactive, id: n.ID}
		if d, ok := devices[n.ID]; ok {
			i.describe(d.Dev, byDevice[fsutil.DevNum(d.Dev)])
			if i.Claims, err = o.claims(n.ID); err != nil {
				return nil, err
			}
		}
		infos = append(infos, i)
	}
	slices.SortFunc(infos, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return infos, nil
}

func (i *Info) describe(d devmapper.DevNum, mountpoints []string) {
	i.State, i.Device, i.Mountpoints = StateActive, "/dev/dm-"+strconv.FormatUint(uint64(d.Minor), 10), mountpoints
	if len(mountpoints) > 0 {
		i.State = StateMounted
	}
}

// Inspect returns one node with what the kernel says of it.
func (s *Store) Inspect(ctx context.Context, name string) (Info, error) {
	o, err := s.reader(ctx)
	if err != nil {
		return Info{}, err
	}
	defer o.Exit()
	i := Info{State: StateInactive}
	err = o.view(ctx, func(tx *metadata.Tx) error {
		n, err := lookup(tx, name)
		if err != nil {
			return err
		}
		i.id = n.ID
		parent, err := parentName(tx, n)
		i.Node = public(n, parent)
		return err
	})
	if err != nil {
		return Info{}, err
	}
	d, err := o.dm().Info(o.ref(i.id))
	if err != nil {
		return i, opError("inspect", name, notFoundIsNil(err))
	}
	mounts, err := fsutil.MountsOf(d.Dev.Major, d.Dev.Minor)
	if err != nil {
		return i, err
	}
	dirs := make([]string, len(mounts))
	for k, m := range mounts {
		dirs[k] = m.Dir
	}
	i.describe(d.Dev, dirs)
	i.Claims, err = o.claims(i.id)
	return i, err
}
