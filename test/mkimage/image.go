package main

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// An image is a stack of layers, written in several formats at the end.
type image struct {
	out, name string
	temp      string
	layers    []*layer
}

func newImage(out, name string) (*image, error) {
	temp, err := os.MkdirTemp(out, "."+name)
	if err != nil {
		return nil, err
	}
	return &image{out: out, name: name, temp: temp}, nil
}

func (img *image) cleanUp() { os.RemoveAll(img.temp) }

// layer adds a layer that fill writes.
func (img *image) layer(comment string, fill func(*layer) error) error {
	l, err := newLayer(img.temp, comment)
	if err != nil {
		return err
	}
	img.layers = append(img.layers, l)
	if err := fill(l); err != nil {
		return fmt.Errorf("layer %q: %w", comment, err)
	}
	if err := l.tw.Close(); err != nil {
		return err
	}
	return l.file.Close()
}

func (img *image) ref() string { return img.name + ":latest" }

type object map[string]any

func (img *image) config() ([]byte, error) {
	var ids []string
	var history []object
	created := epoch.UTC().Format(time.RFC3339)
	for _, l := range img.layers {
		ids = append(ids, l.diffID())
		history = append(history, object{"created": created, "created_by": l.comment})
	}
	history = append(history, object{"created": created, "created_by": "CMD [\"/bin/sh\"]", "empty_layer": true})
	return json.Marshal(object{
		"architecture": "amd64", "os": "linux", "created": created,
		"config":  object{"Env": []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, "Cmd": []string{"/bin/sh"}},
		"rootfs":  object{"type": "layers", "diff_ids": ids},
		"history": history,
	})
}

// write writes all formats. Each appears under its name only when it is complete.
func (img *image) write() error {
	steps := []struct {
		name  string
		write func(to string) error
	}{
		{img.name + ".docker.tar", img.dockerArchive},
		{img.name + ".oci", func(to string) error { return img.layout(to, "gzip") }},
		{img.name + ".oci.tar", func(to string) error { return tarUp(filepath.Join(img.out, img.name+".oci"), to) }},
	}
	if img.name == "small" { // the other compressions, where they cost nothing
		for _, c := range []string{"plain", "zstd"} {
			steps = append(steps, struct {
				name  string
				write func(to string) error
			}{img.name + "." + c + ".oci.tar", func(to string) error {
				dir := filepath.Join(img.temp, c)
				if err := img.layout(dir, c); err != nil {
					return err
				}
				return tarUp(dir, to)
			}})
		}
	}
	for _, s := range steps {
		temp := filepath.Join(img.temp, s.name)
		if err := s.write(temp); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		final := filepath.Join(img.out, s.name)
		if err := os.RemoveAll(final); err != nil {
			return err
		}
		if err := os.Rename(temp, final); err != nil {
			return err
		}
	}
	return nil
}

// dockerArchive writes what `docker save` of a Docker before 25 writes: plain layers in folders.
func (img *image) dockerArchive(to string) error {
	config, err := img.config()
	if err != nil {
		return err
	}
	configName := hexOf(sha256Of(config)) + ".json"
	var names []string
	return inTar(to, func(tw *tar.Writer) error {
		for _, l := range img.layers {
			folder := hexOf(l.diffID())
			names = append(names, folder+"/layer.tar")
			if err := archiveDir(tw, folder); err != nil {
				return err
			}
			if err := archiveFile(tw, folder+"/layer.tar", l.file.Name()); err != nil {
				return err
			}
		}
		if err := archiveBytes(tw, configName, config); err != nil {
			return err
		}
		manifest, err := json.Marshal([]object{{"Config": configName, "RepoTags": []string{img.ref()}, "Layers": names}})
		if err != nil {
			return err
		}
		return archiveBytes(tw, "manifest.json", manifest)
	})
}

