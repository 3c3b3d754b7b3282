package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// cut makes, in an OCI archive, an image of the first layers of a layout's only image.
func cut(layout, to string, layers int) error {
	var index v1.Index
	var manifest v1.Manifest
	var config v1.Image
	err := errors.Join(readJSON(filepath.Join(layout, v1.ImageIndexFile), &index),
		readJSON(blobPath(layout, index.Manifests[0]), &manifest), readJSON(blobPath(layout, manifest.Config), &config))
	if err != nil {
		return err
	}
	dir := to + ".layout"
	if err := os.CopyFS(dir, os.DirFS(layout)); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	config.RootFS.DiffIDs, config.History = config.RootFS.DiffIDs[:layers], nil
	for _, l := range manifest.Layers[layers:] {
		if err := os.Remove(blobPath(dir, l)); err != nil {
			return err
		}
	}
	manifest.Layers = manifest.Layers[:layers]
	if err := putBlob(dir, &manifest.Config, config); err != nil {
		return err
	}
	if err := putBlob(dir, &index.Manifests[0], manifest); err != nil {
		return err
	}
	data, err := json.Marshal(index)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, v1.ImageIndexFile), data, 0o644); err != nil {
		return err
	}
	return exec.Command("tar", "-cf", to, "-C", dir, "blobs", v1.ImageIndexFile, v1.ImageLayoutFile).Run()
}

// putBlob replaces what a descriptor describes.
func putBlob(layout string, d *v1.Descriptor, v any) error {
	if err := os.Remove(blobPath(layout, *d)); err != nil {
		return err
	}
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	d.Digest, d.Size = digest.FromBytes(data), int64(len(data))
	return os.WriteFile(blobPath(layout, *d), data, 0o644)
}
