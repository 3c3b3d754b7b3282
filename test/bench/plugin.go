package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/dmlayer/dmlayer/backend/graphdriver"
	"github.com/dmlayer/dmlayer/backend/plugin"
	"github.com/dmlayer/dmlayer/test/plugintest"
)

// graph is the graph driver of the pool, asked over a socket: as Docker asks it, with Go's net/http, and with requests that are ready and a client that only writes them and reads
// the answers, so that the driver and its server are seen without the client.
type graph struct {
	client *plugintest.Client
	socket net.Conn
	answer *bufio.Reader
	ready  [][]byte // a request for each of graphSteps
	stop   func() error
}

// graphSteps are what Docker asks in the steps of a round.
var graphSteps = []struct{ name, method string }{
	{"prepare", "CreateReadWrite"}, {"mount", "Get"}, {"unmount", "Put"}, {"remove", "Remove"},
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
		_ = g.socket.Close()
		cancel()
		return <-ended
	}
	if err := g.dial(ctx, socket); err != nil {
		return nil, err
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

func roundRequest(method string) graphRequest {
	r := graphRequest{ID: "round"}
	if method == "CreateReadWrite" {
		r.Parent = parent
	}
	return r
}

func (g *graph) round(_ context.Context, t *timer) error {
	t.start()
	for _, step := range graphSteps {
		if err := g.client.Call("GraphDriver."+step.method, roundRequest(step.method), nil); err != nil {
			return err
		}
		t.lap(step.name)
	}
	return nil
}

// dial makes what rawRound needs.
func (g *graph) dial(ctx context.Context, socket string) (err error) {
	for _, step := range graphSteps {
		body, err := json.Marshal(roundRequest(step.method))
		if err != nil {
			return err
		}
		g.ready = append(g.ready, fmt.Appendf(nil, "POST /GraphDriver.%s HTTP/1.1\r\nHost: plugin\r\nContent-Length: %d\r\n\r\n%s", step.method, len(body), body))
	}
	var d net.Dialer
	g.socket, err = d.DialContext(ctx, "unix", socket)
	g.answer = bufio.NewReader(g.socket)
	return err
}

// rawRound is round with the requests that are ready.
func (g *graph) rawRound(_ context.Context, t *timer) error {
	t.start()
	for i, step := range graphSteps {
		if _, err := g.socket.Write(g.ready[i]); err != nil {
			return err
		}
		a, err := http.ReadResponse(g.answer, nil)
		if err == nil {
			_, err = io.Copy(io.Discard, a.Body)
		}
		if err == nil && a.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", step.method, a.Status)
		}
		if err != nil {
			return err
		}
		t.lap(step.name)
	}
	return nil
}
