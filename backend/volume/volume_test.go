package volume_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/backend/volume"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/plugintest"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

func TestMain(m *testing.M) {
	if socket := os.Getenv(dockerdSocket); socket != "" {
		beDockerd(socket)
		return
	}
	testenv.Main(m)
}

type request struct {
	Name string
	ID   string            `json:",omitempty"`
	Opts map[string]string `json:",omitempty"`
}

// vol has the fields that Docker reads.
type vol struct {
	Name       string
	Mountpoint string
	CreatedAt  time.Time
	Status     map[string]any
}

type answer struct {
	Mountpoint   string
	Volume       *vol
	Volumes      []vol
	Capabilities struct{ Scope string }
	Implements   []string
}

type docker struct {
	*plugintest.Client
	t     testing.TB
	e     *pooltest.Env
	store *layer.Store
}

func newDocker(t testing.TB, e *pooltest.Env) *docker {
	s := e.Open(t)
	return &docker{plugintest.Serve(t, volume.New(s).Register, volume.Kind), t, e, s}
}

func (d *docker) try(method string, r request) (answer, error) {
	var a answer
	err := d.Call(method, r, &a)
	return a, err
}

func (d *docker) call(method string, r request) answer {
	d.t.Helper()
	a, err := d.try("VolumeDriver."+method, r)
	if err != nil {
		d.t.Fatalf("%s %v: %v", method, r, err)
	}
	return a
}

func (d *docker) fail(method string, r request, text string) {
	d.t.Helper()
	_, err := d.try("VolumeDriver."+method, r)
	if err == nil || !strings.Contains(err.Error(), text) {
		d.t.Errorf("%s %v: %v, want %q", method, r, err, text)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestVolumes(t *testing.T) {
	d := newDocker(t, pooltest.New(t, pool.Spec{}))
	ctx := pooltest.Context(t)
	if a, err := d.try("Plugin.Activate", request{}); err != nil || len(a.Implements) != 1 || a.Implements[0] != "VolumeDriver" {
		t.Errorf("%+v, %v", a, err)
	}
	if scope := d.call("Capabilities", request{}).Capabilities.Scope; scope != "local" {
		t.Errorf("scope %q", scope)
	}
	if list := d.call("List", request{}).Volumes; list == nil || len(list) != 0 {
		t.Errorf("%v", list)
	}
	d.call("Create", request{Name: "data", Opts: map[string]string{"size": "64M", "fs": "ext4"}})
	d.call("Create", request{Name: "data"}) // that is there
	d.call("Create", request{Name: "data", Opts: map[string]string{"size": "64M"}})
	d.fail("Create", request{Name: "data", Opts: map[string]string{"size": "65M"}}, "other options")
	if path := d.call("Path", request{Name: "data"}).Mountpoint; path != "" {
		t.Errorf("mounted on %q", path)
	}

	// Shared: two containers, one directory, until the last one leaves.
	dir := d.call("Mount", request{Name: "data", ID: "one"}).Mountpoint
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 { // else Docker would not copy the image's files there
		t.Errorf("a new volume holds %v, %v", entries, err)
	}
	must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("kept"), 0o600))
	if again := d.call("Mount", request{Name: "data", ID: "two"}).Mountpoint; again != dir {
		t.Errorf("%s and %s", dir, again)
	}
	d.call("Mount", request{Name: "data", ID: "two"}) // asked twice
	if path := d.call("Path", request{Name: "data"}).Mountpoint; path != dir {
		t.Errorf("path %q", path)
	}
	d.call("Unmount", request{Name: "data", ID: "one"})
	d.call("Unmount", request{Name: "data", ID: "one"})
	d.call("Unmount", request{Name: "data", ID: "nobody"})
	v := d.call("Get", request{Name: "data"}).Volume
	if v.Mountpoint != dir || v.Name != "data" || v.CreatedAt.IsZero() || v.Status["size"] != "67108864" || v.Status["fs"] != "ext4" {
		t.Errorf("%+v", v)
	}
	// The cap is met as ENOSPC.
	err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, 65<<20), 0o600)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("beyond the cap: %v", err)
	}
	must(t, os.Remove(filepath.Join(dir, "big")))
	// Another process counts on.
	other := newDocker(t, d.e)
	other.call("Unmount", request{Name: "data", ID: "two"})
	if v := d.call("Get", request{Name: "data"}).Volume; v.Mountpoint != "" || v.Status["state"] != "inactive" {
		t.Errorf("%+v", v)
	}

	// A copy, of the same content and larger.
	d.call("Create", request{Name: "copy", Opts: map[string]string{"from": "data", "size": "128M"}})
	dir = d.call("Mount", request{Name: "copy", ID: "one"}).Mountpoint
	if text, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(text) != "kept" {
		t.Errorf("%q, %v", text, err)
	}
	if v := d.call("Get", request{Name: "copy"}).Volume; v.Status["from"] != "data" {
		t.Errorf("%+v", v)
	}

	// Nodes that are no volumes are not Docker's to touch.
	_, err = d.store.CreateSnapshot(ctx, "vm", layer.SnapshotOptions{})
	must(t, err)
	for _, method := range []string{"Mount", "Unmount", "Path", "Get", "Remove"} {
		d.fail(method, request{Name: "vm", ID: "x"}, "not a volume")
		d.fail(method, request{Name: "nothing", ID: "x"}, "not found")
		d.fail(method, request{Name: "../../x", ID: "x"}, "../../x")
	}
	d.fail("Create", request{Name: "vm"}, "already exists")
	for text, r := range map[string]request{
		"volume has size":    {Name: "n", Opts: map[string]string{"sise": "1G"}},
		"such as 20G":        {Name: "n", Opts: map[string]string{"size": "-1"}},
		`size="+1G"`:         {Name: "n", Opts: map[string]string{"size": "+1G"}},
		"one file system":    {Name: "n", Opts: map[string]string{"fs": "xfs"}},
		"not found":          {Name: "n", Opts: map[string]string{"from": "nothing"}},
		"nothing is named":   {Name: "n", Opts: map[string]string{"from": ""}},
		"invalid argument":   {Name: "a/b"},
		"below that of pare": {Name: "n", Opts: map[string]string{"from": "data", "size": "32M"}},
	} {
		d.fail("Create", r, text)
	}
	list := d.call("List", request{}).Volumes
	if len(list) != 2 || list[0].Name != "copy" || list[0].Mountpoint == "" || list[1].Name != "data" || list[1].Mountpoint != "" {
		t.Errorf("%+v", list)
	}

	// Docker removes what no container has any more, mounted or not, unless somebody is in it.
	d.fail("Remove", request{Name: "data"}, "is needed by")
	f, err := os.Open(dir)
	must(t, err)
	d.fail("Remove", request{Name: "copy"}, "busy")
	must(t, f.Close())
	d.call("Remove", request{Name: "copy"})
	d.call("Remove", request{Name: "data"})
	must(t, d.store.Remove(ctx, "vm"))
}
