// Package test holds the tests of the repository as a whole.
package test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/testenv"
)

const module = "github.com/dmlayer/dmlayer"

// Where an arrow may end, besides the standard library, which is open to all.
const (
	internal = "internal/*" // what every package but the libraries for strangers may use
	xsys     = "golang.org/x/sys"
)

// arrows are the walls of docs/architecture.md: what each package may import, of this module without
// its path, of others as a prefix. A package that is not here does not exist.
var arrows = map[string][]string{
	"devmapper":         {xsys},
	"devmapper/dmtest":  {"devmapper"},
	"thinpool":          {"devmapper"},
	"thinpool/thinmeta": {},
	"metadata":          {internal, xsys, "go.etcd.io/bbolt"},
	"fsutil":            {internal, xsys, "github.com/freddierice/go-losetup/v2"},
	"lvm":               {internal},
	"pool":              {internal, xsys, "thinpool", "thinpool/thinmeta", "lvm", "fsutil", "metadata"},
	"layer":             {internal, xsys, "pool", "thinpool", "fsutil", "metadata"},
	"layer/layertar":    {internal, xsys, "github.com/klauspost/compress", "github.com/vbatts/tar-split"},
	"image": {
		internal, xsys, "layer", "layer/layertar", "github.com/containerd/platforms", "github.com/distribution/reference",
		"github.com/klauspost/compress", "github.com/opencontainers/go-digest", "github.com/opencontainers/image-spec",
		"github.com/google/go-containerregistry",
	},
	"backend/snapshotter": {
		internal, "backend/internal/errclass", "layer", "github.com/containerd/containerd/v2/core", "github.com/containerd/containerd/v2/pkg/filters",
		"github.com/containerd/errdefs", "github.com/opencontainers/go-digest",
	},
	"backend/differ": {
		internal, "backend/internal/errclass", "layer", "layer/layertar", "github.com/containerd/containerd/v2/core", "github.com/containerd/containerd/v2/pkg",
		"github.com/containerd/errdefs", "github.com/klauspost/compress", "github.com/opencontainers/go-digest", "github.com/opencontainers/image-spec",
	},
	"backend/internal/errclass": {internal, "github.com/containerd/errdefs"},
	"backend/containerd": {
		internal, "backend/differ", "backend/snapshotter", "layer", "github.com/containerd/containerd/api", "github.com/containerd/containerd/v2/contrib",
		"github.com/containerd/containerd/v2/core", "github.com/containerd/errdefs/pkg", "google.golang.org/grpc",
	},
	"backend/plugin":      {internal, xsys},
	"backend/graphdriver": {internal, "backend/plugin", "layer", "layer/layertar", "github.com/docker/go-units"},
	"backend/volume":      {internal, "backend/plugin", "layer", "github.com/docker/go-units"},
	"service":             {internal, xsys, "layer", "pool", "devmapper"},
	"cmd/dmlayer":         {"cmd/dmlayer/internal/cli"},
	"cmd/dmlayer/internal/cli": {
		internal, xsys, "backend/containerd", "backend/graphdriver", "backend/plugin", "backend/volume", "image", "layer", "pool", "service", "thinpool", "devmapper", "github.com/distribution/reference",
		"github.com/docker/go-units", "github.com/spf13/cobra", "github.com/spf13/pflag", "github.com/vbauerster/mpb/v8",
	},

	"internal/ahead":    {},
	"internal/errs":     {},
	"internal/fault":    {},
	"internal/lockfile": {internal, xsys},
	"internal/pause":    {},
	"internal/process":  {internal, xsys},
	"internal/run":      {internal, xsys},
	"internal/socket":   {internal, xsys},

	"internal/testenv":     {internal, xsys},
	"internal/vmexec":      {internal, xsys},
	"internal/vmexec/cmd":  {internal},
	"internal/vmexec/leak": {xsys},

	"thinpool/thinmeta/metagen": {},
}

// widened are arrows that the design did not draw and the code needs: reasons, and a failure for one
// that is no longer used.
var widened = map[[2]string]string{
	{"pool", "devmapper"}:                             "the pool's linear device, and the client, names and numbers that thinpool's own functions take",
	{"layer", "devmapper"}:                            "state, suspend, resume and removal of devices, which thinpool leaves to it",
	{"cmd/dmlayer/internal/cli", "layer/layertar"}:    "diff compares two trees that layer.View has mounted",
	{"internal/vmexec", "github.com/docker/go-units"}: "sizes of memory and disks; a test tool, never in the binary",
}

// Packages of tests and tools, which may use everything of the module. None of them is in the binary.
var tools = []string{"test", "internal/testenv", "internal/vmexec", "devmapper/dmtest", "image/imagetest", "thinpool/thinmeta/metagen"}

// pkg is what go list says of a package.
type pkg struct {
	ImportPath     string
	Name           string
	Doc            string
	Dir            string
	Standard       bool
	DepOnly        bool
	GoFiles        []string
	CgoFiles       []string
	IgnoredGoFiles []string
	TestGoFiles    []string
	XTestGoFiles   []string
	Imports        []string
	Deps           []string
	Error          *struct{ Err string }
}