// layout writes an OCI image layout.
func (img *image) layout(to, compression string) error {
	if err := os.MkdirAll(filepath.Join(to, "blobs/sha256"), 0o755); err != nil {
		return err
	}
	const media = "application/vnd.oci.image."
	layerType := media + "layer.v1.tar"
	if compression != "plain" {
		layerType += "+" + compression
	}
	var layers []object
	for _, l := range img.layers {
		digest, size, err := compressLayer(to, l, compression)
		if err != nil {
			return err
		}
		layers = append(layers, object{"mediaType": layerType, "digest": digest, "size": size})
	}
	config, err := img.config()
	if err != nil {
		return err
	}
	configDesc, err := blob(to, config, media+"config.v1+json")
	if err != nil {
		return err
	}
	manifest, err := json.Marshal(object{"schemaVersion": 2, "mediaType": media + "manifest.v1+json", "config": configDesc, "layers": layers})
	if err != nil {
		return err
	}
	desc, err := blob(to, manifest, media+"manifest.v1+json")
	if err != nil {
		return err
	}
	desc["annotations"] = object{"org.opencontainers.image.ref.name": img.ref()}
	index, err := json.Marshal(object{"schemaVersion": 2, "manifests": []object{desc}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(to, "index.json"), index, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(to, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644)
}

func blob(layout string, data []byte, mediaType string) (object, error) {
	digest := sha256Of(data)
	err := os.WriteFile(filepath.Join(layout, "blobs/sha256", hexOf(digest)), data, 0o644)
	return object{"mediaType": mediaType, "digest": digest, "size": len(data)}, err
}

func compressLayer(layout string, l *layer, compression string) (digest string, size int64, err error) {
	blobs := filepath.Join(layout, "blobs/sha256")
	f, err := os.CreateTemp(blobs, "layer")
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := &hashWriter{w: f, h: sha256.New()}
	var z io.WriteCloser
	switch compression {
	case "gzip":
		z = gzip.NewWriter(h)
	case "zstd":
		if z, err = zstd.NewWriter(h, zstd.WithEncoderConcurrency(1)); err != nil {
			return "", 0, err
		}
	default:
		z = struct {
			io.Writer
			io.Closer
		}{h, io.NopCloser(nil)}
	}
	in, err := os.Open(l.file.Name())
	if err != nil {
		return "", 0, err
	}
	defer in.Close()
	if _, err := io.Copy(z, in); err != nil {
		return "", 0, err
	}
	if err := z.Close(); err != nil {
		return "", 0, err
	}
	if err := f.Chmod(0o644); err != nil {
		return "", 0, err
	}
	return h.digest(), h.n, os.Rename(f.Name(), filepath.Join(blobs, hexOf(h.digest())))
}

// tarUp writes a folder as a tar.
func tarUp(dir, to string) error {
	return inTar(to, func(tw *tar.Writer) error {
		return filepath.WalkDir(dir, func(p string, de os.DirEntry, err error) error {
			if err != nil || p == dir {
				return err
			}
			rel, err := filepath.Rel(dir, p)
			if err != nil {
				return err
			}
			if de.IsDir() {
				return archiveDir(tw, rel)
			}
			return archiveFile(tw, rel, p)
		})
	})
}

func inTar(to string, fill func(*tar.Writer) error) error {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	tw := tar.NewWriter(f)
	if err := fill(tw); err != nil {
		return err
	}
	if err := tw.Close(); err != nil {
		return err
	}
	return f.Close()
}

func archiveDir(tw *tar.Writer, name string) error {
	return tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: time.Unix(epoch.Unix(), 0)})
}

func archiveFile(tw *tar.Writer, name, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: fi.Size(), ModTime: time.Unix(epoch.Unix(), 0)}); err != nil {
		return err
	}
	_, err = io.Copy(tw, f)
	return err
}

func archiveBytes(tw *tar.Writer, name string, data []byte) error {
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: time.Unix(epoch.Unix(), 0)}); err != nil {
		return err
	}
	_, err := tw.Write(data)
	return err
}

func sha256Of(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

func hexOf(digest string) string { return strings.TrimPrefix(digest, "sha256:") }
