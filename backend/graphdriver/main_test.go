package graphdriver_test

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/backend/graphdriver"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/plugintest"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// docker asks a graph driver as Docker does.
type docker struct {
	*plugintest.Client
	t     testing.TB
	e     *pooltest.Env
	store *layer.Store
}

func newDocker(t testing.TB, spec pool.Spec) *docker {
	t.Helper()
	e := pooltest.New(t, spec)
	return serve(t, e)
}

// serve serves a pool with a driver of its own, as a process that has just been started.
func serve(t testing.TB, e *pooltest.Env) *docker {
	t.Helper()
	s := e.Open(t)
	d, err := graphdriver.New(pooltest.Context(t), s)
	must(t, err)
	return &docker{plugintest.Serve(t, d.Register, graphdriver.Kind), t, e, s}
}

type graphRequest struct {
	ID         string
	Parent     string            `json:",omitempty"`
	MountLabel string            `json:",omitempty"`
	StorageOpt map[string]string `json:",omitempty"`
}

// answer has the fields of all answers, as Docker's has.
type answer struct {
	Err      string
	Dir      string
	Exists   bool
	Status   [][2]string
	Metadata map[string]string
	Size     int64
	Changes  []struct {
		Path string
		Kind int
	}
	Capabilities struct{ ReproducesExactDiffs bool }
}

func (d *docker) try(method string, r any) (answer, error) {
	var a answer
	err := d.Call("GraphDriver."+method, r, &a)
	return a, err
}

func (d *docker) call(method string, r any) answer {
	d.t.Helper()
	a, err := d.try(method, r)
	if err != nil {
		d.t.Fatalf("%s %v: %v", method, r, err)
	}
	return a
}

func (d *docker) init(options ...string) {
	d.t.Helper()
	d.call("Init", map[string]any{"Home": "/h", "Opts": options})
}

func (d *docker) get(id string) string { d.t.Helper(); return d.call("Get", graphRequest{ID: id}).Dir }
func (d *docker) put(id string)        { d.t.Helper(); d.call("Put", graphRequest{ID: id}) }

func (d *docker) exists(id string) bool {
	d.t.Helper()
	return d.call("Exists", graphRequest{ID: id}).Exists
}

func (d *docker) apply(id, parent string, body io.Reader) (int64, error) {
	var a answer
	stream, err := d.Post("GraphDriver.ApplyDiff?id="+url.QueryEscape(id)+"&parent="+url.QueryEscape(parent), body)
	if err == nil {
		err = decode(stream, &a)
	}
	return a.Size, err
}

// layer makes a layer as Docker does.
func (d *docker) layer(id, parent string, files map[string]string) {
	d.t.Helper()
	d.call("Create", graphRequest{ID: id, Parent: parent})
	_, err := d.apply(id, parent, bytes.NewReader(archive(d.t, files)))
	must(d.t, err)
}

// container makes a container as Docker does, with what lies between it and its image, and returns where it is mounted.
func (d *docker) container(id, parent string, options map[string]string) string {
	d.t.Helper()
	d.call("CreateReadWrite", graphRequest{ID: id + "-init", Parent: parent})
	dir := d.get(id + "-init")
	must(d.t, os.WriteFile(filepath.Join(dir, "init"), nil, 0o644))
	d.put(id + "-init")
	d.call("CreateReadWrite", graphRequest{ID: id, Parent: id + "-init", StorageOpt: options})
	return d.get(id)
}

func (d *docker) diff(id, parent string) map[string]string {
	d.t.Helper()
	stream, err := d.Post("GraphDriver.Diff", strings.NewReader(`{"ID":"`+id+`","Parent":"`+parent+`"}`))
	must(d.t, err)
	defer stream.Close()
	files := map[string]string{}
	for r := tar.NewReader(stream); ; {
		h, err := r.Next()
		if err == io.EOF {
			return files
		}
		must(d.t, err)
		text, err := io.ReadAll(r)
		must(d.t, err)
		files[h.Name] = string(text)
	}
}

// nodes returns the names of all nodes.
func (d *docker) nodes() []string {
	d.t.Helper()
	infos, err := d.store.List(context.Background())
	must(d.t, err)
	names := []string{}
	for _, i := range infos {
		names = append(names, i.Name)
	}
	return names
}

// archive is a layer tar with these files.
func archive(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, text := range files {
		must(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}))
		_, err := io.WriteString(w, text)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustFail(t testing.TB, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Fatalf("error %v, want one with %q", err, text)
	}
}

// deviceArchive is a layer tar with a device node.
func deviceArchive(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	must(t, w.WriteHeader(&tar.Header{Name: "null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}))
	must(t, w.Close())
	return b.Bytes()
}