// path is the package's path without the module's.
func (p pkg) path() string { return strings.TrimPrefix(p.ImportPath, module+"/") }

func (p pkg) own() bool { return p.ImportPath == module || strings.HasPrefix(p.ImportPath, module+"/") }

func (p pkg) tool() bool { return within(p.path(), tools...) }

// within tells whether a path is one of the folders or lies below one.
func within(p string, folders ...string) bool {
	return slices.ContainsFunc(folders, func(f string) bool { return p == f || strings.HasPrefix(p, f+"/") })
}

// list asks go for all packages of the module and all that they import, without the network.
func list(t *testing.T) []pkg {
	t.Helper()
	testenv.Need(t, testenv.Host)
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Name,Doc,Dir,Standard,DepOnly,GoFiles,CgoFiles,IgnoredGoFiles,TestGoFiles,XTestGoFiles,Imports,Deps,Error", "./...")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=readonly", "GOPROXY=off", "GOTOOLCHAIN=local", "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		if p.Error != nil {
			t.Fatalf("%s: %s", p.ImportPath, p.Error.Err)
		}
		pkgs = append(pkgs, p)
	}
	if n := len(ours(pkgs)); n < 10 {
		t.Fatalf("go list found %d packages of the module", n)
	}
	return pkgs
}

func ours(pkgs []pkg) []pkg {
	return slices.DeleteFunc(slices.Clone(pkgs), func(p pkg) bool { return !p.own() })
}

// checkArrows returns the arrows that are drawn nowhere, and the ones of widened that nothing needs.
func checkArrows(pkgs []pkg) []string {
	var bad []string
	standard := map[string]bool{"C": false, "unsafe": true}
	for _, p := range pkgs {
		if p.Standard {
			standard[p.ImportPath] = true
		}
	}
	unused := map[[2]string]bool{}
	for a := range widened {
		unused[a] = true
	}
	for _, p := range ours(pkgs) {
		from := p.path()
		allowed, known := arrows[from]
		if within(from, "test") || p.Name == "" || len(p.GoFiles) == 0 {
			continue
		}
		if !known {
			bad = append(bad, from+" is not in the table of arrows")
			continue
		}
		for _, imported := range p.Imports {
			if standard[imported] {
				continue
			}
			to := strings.TrimPrefix(imported, module+"/")
			if reason, arrow := wide(from, to); reason != "" {
				delete(unused, arrow)
				continue
			}
			if !arrowAllowed(p, to, imported != to, allowed) {
				bad = append(bad, from+" -> "+to)
			}
		}
	}
	for a := range unused {
		bad = append(bad, fmt.Sprintf("%s -> %s is widened and not used", a[0], a[1]))
	}
	slices.Sort(bad)
	return bad
}

func wide(from, to string) (reason string, arrow [2]string) {
	for a, reason := range widened {
		if a[0] == from && within(to, a[1]) {
			return reason, a
		}
	}
	return "", arrow
}

func arrowAllowed(p pkg, to string, own bool, allowed []string) bool {
	for _, a := range allowed {
		switch {
		case a == internal:
			if own && strings.HasPrefix(to, "internal/") && (p.tool() || !within(to, tools...)) {
				return true
			}
		case own:
			if to == a { // to the package itself, not to what lies below it
				return true
			}
		case within(to, a):
			return true
		}
	}
	return false
}

// strangers are libraries in their own right: nothing but these may be behind them, however deep.
var strangers = map[string][]string{
	"devmapper":         {xsys},
	"devmapper/dmtest":  {module + "/devmapper", xsys},
	"thinpool":          {module + "/devmapper", xsys},
	"thinpool/thinmeta": {},
}

// checkDepths looks at everything that is linked, not at direct imports only.
func checkDepths(pkgs []pkg) []string {
	var bad []string
	standard := map[string]bool{}
	for _, p := range pkgs {
		standard[p.ImportPath] = p.Standard
	}
	for _, p := range ours(pkgs) {
		allowed, strange := strangers[p.path()]
		for _, d := range p.Deps {
			switch {
			case strange && !standard[d] && !within(d, allowed...):
				bad = append(bad, p.path()+" needs "+d)
			case p.path() == "cmd/dmlayer" && (d == "testing" || within(strings.TrimPrefix(d, module+"/"), tools...)):
				bad = append(bad, "the binary contains "+d)
			case p.path() == "cmd/dmlayer" && (d == "runtime/cgo" || d == "C"):
				bad = append(bad, "the binary needs cgo")
			}
		}
	}
	return bad
}

// checkImports looks at single imports that the table of arrows cannot forbid: the standard library's.
func checkImports(pkgs []pkg) []string {
	var bad []string
	for _, p := range ours(pkgs) {
		from := p.path()
		for _, i := range p.Imports {
			switch {
			case i == "os/exec" && from != "internal/run" && !p.tool():
				bad = append(bad, from+" starts programs (os/exec); only internal/run does")
			case i == "log":
				bad = append(bad, from+" logs by itself; errors are returned, a *slog.Logger is passed in")
			case i == "log/slog" && !slices.Contains([]string{"pool", "layer", "service", "cmd/dmlayer/internal/cli", "test/pooltest"}, from):
				bad = append(bad, from+" imports log/slog")
			case i == "testing" && !p.tool():
				bad = append(bad, from+" imports testing outside test files")
			case i == "C" || len(p.CgoFiles) > 0:
				bad = append(bad, from+" uses cgo")
			}
		}
	}
	return bad
}

