package main

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/dmlayer/dmlayer/test/plugintest"
)

// pluginCalls are what dockerd asks of a graph driver when it creates a container and when it deletes one, by the id that it gives and that of the parent.
var (
	callsOfCreate = []struct{ method, id, parent string }{
		{"CreateReadWrite", "bench-init", "image"}, {"Get", "bench-init", ""}, {"Put", "bench-init", ""},
		{"CreateReadWrite", "bench", "bench-init"}, {"Get", "bench", ""}, {"Put", "bench", ""},
	}
	callsOfDelete = []struct{ method, id, parent string }{{"Remove", "bench", ""}, {"Remove", "bench-init", ""}}
)

// atPlugin does by itself what createDelete lets dockerd do at the plugin's socket, so that one sees what of its time is spent there.
func (d *daemon) atPlugin(ctx context.Context, t *timer, image string) error {
	if d.plugin == nil {
		return nil
	}
	if d.top == "" {
		var i struct {
			GraphDriver struct{ Data struct{ Node string } }
		}
		if err := d.do(ctx, http.MethodGet, "/images/"+image+"/json", nil, &i); err != nil {
			return err
		}
		if d.top = strings.TrimPrefix(i.GraphDriver.Data.Node, "docker-"); d.top == "" {
			return errors.New("the image has no node")
		}
	}
	for _, step := range []struct {
		name  string
		calls []struct{ method, id, parent string }
	}{{"create, plugin", callsOfCreate}, {"delete, plugin", callsOfDelete}} {
		t.start()
		for _, c := range step.calls {
			if c.parent == "image" {
				c.parent = d.top
			}
			if err := d.plugin.Call("GraphDriver."+c.method, graphRequest{ID: c.id, Parent: c.parent}, nil); err != nil {
				return err
			}
		}
		t.lap(step.name)
	}
	return nil
}

// withPlugin notes where the plugin of a dockerd listens.
func withPlugin(all []*daemon, name, socket string) {
	for _, d := range all {
		if d.name == name {
			d.plugin = plugintest.NewClient(socket)
		}
	}
}
