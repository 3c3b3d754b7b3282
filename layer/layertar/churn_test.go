package layertar_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer/layertar"
)

// between is a context that does something when it is asked for the n-th time whether it has ended.
type between struct {
	context.Context
	n  int
	do func()
}

func (b *between) Err() error {
	if b.n--; b.n == 0 {
		b.do()
	}
	return b.Context.Err()
}

// inUse is the tree that somebody uses while it is read, and what he has changed of it by then.
func inUse(t *testing.T) (low, up string) {
	t.Helper()
	low, up = t.TempDir(), t.TempDir()
	for _, root := range []string{low, up} {
		at := under(root)
		must(t, errors.Join(os.MkdirAll(at("d/e"), 0o755), os.Mkdir(at("k"), 0o755)))
		for _, name := range []string{"d/a", "d/e/f", "d/e/g", "k/kept", "z"} {
			must(t, os.WriteFile(at(name), []byte("lower"), 0o644))
		}
	}
	at := under(up)
	must(t, errors.Join(os.WriteFile(at("d/a"), []byte("AAAA"), 0o600), os.WriteFile(at("d/e/f"), []byte("FFFF"), 0o600), os.MkdirAll(at("d/n/o"), 0o700),
		os.WriteFile(at("d/n/o/p"), []byte("p"), 0o600), os.Link(at("d/e/g"), at("d/h")), os.Remove(at("z")), os.WriteFile(at("k/new"), []byte("new"), 0o600)))
	return low, up
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// meddling is what happens to the tree, all at once.
func meddling() map[string]func(at func(string) string) error {
	file := func(at func(string) string, name string) error { return os.WriteFile(at(name), []byte("file"), 0o600) }
	return map[string]func(at func(string) string) error{
		"lower directory removed":    func(at func(string) string) error { return os.RemoveAll(at("d/e")) },
		"new directory removed":      func(at func(string) string) error { return os.RemoveAll(at("d/n")) },
		"all removed":                func(at func(string) string) error { return os.RemoveAll(at("d")) },
		"file removed":               func(at func(string) string) error { return os.Remove(at("d/a")) },
		"link removed":               func(at func(string) string) error { return os.Remove(at("d/h")) },
		"directory replaced by file": func(at func(string) string) error { return errors.Join(os.RemoveAll(at("d/e")), file(at, "d/e")) },
		"directory replaced by link": func(at func(string) string) error {
			return errors.Join(os.RemoveAll(at("d/n")), os.Symlink("/", at("d/n")))
		},
		"directory made anew": func(at func(string) string) error {
			return errors.Join(os.RemoveAll(at("d/e")), os.Mkdir(at("d/e"), 0o700), file(at, "d/e/f"))
		},
		"file replaced": func(at func(string) string) error {
			return errors.Join(file(at, "tmp"), os.Rename(at("tmp"), at("d/a")))
		},
		"file replaced by directory": func(at func(string) string) error {
			return errors.Join(os.Remove(at("d/a")), os.Mkdir(at("d/a"), 0o700), file(at, "d/a/x"))
		},
		"file replaced by link": func(at func(string) string) error {
			return errors.Join(os.Remove(at("d/a")), os.Symlink("/", at("d/a")))
		},
		"directory moved":             func(at func(string) string) error { return os.Rename(at("d/e"), at("d/n/e")) },
		"changed directory was moved": func(at func(string) string) error { return os.Rename(at("d"), at("y")) },
	}
}

// TestWriteDiffMeddled changes the tree at each point of its comparison where the context is asked. The layer must say of everything what was so before, or
// is so after, and of what nobody touches the truth.
func TestWriteDiffMeddled(t *testing.T) {
	testenv.Need(t, testenv.Root)
	for name, do := range meddling() {
		t.Run(name, func(t *testing.T) {
			step := func(n int) int { return n }
			if os.Getenv("DMLAYER_TEST_LONG") != "" {
				step = func(int) int { return 1 }
			}
			for n, done := 1, false; !done; n += step(n) {
				done = true
				low, up := inUse(t)
				before := seen(t, up)
				ctx := &between{context.Background(), n, func() { done = false; must(t, do(under(up))) }}
				var layer bytes.Buffer
				if err := layertar.WriteDiff(ctx, &layer, low, up, layertar.WriteOptions{}); err != nil {
					t.Fatalf("at point %d: %v", n, err)
				}
				got, err := tryApply(t, low, layer.Bytes())
				if err != nil {
					t.Fatalf("at point %d: %+v: %v", n, got, err)
				}
				trueOfSome(t, fmt.Sprintf("at point %d", n), seen(t, low), before, seen(t, up))
			}
		})
	}
}

// seen lists a tree: what each name is, and what it holds.
func seen(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	must(t, filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		text := []byte{}
		if err == nil && e.Type().IsRegular() {
			text, err = os.ReadFile(path)
		}
		all[rel] = e.Type().String() + " " + string(text)
		return err
	}))
	return all
}