// checkComments asks for a package comment everywhere.
func checkComments(pkgs []pkg) []string {
	var bad []string
	for _, p := range ours(pkgs) {
		if p.Doc == "" && len(p.GoFiles) > 0 {
			bad = append(bad, p.path()+" has no package comment")
		}
	}
	return bad
}

func TestArrows(t *testing.T) {
	pkgs := list(t)
	for _, check := range []struct {
		name string
		run  func([]pkg) []string
	}{
		{"direct", checkArrows},
		{"deep", checkDepths},
		{"imports", checkImports},
		{"comments", checkComments},
	} {
		t.Run(check.name, func(t *testing.T) {
			for _, b := range check.run(pkgs) {
				t.Error(b)
			}
		})
	}
	t.Run("table", func(t *testing.T) {
		// A name that no package has any more would allow what nobody looks at. lvm is drawn already.
		for name := range arrows {
			if !slices.ContainsFunc(pkgs, func(p pkg) bool { return p.ImportPath == module+"/"+name }) {
				t.Errorf("%s is in the table of arrows and does not exist", name)
			}
		}
	})
}

// TestArrowsCanFail gives each check a tree that is right, and then one with a single wrong thing.
func TestArrowsCanFail(t *testing.T) {
	std := func(name string) pkg { return pkg{ImportPath: name, Standard: true} }
	own := func(name string, imports ...string) pkg {
		p := pkg{ImportPath: module + "/" + name, Name: path.Base(name), Doc: "Package.", GoFiles: []string{"a.go"}}
		for _, i := range imports {
			if !strings.Contains(strings.SplitN(i, "/", 2)[0], ".") && !slices.Contains([]string{"os", "os/exec", "log", "log/slog", "testing", "C"}, i) {
				i = module + "/" + i
			}
			p.Imports = append(p.Imports, i)
		}
		p.Deps = p.Imports
		return p
	}
	base := []pkg{
		std("os"), std("os/exec"), std("log"), std("log/slog"), std("testing"),
		own("devmapper", "os", "golang.org/x/sys/unix"),
		own("pool", "devmapper", "thinpool", "internal/lockfile"),
		own("layer", "devmapper", "pool", "log/slog"),
		own("cmd/dmlayer/internal/cli", "layer", "layer/layertar"),
		own("internal/run", "os/exec"),
		own("internal/vmexec", "os/exec", "github.com/docker/go-units"),
	}
	all := func(pkgs []pkg) []string {
		return slices.Concat(checkArrows(pkgs), checkDepths(pkgs), checkImports(pkgs), checkComments(pkgs))
	}
	if bad := all(base); len(bad) > 0 {
		t.Fatalf("a right tree is refused: %q", bad)
	}
	noDoc := own("image")
	noDoc.Doc = ""
	for _, c := range []struct {
		wrong pkg
		want  string
	}{
		{own("devmapper", "internal/errs"), "devmapper -> internal/errs"},
		{own("devmapper", "thinpool"), "devmapper -> thinpool"},
		{own("devmapper", "go.etcd.io/bbolt"), "devmapper needs go.etcd.io/bbolt"},
		{own("thinpool", "devmapper/dmtest"), "thinpool -> devmapper/dmtest"},
		{own("thinpool/thinmeta", "golang.org/x/sys/unix"), "thinpool/thinmeta -> golang.org/x/sys/unix"},
		{own("metadata", "pool"), "metadata -> pool"},
		{own("image", "pool"), "image -> pool"},
		{own("layer", "internal/vmexec"), "layer -> internal/vmexec"},
		{own("layer/layertar", "layer"), "layer/layertar -> layer"},
		{own("cmd/dmlayer", "internal/testenv"), "the binary contains " + module + "/internal/testenv"},
		{own("fsutil", "os/exec"), "fsutil starts programs (os/exec); only internal/run does"},
		{own("image", "log"), "image logs by itself; errors are returned, a *slog.Logger is passed in"},
		{own("fsutil", "log/slog"), "fsutil imports log/slog"},
		{own("layer", "testing"), "layer imports testing outside test files"},
		{own("fsutil", "C"), "fsutil uses cgo"},
		{own("backend/new"), "backend/new is not in the table of arrows"},
		{noDoc, "image has no package comment"},
	} {
		if bad := all(append(slices.Clone(base), c.wrong)); !slices.Contains(bad, c.want) {
			t.Errorf("%q is not found; got %q", c.want, bad)
		}
	}
	without := slices.DeleteFunc(slices.Clone(base), func(p pkg) bool { return p.path() == "pool" })
	if bad := all(without); cmp.Or(bad...) != "pool -> devmapper is widened and not used" {
		t.Errorf("a widened arrow that nothing uses is not found; got %q", bad)
	}
}
