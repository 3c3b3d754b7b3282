package cli

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/distribution/reference"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
)

// finder finds what an argument names: a node, or with images a node's name, the start of a layer's
// name, or an image.
type finder struct {
	get   func(ctx context.Context, name string) (layer.Node, error)
	list  func(ctx context.Context) ([]layer.Info, error)
	image func(ctx context.Context, ref string) (string, error) // the image's top layer
}

func newFinder(s *layer.Store) finder {
	return finder{s.Get, s.List, func(ctx context.Context, ref string) (string, error) {
		return image.Resolve(ctx, s, ref)
	}}
}

const (
	nodePrefix  = "node:"
	imagePrefix = "image:"
)

var (
	layerPrefix = regexp.MustCompile(`^(sha256-)?[0-9a-f]{12,63}$`)
	fullLayer   = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// checkNode refuses an argument that can name neither a node nor an image, before anything is touched.
func checkNode(arg string) error {
	if rest, ok := strings.CutPrefix(arg, nodePrefix); ok {
		return pool.ValidateName("node", rest)
	}
	if rest, ok := strings.CutPrefix(arg, imagePrefix); ok {
		return checkRef(rest)
	}
	nameErr := pool.ValidateName("node", arg)
	if nameErr == nil || checkRef(arg) == nil {
		return nil
	}
	return nameErr
}

// checkRef refuses what is no image reference.
func checkRef(ref string) error {
	if _, err := reference.ParseAnyReference(ref); err != nil {
		return usagef("image reference %q: must look like [host[:port]/]path[:tag][@digest]", ref)
	}
	return nil
}

// checkRefs checks each argument.
func checkRefs(refs []string) error {
	for _, ref := range refs {
		if err := checkRef(ref); err != nil {
			return err
		}
	}
	return nil
}

// checkName refuses an argument that can name no node of ours. Commands that change or remove a node
// take no image in its place.
func checkName(arg string) error {
	err := pool.ValidateName("node", strings.TrimPrefix(arg, nodePrefix))
	if err != nil && checkRef(arg) == nil {
		return errs.WithHint(err, "an image is not meant here; dmlayer ls lists the nodes")
	}
	return err
}

// checkNames checks the name of each argument.
func checkNames(args []string) error {
	for _, arg := range args {
		if err := checkName(arg); err != nil {
			return err
		}
	}
	return nil
}

// node returns the name of the node that arg means: a node's name first, then the start of a layer's
// name, then an image's top layer.
func (f finder) node(ctx context.Context, arg string) (string, error) {
	if rest, ok := strings.CutPrefix(arg, nodePrefix); ok {
		found, err := f.name(ctx, rest)
		if errors.Is(err, errs.ErrNotFound) {
			err = errs.WithHint(err, fmt.Sprintf("for the image %s write %s%s", arg, imagePrefix, arg))
		}
		return found, err
	}
	if rest, ok := strings.CutPrefix(arg, imagePrefix); ok {
		return f.topLayer(ctx, rest)
	}
	var nameErr error
	if pool.ValidateName("node", arg) == nil {
		var found string
		if found, nameErr = f.name(ctx, arg); nameErr == nil || !errors.Is(nameErr, errs.ErrNotFound) {
			return found, nameErr
		}
	}
	found, err := f.topLayer(ctx, arg)
	if errors.Is(err, errs.ErrNotFound) && nameErr != nil {
		return "", errs.WithHint(fmt.Errorf("find %q: no node and no image has this name: %w", arg, errs.ErrNotFound),
			"dmlayer ls lists the nodes, dmlayer image ls the images")
	}
	return found, err
}

func (f finder) topLayer(ctx context.Context, ref string) (string, error) {
	top, err := f.image(ctx, ref)
	if err == nil && top == "" {
		return "", errs.WithHint(usagef("image %q has no layers", ref), "dmlayer snapshot without --parent makes an empty snapshot")
	}
	return top, imageHint(err)
}

// imageHint says where the images are listed, if an error says that there is none.
func imageHint(err error) error {
	if errors.Is(err, errs.ErrNotFound) && errs.Hint(err) == "" {
		return errs.WithHint(err, "dmlayer image ls lists the images")
	}
	return err
}

// name returns the name of the node that arg means: a node's name, or the start of one layer's.
func (f finder) name(ctx context.Context, arg string) (string, error) {
	arg = strings.TrimPrefix(arg, nodePrefix)
	node, err := f.get(ctx, arg)
	if err == nil {
		return node.Name, nil
	}
	if !errors.Is(err, errs.ErrNotFound) {
		return "", err
	}
	if !layerPrefix.MatchString(arg) && !fullLayer.MatchString(arg) {
		return "", errs.WithHint(err, "dmlayer ls lists the nodes")
	}
	return f.abbreviated(ctx, arg, err)
}

// abbreviated finds the one layer whose name starts with arg; notFound is returned where there is none.
func (f finder) abbreviated(ctx context.Context, arg string, notFound error) (string, error) {
	start := "sha256-" + strings.TrimPrefix(arg, "sha256-")
	nodes, err := f.list(ctx)
	if err != nil {
		return "", err
	}
	var found []string
	for _, n := range nodes {
		if n.Kind == layer.KindLayer && strings.HasPrefix(n.Name, start) {
			found = append(found, n.Name)
		}
	}
	switch len(found) {
	case 0:
		return "", notFound
	case 1:
		return found[0], nil
	}
	return "", usagef("%q is the start of several layers: %s", arg, strings.Join(found, ", "))
}

// shortName cuts the names of layers of images to what a person can tell apart.
func shortName(s string) string {
	if rest, ok := strings.CutPrefix(s, "sha256-"); ok && fullLayer.MatchString(rest) {
		return s[:len("sha256-")+12]
	}
	return s
}