// trueOfSome wants each name to be as in one of two trees. Only a name below what has changed may be missing though both have it.
func trueOfSome(t *testing.T, when string, got, one, two map[string]string) {
	t.Helper()
	for rel, is := range got {
		if is != one[rel] && is != two[rel] {
			t.Errorf("%s: %s is %q, was %q and became %q", when, rel, is, one[rel], two[rel])
		}
	}
	for rel := range one {
		if _, ok := got[rel]; !ok && one[rel] == two[rel] && !strings.HasPrefix(rel, "d/e/") && !strings.HasPrefix(rel, "d/a/") {
			t.Errorf("%s: %s is missing", when, rel)
		}
	}
}

// TestWriteDiffWhileUsed reads a tree while somebody renames temporary files to their place, and makes and removes directories.
func TestWriteDiffWhileUsed(t *testing.T) {
	testenv.Need(t, testenv.Root)
	low, up := t.TempDir(), t.TempDir()
	var base []entry
	for i := range 20 {
		base = append(base, dir(fmt.Sprintf("d%d", i)), file(fmt.Sprintf("d%d/f", i), "f"))
	}
	for _, root := range []string{low, up} {
		apply(t, root, archive(t, base...))
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				churn(filepath.Join(up, fmt.Sprintf("d%d", i%20)), i)
			}
		}
	}()
	for range 8 {
		var layer bytes.Buffer
		if err := layertar.WriteDiff(context.Background(), &layer, low, up, layertar.WriteOptions{}); err != nil {
			t.Error(err)
			break
		}
		wholeFiles(t, &layer)
	}
	close(stop)
	<-ended
}

// churn is what programs do to a directory where they keep something. Only the reader counts.
func churn(dir string, i int) {
	in := under(dir)
	_ = os.WriteFile(in(".tmp"), bytes.Repeat([]byte{byte('a' + i%26)}, 1+i%9000), 0o600)
	_ = os.Rename(in(".tmp"), in("new"))
	_ = os.MkdirAll(in("sub/deep"), 0o700)
	_ = os.WriteFile(in("sub/deep/lock"), nil, 0o600)
	_ = os.RemoveAll(in("sub"))
}

// wholeFiles wants what was renamed to its place to be one of the files that were.
func wholeFiles(t *testing.T, layer io.Reader) {
	t.Helper()
	for r := tar.NewReader(layer); ; {
		hdr, err := r.Next()
		if err == io.EOF {
			return
		}
		must(t, err)
		text, err := io.ReadAll(r)
		must(t, err)
		if strings.HasSuffix(hdr.Name, "/new") && strings.Count(string(text), string(text[:1])) != len(text) {
			t.Errorf("%s is made of several files", hdr.Name)
		}
	}
}

// shortening truncates a file when something of it was written.
type shortening struct {
	bytes.Buffer
	file string
}

func (s *shortening) Write(p []byte) (int, error) {
	if len(p) > 512 {
		_ = os.Truncate(s.file, 0)
	}
	return s.Buffer.Write(p)
}

// TestWriteDiffShortened has a log rotated while it is read: the header has said how long it is.
func TestWriteDiffShortened(t *testing.T) {
	testenv.Need(t, testenv.Root)
	up := t.TempDir()
	must(t, os.WriteFile(up+"/log", bytes.Repeat([]byte("line\n"), 50_000), 0o600))
	must(t, os.WriteFile(up+"/next", []byte("next"), 0o600))
	layer := shortening{file: up + "/log"}
	must(t, layertar.WriteDiff(context.Background(), &layer, "", up, layertar.WriteOptions{}))
	out := t.TempDir()
	apply(t, out, layer.Bytes())
	text, err := os.ReadFile(out + "/log")
	must(t, err)
	if !bytes.HasPrefix(text, []byte("line\nline\n")) || len(text) != 250_000 || len(bytes.TrimRight(text, "\x00")) == len(text) {
		t.Errorf("%d bytes, begins with %q", len(text), text[:20])
	}
	if next, err := os.ReadFile(out + "/next"); err != nil || string(next) != "next" {
		t.Errorf("next: %q, %v", next, err)
	}
}
