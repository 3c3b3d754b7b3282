package test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/metadata"
)

// documents returns the Markdown files of the repository by path.
func documents(t *testing.T) map[string]string {
	t.Helper()
	docs := map[string]string{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != ".." && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		if filepath.Ext(path) == ".md" {
			text, err := os.ReadFile(path)
			docs[path] = string(text)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(docs) < 5 {
		t.Fatalf("only %d documents", len(docs))
	}
	return docs
}

var link = regexp.MustCompile(`\]\(([^)#\s]+)(#[^)]*)?\)`)

func brokenLinks(path, text string) []string {
	var bad []string
	for _, m := range link.FindAllStringSubmatch(text, -1) {
		if strings.Contains(m[1], "://") {
			continue
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(path), m[1])); err != nil {
			bad = append(bad, fmt.Sprintf("%s: link to %s: %v", path, m[1], err))
		}
	}
	return bad
}

func TestLinks(t *testing.T) {
	for path, text := range documents(t) {
		for _, b := range brokenLinks(path, text) {
			t.Error(b)
		}
	}
	if len(brokenLinks("x.md", "[a](no/such/file)")) != 1 {
		t.Error("a broken link is not found")
	}
}

// In code spans: a function of a file, and a test, with its package where that is not layer.
var (
	codeRef = regexp.MustCompile("`((?:[a-z]+/)+[a-z_]+\\.go):([A-Za-z]+)`")
	testRef = regexp.MustCompile("`(?:([a-z/]+):)?(Test[A-Za-z0-9]+)`")
)

// undeclared returns the functions and tests that a text names and the code does not have.
func undeclared(text string) []string {
	var bad []string
	for _, m := range codeRef.FindAllStringSubmatch(text, -1) {
		if !declares(filepath.Join("..", m[1]), m[2]) {
			bad = append(bad, m[1]+" has no "+m[2])
		}
	}
	for _, m := range testRef.FindAllStringSubmatch(text, -1) {
		dir := m[1]
		if dir == "" {
			dir = "layer"
		}
		files, _ := filepath.Glob(filepath.Join("..", dir, "*_test.go"))
		found := false
		for _, f := range files {
			found = found || declares(f, m[2])
		}
		if !found {
			bad = append(bad, dir+" has no test "+m[2])
		}
	}
	return bad
}

// declares tells whether a file has a function, method or type of that name.
func declares(path, name string) bool {
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		return false
	}
	found := false
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			found = found || n.Name.Name == name
			return false
		case *ast.TypeSpec:
			found = found || n.Name.Name == name
		}
		return !found
	})
	return found
}

// TestProtocolIsInStep fails where the table of rules names code that was renamed or a test that is gone.
func TestProtocolIsInStep(t *testing.T) {
	text, err := os.ReadFile("../docs/protocol/README.md")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(codeRef.FindAllString(string(text), -1)); n < 30 {
		t.Errorf("the table names only %d functions", n)
	}
	for _, b := range undeclared(string(text)) {
		t.Error(b)
	}
	if bad := undeclared("`pool/ids.go:NoSuch` `TestNoSuch` `pool/ids.go:AllocateID` `thinpool:TestNotCommitted`"); len(bad) != 2 {
		t.Errorf("what does not exist is not found: %q", bad)
	}
	models, err := filepath.Glob("../docs/protocol/*.pml")
	if err != nil || len(models) == 0 {
		t.Fatal("no models", err)
	}
	flags := regexp.MustCompile(`\b[ML]_[A-Z_]+\b`)
	for _, m := range models {
		source, err := os.ReadFile(m)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range flags.FindAllString(string(source), -1) {
			if !strings.Contains(string(text), f) {
				t.Errorf("rule %s of %s is not in the table", f, filepath.Base(m))
			}
		}
	}
}

// TestFormatsAreComplete fails where a field of a record is not in the description of the format.
func TestFormatsAreComplete(t *testing.T) {
	text, err := os.ReadFile("../docs/formats.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, record := range []any{metadata.Pool{}, metadata.Backing{}, metadata.LVM{}, metadata.LVMThinPool{}, metadata.Space{}, metadata.Repair{}, metadata.BeforeRepair{}, metadata.Node{}, metadata.Tombstone{}, metadata.Document{}} {
		typ := reflect.TypeOf(record)
		for i := range typ.NumField() {
			name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			if !strings.Contains(string(text), "`"+name+"`") {
				t.Errorf("formats.md: field %q of %s is missing", name, typ)
			}
		}
	}
	if !strings.Contains(string(text), fmt.Sprintf("schema version %d", metadata.SchemaVersion)) {
		t.Errorf("formats.md does not describe schema version %d", metadata.SchemaVersion)
	}
}
