// Package graphdriver is a graph driver plugin of Docker on layer: image layers and containers are nodes, each with a device of its own.
//
// Docker names them by ids of its own. A node is named after its id, so that each is found by one look-up, and has attributes that say that it is
// Docker's. A layer becomes a node when its content comes, in one piece: until then nothing but this process's memory knows it, and after a kill
// nothing is left of it. Whatever uses it before, as BuildKit does, makes it a node that can be written to.
//
// Mounts are counted in the run directory. They outlive Docker and this process, as containers do.
package graphdriver

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"sync"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
)

const (
	keeper = "docker" // of the nodes
	user   = "docker" // of their mounts

	attrRole = "docker.role"

	roleLayer     = "layer"     // of an image
	roleInit      = "init"      // between a container and its image: what Docker puts there before the container runs
	roleContainer = "container" // and what else can be written to

	nodePrefix = "docker-"
	initSuffix = "-init"
)

// Driver is the graph driver on one pool's nodes. It is safe for concurrent use.
type Driver struct {
	store *layer.Store

	mu      sync.Mutex
	pending map[string]*pending // layers that have no content yet, by Docker's id
	options Options

	known sync.Map // names of nodes that were seen to be Docker's, which spares looking
}

// New returns the driver of a pool's nodes, with the options that Docker gave last: it gives them when it starts, which may be long ago.
func New(ctx context.Context, store *layer.Store) (*Driver, error) {
	d := &Driver{store: store, pending: map[string]*pending{}}
	var err error
	if d.options, err = loadOptions(ctx, store); err != nil {
		return nil, fmt.Errorf("graph driver: %w", err)
	}
	return d, nil
}

// Docker's ids are 64 hexadecimal digits, of some things with a word behind them; others are taken too, as long as they make a node's name.
var idGrammar = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,119}$`)

// nodeName returns the name of the node with an id.
func nodeName(id string) (string, error) {
	if !idGrammar.MatchString(id) {
		return "", fmt.Errorf("id %q: %w", id, errs.ErrInvalid)
	}
	return nodePrefix + id, nil
}

// node returns the node with an id, which must be Docker's.
func (d *Driver) node(ctx context.Context, id string) (layer.Node, error) {
	name, err := nodeName(id)
	if err != nil {
		return layer.Node{}, err
	}
	n, err := d.store.Get(ctx, name)
	if err == nil && n.Attrs[attrRole] == "" {
		err = fmt.Errorf("node %q is not Docker's: %w", name, errs.ErrNotFound)
	}
	return n, err
}

// name returns the name of the node with an id. That it is Docker's is looked up once; that it is there, whatever is done with it finds out.
func (d *Driver) name(ctx context.Context, id string) (string, error) {
	name, err := nodeName(id)
	if err != nil {
		return "", err
	}
	if _, ok := d.known.Load(name); ok {
		return name, nil
	}
	n, err := d.node(ctx, id)
	if err != nil {
		return "", err
	}
	d.known.Store(n.Name, true)
	return n.Name, nil
}

// forgetGone passes an error on, and forgets a node that it says is gone.
func (d *Driver) forgetGone(name string, err error) error {
	if errors.Is(err, errs.ErrNotFound) {
		d.known.Delete(name)
	}
	return err
}

func attrs(role string) map[string]string {
	return map[string]string{layer.AttrKeeper: keeper, attrRole: role}
}

// Exists tells whether there is a layer or container with that id.
func (d *Driver) Exists(ctx context.Context, id string) (bool, error) {
	if d.find(id) != nil {
		return true, nil
	}
	_, err := d.node(ctx, id)
	if errors.Is(err, errs.ErrNotFound) || errors.Is(err, errs.ErrInvalid) {
		return false, nil
	}
	return err == nil, err
}

// Remove removes a layer or container. One that is not there is no error; one that has children is ErrBusy, and so is one that somebody has mounted elsewhere
// or is working in. Mounts that were counted for Docker go: it removes nothing that it still uses.
func (d *Driver) Remove(ctx context.Context, id string) error {
	gone, err := d.forget(ctx, id)
	if gone || err != nil {
		return err
	}
	name, err := d.name(ctx, id)
	if errors.Is(err, errs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	err = d.remove(ctx, name)
	if errors.Is(err, errs.ErrBusy) {
		if err := d.store.Dismiss(ctx, name, user, 0); err != nil {
			return err
		}
		err = d.remove(ctx, name)
	}
	if err == nil || errors.Is(err, errs.ErrNotFound) {
		d.known.Delete(name)
		return nil
	}
	return err
}

// remove removes a node, and leaves its blocks to whoever serves the pool.
func (d *Driver) remove(ctx context.Context, name string) error {
	_, err := d.store.RemoveNode(ctx, name, layer.RemoveOptions{NoWait: true})
	return err
}
