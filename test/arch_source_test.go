package test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// dmType is the type byte of device-mapper's ioctls (include/uapi/linux/dm-ioctl.h).
const dmType = 0xfd

// ioctls are the packages that make raw ioctls: device-mapper's, and those of block devices.
var ioctls = []string{"devmapper", "fsutil", "thinpool"}

// source is a parsed file of a package.
type source struct {
	pkg  pkg
	file *ast.File
	fset *token.FileSet
	test bool
}

// look returns what the source does that only others, or nobody, may do.
func (s source) look() []string {
	var bad []string
	report := func(n ast.Node, format string, args ...any) {
		pos := s.fset.Position(n.Pos())
		bad = append(bad, fmt.Sprintf("%s/%s:%d: ", s.pkg.path(), filepath.Base(pos.Filename), pos.Line)+fmt.Sprintf(format, args...))
	}
	from := s.pkg.path()
	library := !s.pkg.tool() && !within(from, "cmd") && !s.test
	ast.Inspect(s.file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			x, ok := n.X.(*ast.Ident)
			if !ok || x.Obj != nil { // a local name, not a package
				return true
			}
			if why := s.forbidden(x.Name, n.Sel.Name, library); why != "" {
				report(n, "%s.%s: %s", x.Name, n.Sel.Name, why)
			}
		case *ast.CallExpr:
			if f, ok := n.Fun.(*ast.Ident); ok && f.Obj == nil && (f.Name == "print" || f.Name == "println") && library {
				report(n, "%s: a library prints nothing", f.Name)
			}
		case *ast.BasicLit:
			if why := literal(n, slices.Contains(ioctls, from)); why != "" && from != "devmapper" && !s.pkg.tool() && !s.test {
				report(n, "%s", why)
			}
		}
		return true
	})
	return bad
}

// forbidden says why a package-level name may not be used there, or "".
func (s source) forbidden(name, sel string, library bool) string {
	from := s.pkg.path()
	switch name + "." + sel {
	case "time.Sleep":
		return "waits are bounded by a context"
	case "syscall.ForkExec", "syscall.StartProcess", "os.StartProcess", "syscall.Exec", "unix.Exec":
		if !s.pkg.tool() && from != "internal/run" && !s.test {
			return "only internal/run starts programs"
		}
	case "unix.SYS_IOCTL", "syscall.SYS_IOCTL":
		// Of these, only devmapper's are device-mapper's: see literal.
		if !slices.Contains(ioctls, from) && !s.pkg.tool() && !s.test {
			return "raw ioctls are made by devmapper, fsutil and thinpool"
		}
	case "fmt.Print", "fmt.Printf", "fmt.Println", "os.Stdout", "os.Stderr":
		if library {
			return "a library prints nothing"
		}
	}
	if name == "slog" && library && !slices.Contains([]string{"Logger", "New", "DiscardHandler"}, sel) {
		return "a logger is passed in; it is only ever replaced by a silent one"
	}
	return ""
}

// literal finds the numbers of device-mapper's ioctls, where raw ioctls are made also the byte that
// they are computed from, and the path of the control node.
func literal(n *ast.BasicLit, raw bool) string {
	switch n.Kind {
	case token.INT:
		v, err := strconv.ParseUint(n.Value, 0, 64)
		if err == nil && (raw && v == dmType && strings.HasPrefix(strings.ToLower(n.Value), "0x") || v > 0xffff && v>>32 == 0 && v>>8&0xff == dmType && v>>30 == 3) {
			return "an ioctl number of device-mapper; only devmapper issues them"
		}
	case token.STRING:
		if v, err := strconv.Unquote(n.Value); err == nil && v == "/dev/mapper/control" {
			return "the control node; only devmapper opens it"
		}
	}
	return ""
}

func parse(p pkg, name string, text any) (source, error) {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, name, text, 0)
	return source{pkg: p, file: f, fset: fset, test: strings.HasSuffix(name, "_test.go")}, err
}

// TestSource reads every Go file of the module, those for other systems too.
func TestSource(t *testing.T) {
	files := 0
	for _, p := range ours(list(t)) {
		for _, name := range slices.Concat(p.GoFiles, p.CgoFiles, p.IgnoredGoFiles, p.TestGoFiles, p.XTestGoFiles) {
			path := filepath.Join(p.Dir, name)
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			s, err := parse(p, path, text)
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range s.look() {
				t.Error(b)
			}
			files++
		}
	}
	if files < 100 {
		t.Errorf("only %d files were read", files)
	}
}

func TestSourceCanFail(t *testing.T) {
	for _, c := range []struct {
		pkg, file, body string
		want            string // part of the only finding; "" for none
	}{
		{"fsutil", "a.go", `var _ = unix.SYS_IOCTL`, ""},
		{"layer", "a.go", `var _ = unix.SYS_IOCTL`, "raw ioctls"},
		{"fsutil", "a.go", `const listDevices = 0xc138fd02`, "ioctl number of device-mapper"},
		{"fsutil", "a.go", `const dmType = 0xfd`, "ioctl number of device-mapper"},
		{"devmapper", "a.go", `const dmType = 0xfd`, ""},
		{"fsutil", "a.go", `const loopSet = 0x4c0a; const n = 253`, ""},
		{"image", "a.go", `var zstd = []byte{0x28, 0xb5, 0x2f, 0xfd}`, ""},
		{"image", "a.go", `const listDevices = 0xc138fd02`, "ioctl number of device-mapper"},
		{"pool", "a.go", `const control = "/dev/mapper/control"`, "control node"},
		{"pool", "a.go", `func f() { time.Sleep(1) }`, "waits are bounded"},
		{"pool", "a_test.go", `func f() { time.Sleep(1) }`, "waits are bounded"},
		{"pool", "a.go", `func f(os T) { os.Stdout() }`, ""},
		{"pool", "a.go", `func f() { fmt.Println() }`, "prints nothing"},
		{"pool", "a_test.go", `func f() { fmt.Println() }`, ""},
		{"cmd/dmlayer", "a.go", `var _ = os.Stdout`, ""},
		{"pool", "a.go", `func f() { println(1) }`, "prints nothing"},
		{"pool", "a.go", `func f() { slog.Info("") }`, "a logger is passed in"},
		{"pool", "a.go", `func f(*slog.Logger) { _ = slog.New(slog.DiscardHandler) }`, ""},
		{"lvm", "a.go", `func f() { os.StartProcess("", nil, nil) }`, "only internal/run"},
		{"internal/run", "a.go", `func f() { os.StartProcess("", nil, nil) }`, ""},
	} {
		s, err := parse(pkg{ImportPath: module + "/" + c.pkg}, c.file, "package p\n"+c.body)
		if err != nil {
			t.Fatal(err)
		}
		bad := s.look()
		switch {
		case c.want == "" && len(bad) > 0, c.want != "" && (len(bad) != 1 || !strings.Contains(bad[0], c.want)):
			t.Errorf("%s: %s: found %q, want %q", c.pkg, c.body, bad, c.want)
		}
	}
}
