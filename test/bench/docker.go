package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/test/plugintest"
)

// dockerConfig says what `bench docker` measures.
type dockerConfig struct {
	archive string
	image   string
	layers  int
	loads   int
	creates int
	rounds  int
}

// runDocker measures dockerds that run side by side, in turn, through their API: loading an image; creating and deleting a container that does not run;
// and with one that has run and changed six paths, comparing and committing it. test/docker/bench.sh starts them.
func runDocker(ctx context.Context, args []string) error {
	var c dockerConfig
	f := flag.NewFlagSet("bench docker", flag.ExitOnError)
	f.StringVar(&c.archive, "archive", "", "the image, as of docker save")
	f.StringVar(&c.image, "image", "", "its reference")
	f.IntVar(&c.layers, "layers", 0, "how many of its layers, from the lowest one; 0 is all. overlay2 cannot unpack the seventh of the large image")
	f.IntVar(&c.loads, "loads", 3, "loads of each dockerd that count")
	f.IntVar(&c.creates, "creates", 40, "containers of each that are created and deleted")
	f.IntVar(&c.rounds, "rounds", 5, "containers of each that are run, compared and committed")
	plugins := f.String("plugins", "", "NAME=SOCKET,... of dockerds' graph drivers, which are asked by themselves as well")
	_ = f.Parse(args) // exits
	var all []*daemon
	for _, arg := range f.Args() { // NAME=SOCKET
		name, socket, ok := strings.Cut(arg, "=")
		if !ok {
			return fmt.Errorf("%q is not NAME=SOCKET", arg)
		}
		all = append(all, newDaemon(name, socket))
	}
	for _, p := range strings.Split(*plugins, ",") {
		if name, socket, ok := strings.Cut(p, "="); ok {
			withPlugin(all, name, socket)
		}
	}
	if err := touchMemory(); err != nil {
		return err
	}
	inMemory := filepath.Join(os.TempDir(), "image.tar")
	if err := cutArchive(c.archive, inMemory, c.layers); err != nil {
		return err
	}
	c.archive = inMemory
	for _, part := range []struct {
		rounds int
		round  func(*daemon, context.Context, *timer) error
	}{
		{c.loads, func(d *daemon, ctx context.Context, t *timer) error { return d.reload(ctx, t, &c) }},
		{c.creates, func(d *daemon, ctx context.Context, t *timer) error { return d.createDelete(ctx, t, c.image) }},
		{c.rounds, func(d *daemon, ctx context.Context, t *timer) error {
			if d.keepsNothing() || c.rounds == 0 {
				return nil
			}
			return d.change(ctx, t, c.image)
		}},
	} {
		if err := c.inTurn(ctx, all, part.rounds, part.round); err != nil {
			return err
		}
	}
	printDocker(all, &c)
	printRequests(all)
	return nil
}

// inTurn does a round with each dockerd, as often as is said and once before to warm up.
func (c *dockerConfig) inTurn(ctx context.Context, all []*daemon, rounds int, round func(*daemon, context.Context, *timer) error) error {
	for i := range rounds + 1 {
		for _, d := range all {
			t := &timer{}
			if err := round(d, ctx, t); err != nil {
				return fmt.Errorf("%s: %w", d.name, err)
			}
			if i > 0 {
				d.times.add(t)
			}
		}
	}
	return nil
}

// daemon is a dockerd behind a socket.
type daemon struct {
	name   string
	http   *http.Client
	times  series
	loaded bool

	plugin *plugintest.Client // of its graph driver, or nil
	top    string             // the id that it gave the image's highest layer

	requests series // at the plugin
}

// keepsNothing tells whether it is on a driver of runBare, where nothing can run.
func (d *daemon) keepsNothing() bool { return d.name == "null" || d.name == "bare" }

func newDaemon(name, socket string) *daemon {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &daemon{name: name, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// do asks Docker's API, and reads the JSON of the answer into answer unless that is nil.
func (d *daemon) do(ctx context.Context, method, path string, body io.Reader, answer any) error {
	r, err := http.NewRequestWithContext(ctx, method, "http://docker/v1.41"+path, body)
	if err != nil {
		return err
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	a, err := d.http.Do(r)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(a.Body)
	if err = errors.Join(err, a.Body.Close()); err != nil {
		return err
	}
	if a.StatusCode >= 300 || strings.Contains(string(text), `"errorDetail"`) {
		return fmt.Errorf("%s %s: %s: %s", method, path, a.Status, text)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}

// reload loads the image, after it was deleted where it was there.
func (d *daemon) reload(ctx context.Context, t *timer, c *dockerConfig) error {
	if d.loaded {
		if err := d.do(ctx, http.MethodDelete, "/images/"+c.image, nil, nil); err != nil {
			return err
		}
	}
	unix.Sync() // so that nobody writes what others have left
	f, err := os.Open(c.archive)
	if err != nil {
		return err
	}
	defer f.Close()
	t.start()
	err = d.do(ctx, http.MethodPost, "/images/load?quiet=1", f, nil)
	t.lap("load")
	d.loaded = err == nil
	return err
}

// create creates a container that changes six paths when it runs.
func (d *daemon) create(ctx context.Context, image string) (path string, err error) {
	const script = "echo x >/new && mkdir /d && echo y >/d/1 && echo z >/d/2 && echo new >/third && chmod 700 /bin/."
	config, err := json.Marshal(map[string]any{
		"Image": image, "Cmd": []string{"sh", "-c", script}, "HostConfig": map[string]string{"NetworkMode": "none"},
	})
	if err != nil {
		return "", err
	}
	var made struct{ ID string }
	err = d.do(ctx, http.MethodPost, "/containers/create", strings.NewReader(string(config)), &made)
	return "/containers/" + made.ID, err
}

func (d *daemon) createDelete(ctx context.Context, t *timer, image string) error {
	t.start()
	container, err := d.create(ctx, image)
	if err != nil {
		return err
	}
	t.lap("create")
	if err := d.do(ctx, http.MethodDelete, container, nil, nil); err != nil {
		return err
	}
	t.lap("delete")
	return d.atPlugin(ctx, image)
}

// change runs a container, looks at what it changed, and commits it.
func (d *daemon) change(ctx context.Context, t *timer, image string) error {
	container, err := d.create(ctx, image)
	if err != nil {
		return err
	}
	t.start()
	if err := d.do(ctx, http.MethodPost, container+"/start", nil, nil); err != nil {
		return err
	}
	t.lap("start")
	var ended struct{ StatusCode int }
	if err := d.do(ctx, http.MethodPost, container+"/wait", nil, &ended); err != nil {
		return err
	}
	t.start()
	var changes []struct{ Path string }
	if err := d.do(ctx, http.MethodGet, container+"/changes", nil, &changes); err != nil {
		return err
	}
	t.lap("diff")
	if ended.StatusCode != 0 || len(changes) < 6 {
		return fmt.Errorf("the container ended with %d and changed %v", ended.StatusCode, changes)
	}
	var made struct{ ID string }
	if err := d.do(ctx, http.MethodPost, "/commit?container="+url.QueryEscape(strings.TrimPrefix(container, "/containers/")), strings.NewReader("{}"), &made); err != nil {
		return err
	}
	t.lap("commit")
	return errors.Join(d.do(ctx, http.MethodDelete, container, nil, nil), d.do(ctx, http.MethodDelete, "/images/"+made.ID, nil, nil))
}
