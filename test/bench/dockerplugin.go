package main

import (
	"cmp"
	"context"
	"net/http"
	"strings"

	"github.com/dmlayer/dmlayer/test/plugintest"
)

type pluginCall struct{ name, method, id, parent string }

// pluginCalls are what dockerd asks of a graph driver when it creates a container and when it deletes one, by the id that it gives and that of the parent.
var pluginCalls = []pluginCall{
	{"CreateReadWrite init", "CreateReadWrite", "bench-init", "image"},
	{"Get init", "Get", "bench-init", ""},
	{"Put init", "Put", "bench-init", ""},
	{"CreateReadWrite", "CreateReadWrite", "bench", "bench-init"},
	{"Get", "Get", "bench", ""},
	{"Put", "Put", "bench", ""},
	{"Remove", "Remove", "bench", ""},
	{"Remove init", "Remove", "bench-init", ""},
}

// atPlugin does by itself what createDelete lets dockerd do at the plugin's socket, so that one sees what of its time is spent there.
func (d *daemon) atPlugin(ctx context.Context, image string) error {
	if d.plugin == nil {
		return nil
	}
	if d.top == "" {
		node, err := d.topOf(ctx, image)
		if err != nil {
			return err
		}
		d.top = strings.TrimPrefix(node, "docker-")
	}
	t := &timer{}
	t.start()
	for _, c := range pluginCalls {
		if c.parent == "image" {
			c.parent = d.top
		}
		var answer struct{ Dir string }
		if err := d.plugin.Call("GraphDriver."+c.method, graphRequest{ID: c.id, Parent: c.parent}, &answer); err != nil {
			return err
		}
		t.lap(c.name)
		if c.name == "Get init" {
			if err := initFiles(answer.Dir); err != nil {
				return err
			}
			t.lap("files init")
		}
	}
	d.requests.add(t)
	return nil
}

// topOf returns the node of the image's highest layer, or "none" of a driver that has no nodes.
func (d *daemon) topOf(ctx context.Context, image string) (string, error) {
	var i struct {
		GraphDriver struct{ Data struct{ Node string } }
	}
	err := d.do(ctx, http.MethodGet, "/images/"+image+"/json", nil, &i)
	return cmp.Or(i.GraphDriver.Data.Node, "none"), err
}

// withPlugin notes where the plugin of a dockerd listens.
func withPlugin(all []*daemon, name, socket string) {
	for _, d := range all {
		if d.name == name {
			d.plugin = plugintest.NewClient(socket)
		}
	}
}
