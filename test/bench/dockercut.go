package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// dockerImage is what manifest.json of docker save says of an image.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// cutArchive copies an archive of docker save, of one image, with the first layers of it only; 0 is all.
func cutArchive(from, to string, layers int) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	var images []dockerImage
	if err := readEntry(in, "manifest.json", &images); err != nil {
		return err
	}
	if len(images) != 1 {
		return fmt.Errorf("%s has %d images, want one", from, len(images))
	}
	config := map[string]any{}
	if err := readEntry(in, images[0].Config, &config); err != nil {
		return err
	}
	var dropped []string
	if layers > 0 && layers < len(images[0].Layers) {
		dropped = images[0].Layers[layers:]
		images[0].Layers = images[0].Layers[:layers]
		rootfs, _ := config["rootfs"].(map[string]any)
		if ids, ok := rootfs["diff_ids"].([]any); ok {
			rootfs["diff_ids"] = ids[:layers]
		}
		delete(config, "history")
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	return copyArchive(out, in, dropped, map[string]any{"manifest.json": images, images[0].Config: config})
}

// copyArchive copies a tar without some entries, and with others replaced by JSON.
func copyArchive(out io.Writer, in io.ReadSeeker, dropped []string, replaced map[string]any) error {
	w := tar.NewWriter(out)
	_, err := in.Seek(0, io.SeekStart)
	for r := tar.NewReader(in); err == nil; {
		var h *tar.Header
		if h, err = r.Next(); err != nil {
			break
		}
		var body io.Reader = r
		if v, ok := replaced[h.Name]; ok {
			data, err := json.Marshal(v)
			if err != nil {
				return err
			}
			body, h.Size = bytes.NewReader(data), int64(len(data))
		}
		if slices.Contains(dropped, h.Name) {
			continue
		}
		if err = w.WriteHeader(h); err == nil {
			_, err = io.Copy(w, body)
		}
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	return w.Close()
}

// readEntry reads the JSON of one entry of a tar.
func readEntry(in io.ReadSeeker, name string, into any) error {
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return err
	}
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if err != nil {
			return fmt.Errorf("look for %s: %w", name, err)
		}
		if h.Name == name {
			return json.NewDecoder(r).Decode(into)
		}
	}
}
