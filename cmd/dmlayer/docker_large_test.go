package main_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/test/treecmp"
)

// dockerLarge loads, runs, saves and loads again the large image with dockerd, and compares its tree with umoci's: test/docker/large.sh.
func dockerLarge(t *testing.T) {
	t.Helper()
	cache, err := testenv.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script, err := filepath.Abs("../../test/docker/large.sh")
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	for _, name := range []string{"dmlayer", "treecmp"} {
		if err := os.Symlink(self, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Scale(20*time.Minute))
	defer cancel()
	archive, plain := filepath.Join(cache, "images/large.docker.tar"), filepath.Join(t.TempDir(), "plain.tar")
	if err := withoutSparse(archive, plain, "large:latest"); err != nil {
		t.Fatal(err)
	}
	// Mounts, containers and daemons end with their namespaces.
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", script, t.TempDir(), archive, "large:latest", plain)
	cmd.Env = append(os.Environ(), "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !strings.Contains(string(out), "ok again ") {
		t.Fatal(err)
	}
}

// withoutSparse copies the image of an archive, with all bytes of sparse files in its layers.
func withoutSparse(from, to, ref string) error {
	img, err := tarball.ImageFromPath(from, nil)
	if err != nil {
		return err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(to), "layers")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	config.RootFS.DiffIDs = nil
	history := config.History
	config.History = nil
	made, err := mutate.ConfigFile(empty.Image, config)
	for i, l := range layers {
		if err == nil {
			l, err = plainLayer(l, filepath.Join(dir, strconv.Itoa(i)))
		}
		if err == nil {
			made, err = mutate.Append(made, mutate.Addendum{Layer: l, History: history[i]})
		}
	}
	if err != nil {
		return err
	}
	tag, err := name.NewTag(ref)
	if err != nil {
		return err
	}
	return tarball.WriteToFile(to, tag, made)
}

// plainLayer returns a layer itself, or one in a file where it has sparse files.
func plainLayer(l v1.Layer, file string) (v1.Layer, error) {
	content, err := l.Uncompressed()
	if err != nil {
		return nil, err
	}
	defer content.Close()
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	sparse, err := copyEntries(tar.NewWriter(f), tar.NewReader(content))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if sparse {
		return tarball.LayerFromFile(file)
	}
	return l, os.Remove(file)
}

// copyEntries copies a tar, and tells whether it had sparse files, which are plain in the copy.
func copyEntries(w *tar.Writer, r *tar.Reader) (sparse bool, err error) {
	for {
		h, err := r.Next()
		if err == io.EOF {
			return sparse, w.Close()
		}
		if err != nil {
			return sparse, err
		}
		maps.DeleteFunc(h.PAXRecords, func(key, _ string) bool {
			hole := strings.HasPrefix(key, "GNU.sparse.")
			sparse = sparse || hole
			return hole
		})
		if err := w.WriteHeader(h); err != nil {
			return sparse, err
		}
		if _, err := io.Copy(w, r); err != nil {
			return sparse, err
		}
	}
}

// compareTrees is what treecmp TREE UMOCIS is to large.sh.
func compareTrees(args []string) int {
	if len(args) != 2 {
		fmt.Fprintln(os.Stderr, "treecmp: want two trees")
		return 2
	}
	differences, err := treecmp.Compare(args[0], args[1], treecmp.AgainstUmoci())
	if err != nil {
		fmt.Fprintln(os.Stderr, "treecmp:", err)
		return 2
	}
	fmt.Print(strings.Join(differences, "\n"))
	return min(len(differences), 1)
}
