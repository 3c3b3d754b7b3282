package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/layer"
)

// imageFloor is what other people's programs need for the parts of the work that nobody can leave out.
type imageFloor struct {
	*imagesBench
	layers []string // the files of the packed layers, the lowest first
}

// layersOf lists the files of the layers of a layout's only image.
func layersOf(layout string) ([]string, error) {
	var index v1.Index
	if err := readJSON(filepath.Join(layout, v1.ImageIndexFile), &index); err != nil {
		return nil, err
	}
	if len(index.Manifests) != 1 {
		return nil, fmt.Errorf("%s has %d images, want 1", layout, len(index.Manifests))
	}
	var manifest v1.Manifest
	if err := readJSON(blobPath(layout, index.Manifests[0]), &manifest); err != nil {
		return nil, err
	}
	var files []string
	for _, l := range manifest.Layers {
		files = append(files, blobPath(layout, l))
	}
	return files, nil
}

func blobPath(layout string, d v1.Descriptor) string {
	return filepath.Join(layout, v1.ImageBlobsDir, d.Digest.Algorithm().String(), d.Digest.Encoded())
}

func readJSON(file string, v any) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

func (f *imageFloor) round(ctx context.Context, t *loadTimer) error {
	blobs, err := filepath.Glob(filepath.Join(f.layout, v1.ImageBlobsDir, "*", "*"))
	if err != nil {
		return err
	}
	if err := t.timed("sha256sum", exec.CommandContext(ctx, "sha256sum", blobs...)); err != nil {
		return err
	}
	return f.withMount(ctx, "floor", t, func(dir string) error {
		t.start()
		for _, l := range f.layers {
			if err := untar(ctx, l, dir); err != nil {
				return err
			}
		}
		t.lap("tar")
		return nil
	})
}

// untar unpacks a layer as GNU tar does. It cannot replace a directory with content by something else,
// says so with exit code 2, and goes on.
func untar(ctx context.Context, file, dir string) error {
	cmd := exec.CommandContext(ctx, "tar", "-xpzf", file, "--numeric-owner", "--xattrs", "--xattrs-include=*", "--recursive-unlink", "-C", dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, out)
	}
	return nil
}

// withMount runs fn with an empty, mounted file system of the pool, and makes what it wrote durable as a step
// of the timer, if there is one.
func (b *imagesBench) withMount(ctx context.Context, name string, t *loadTimer, fn func(dir string) error) (err error) {
	if _, err := b.store.CreateSnapshot(ctx, name, layer.SnapshotOptions{}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.store.Remove(ctx, name)) }()
	device, err := b.store.Attach(ctx, name, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.store.Detach(ctx, name)) }()
	dir := filepath.Join(b.dirs.Run, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := fsutil.Mount(ctx, device, dir, fsutil.MountOptions{Type: fsutil.Type(b.fs)}); err != nil {
		return err
	}
	err = fn(dir)
	if t != nil {
		t.start()
	}
	err = errors.Join(err, syncfs(dir), fsutil.Unmount(ctx, dir, fsutil.UnmountOptions{}))
	if t != nil {
		t.lap("sync, unmount")
	}
	return err
}

func syncfs(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
