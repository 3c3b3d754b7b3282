package main

import (
	"archive/tar"
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"

	"github.com/dmlayer/dmlayer/backend/graphdriver"
	"github.com/dmlayer/dmlayer/backend/plugin"
	"github.com/dmlayer/dmlayer/test/plugintest"
)

// graph is the graph driver of the pool, asked over a socket as Docker asks it.
type graph struct {
	client *plugintest.Client
	stop   func() error
}

type graphRequest struct{ ID, Parent string }

func newGraph(ctx context.Context, b *bench) (*graph, error) {
	d, err := graphdriver.New(ctx, b.store)
	if err != nil {
		return nil, err
	}
	s := plugin.New(nil, graphdriver.Kind)
	d.Register(s)
	socket := filepath.Join(b.dirs.Run, "docker.sock")
	_ = os.Remove(socket)
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	g := &graph{client: plugintest.NewClient(socket)}
	g.stop = func() error {
		g.client.Close()
		cancel()
		return <-ended
	}
	return g, g.makeParent()
}

// makeParent makes a layer of one file, unless it is there.
func (g *graph) makeParent() error {
	var there struct{ Exists bool }
	if err := g.client.Call("GraphDriver.Exists", graphRequest{ID: parent}, &there); err != nil || there.Exists {
		return err
	}
	if err := g.client.Call("GraphDriver.Create", graphRequest{ID: parent}, nil); err != nil {
		return err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "file", Mode: 0o644}); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	body, err := g.client.Post("GraphDriver.ApplyDiff?id="+parent+"&parent=", &b)
	if err != nil {
		return err
	}
	return body.Close()
}

func (g *graph) round(_ context.Context, t *timer) error {
	t.start()
	for _, step := range []struct{ name, method string }{
		{"prepare", "CreateReadWrite"}, {"mount", "Get"}, {"unmount", "Put"}, {"remove", "Remove"},
	} {
		r := graphRequest{ID: "round"}
		if step.method == "CreateReadWrite" {
			r.Parent = parent
		}
		if err := g.client.Call("GraphDriver."+step.method, r, nil); err != nil {
			return err
		}
		t.lap(step.name)
	}
	return nil
}
