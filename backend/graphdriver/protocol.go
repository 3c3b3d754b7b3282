package graphdriver

import (
	"context"
	"fmt"
	"io"
	"net/url"

	"github.com/dmlayer/dmlayer/backend/plugin"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer/layertar"
)

// Kind is what a plugin with these methods says that it is.
const Kind = "GraphDriver"

// initRequest is what Docker says when it starts. Home is its folder for the driver, which needs none.
type initRequest struct {
	Home    string
	Opts    []string
	UIDMaps []any
	GIDMaps []any
}

type request struct {
	ID         string
	Parent     string
	MountLabel string
	StorageOpt map[string]string
}

// Answers. Docker reads one struct with all of their fields.
type (
	empty          struct{}
	dirAnswer      struct{ Dir string }
	existsAnswer   struct{ Exists bool }
	statusAnswer   struct{ Status [][2]string }
	metadataAnswer struct{ Metadata map[string]string }
	sizeAnswer     struct{ Size int64 }
	changesAnswer  struct{ Changes []change }
	capsAnswer     struct{ Capabilities capabilities }
)

type change struct {
	Path string
	Kind int
}

// capabilities: Docker keeps by itself what is needed to write a layer's tar again as it was.
type capabilities struct{ ReproducesExactDiffs bool }

// kinds are Docker's numbers of how a path changed.
var kinds = map[layertar.Kind]int{layertar.Modified: 0, layertar.Added: 1, layertar.Deleted: 2}

// Register adds the methods of a graph driver to a server.
func (d *Driver) Register(s *plugin.Server) {
	plugin.Handle(s, "GraphDriver.Init", func(ctx context.Context, r initRequest) (empty, error) { return empty{}, d.init(ctx, r) })
	plugin.Handle(s, "GraphDriver.Create", func(ctx context.Context, r request) (empty, error) {
		if len(r.StorageOpt) > 0 {
			return empty{}, fmt.Errorf("create layer %q: a layer has no storage options: %w", r.ID, errs.ErrInvalid)
		}
		return empty{}, d.Create(ctx, r.ID, r.Parent)
	})
	plugin.Handle(s, "GraphDriver.CreateReadWrite", func(ctx context.Context, r request) (empty, error) {
		size, err := sizeOf(r.StorageOpt)
		if err == nil {
			err = d.CreateReadWrite(ctx, r.ID, r.Parent, size)
		}
		return empty{}, err
	})
	plugin.Handle(s, "GraphDriver.Remove", func(ctx context.Context, r request) (empty, error) { return empty{}, d.Remove(ctx, r.ID) })
	plugin.Handle(s, "GraphDriver.Get", func(ctx context.Context, r request) (dirAnswer, error) {
		dir, err := d.Get(ctx, r.ID, r.MountLabel)
		return dirAnswer{dir}, err
	})
	plugin.Handle(s, "GraphDriver.Put", func(ctx context.Context, r request) (empty, error) { return empty{}, d.Put(ctx, r.ID) })
	plugin.Handle(s, "GraphDriver.Exists", func(ctx context.Context, r request) (existsAnswer, error) {
		there, err := d.Exists(ctx, r.ID)
		return existsAnswer{there}, err
	})
	plugin.Handle(s, "GraphDriver.Status", func(ctx context.Context, _ request) (statusAnswer, error) {
		st, err := d.Status(ctx)
		return statusAnswer{st}, err
	})
	plugin.Handle(s, "GraphDriver.GetMetadata", func(ctx context.Context, r request) (metadataAnswer, error) {
		m, err := d.GetMetadata(ctx, r.ID)
		return metadataAnswer{m}, err
	})
	plugin.Handle(s, "GraphDriver.Cleanup", func(ctx context.Context, _ request) (empty, error) { return empty{}, d.Cleanup(ctx) })
	plugin.Handle(s, "GraphDriver.Capabilities", func(context.Context, request) (capsAnswer, error) { return capsAnswer{}, nil })
	d.registerDiffs(s)
}

func (d *Driver) registerDiffs(s *plugin.Server) {
	plugin.HandleDownload(s, "GraphDriver.Diff", func(ctx context.Context, r request, w io.Writer) error { return d.Diff(ctx, r.ID, r.Parent, w) })
	plugin.Handle(s, "GraphDriver.Changes", func(ctx context.Context, r request) (changesAnswer, error) {
		answer := changesAnswer{Changes: []change{}}
		err := d.Changes(ctx, r.ID, r.Parent, func(c layertar.Change) error {
			answer.Changes = append(answer.Changes, change{c.Path, kinds[c.Kind]})
			return nil
		})
		return answer, err
	})
	plugin.HandleUpload(s, "GraphDriver.ApplyDiff", func(ctx context.Context, q url.Values, body io.Reader) (sizeAnswer, error) {
		// The parent is known since the layer was created.
		size, err := d.ApplyDiff(ctx, q.Get("id"), body)
		return sizeAnswer{size}, err
	})
	plugin.Handle(s, "GraphDriver.DiffSize", func(ctx context.Context, r request) (sizeAnswer, error) {
		size, err := d.DiffSize(ctx, r.ID, r.Parent)
		return sizeAnswer{size}, err
	})
}

// init begins anew with a Docker that has just started.
func (d *Driver) init(ctx context.Context, r initRequest) error {
	if len(r.UIDMaps) > 0 || len(r.GIDMaps) > 0 {
		err := fmt.Errorf("dockerd maps user ids: %w", errs.ErrUnsupported)
		return errs.WithHint(err, "the graph driver cannot: start dockerd without --userns-remap, or use containerd with dmlayer")
	}
	o, err := d.parseOptions(r.Opts)
	if err != nil {
		return err
	}
	if err := d.setOptions(ctx, o); err != nil {
		return err
	}
	return d.adopt(ctx)
}
