package torture_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/dmlayer/dmlayer/image"
)

// archive is an image to be loaded.
type archive struct {
	ref    string
	id     string
	layers []string        // names of the nodes, the lowest first
	nodes  map[string]node // what becomes of them
	shared bool            // other actors have the same layers in an image of theirs
	data   []byte
}

// cast is what is known of an actor besides its state.
type cast struct {
	id       string // what the names of its nodes and images begin with
	base     int64  // base size of the pool
	archives []archive
}

func newCast(n int, base int64) *cast {
	id := fmt.Sprintf("p%d", n)
	a := &cast{id: id, base: base}
	a.archives = []archive{
		newArchive(id, "app:1", base, false, id+"a", id+"b", id+"c"),
		newArchive(id, "app:2", base, false, id+"a", id+"b", id+"d"),
		newArchive(id, "both:1", base, true, "everybody's first", "everybody's second"),
	}
	return a
}

// owns tells whether a node is the actor's alone.
func (c *cast) owns(name string) bool {
	if strings.HasPrefix(name, c.id+"-") {
		return true
	}
	for _, a := range c.archives {
		if _, ok := a.nodes[name]; ok && !a.shared {
			return true
		}
	}
	return false
}

// shared returns what a layer is that several actors may have.
func (c *cast) shared(name string) (node, bool) {
	for _, a := range c.archives {
		if n, ok := a.nodes[name]; ok && a.shared {
			return n, true
		}
	}
	return node{}, false
}

func (c *cast) archiveOf(id string) int {
	for i, a := range c.archives {
		if a.id == id {
			return i
		}
	}
	return -1
}

// numberFor returns a number that follows from a text.
func numberFor(what string) uint64 {
	sum := sha256.Sum256([]byte(what))
	return binary.LittleEndian.Uint64(sum[:]) | 1<<63
}

// newArchive makes what docker save writes of an image of layers with a file each.
func newArchive(id, ref string, base int64, shared bool, layers ...string) archive {
	a := archive{ref: id + ref, shared: shared, nodes: map[string]node{}}
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, Author: id}
	config.RootFS.Type = "layers"
	files := map[string][]byte{}
	var paths []string
	for _, l := range layers {
		b := tarOf("f-"+strings.ReplaceAll(l, " ", "-"), text(numberFor(l)))
		d := digest.FromBytes(b)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d)
		files[d.Encoded()+"/layer.tar"] = b
		paths = append(paths, d.Encoded()+"/layer.tar")
	}
	n := node{Kind: "layer", Size: base}
	for i, chain := range identity.ChainIDs(append([]digest.Digest(nil), config.RootFS.DiffIDs...)) {
		n = n.withFile("f-"+strings.ReplaceAll(layers[i], " ", "-"), numberFor(layers[i]))
		name := image.LayerName(chain)
		a.nodes[name] = n
		a.layers = append(a.layers, name)
		n.Parent = name
	}
	text := asJSON(config)
	a.id = digest.FromBytes(text).String()
	name := digest.FromBytes(text).Encoded() + ".json"
	files[name] = text
	files["manifest.json"] = asJSON([]map[string]any{{"Config": name, "RepoTags": []string{a.ref}, "Layers": paths}})
	a.data = tarOfAll(append(paths, name, "manifest.json"), files)
	return a
}

func asJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func tarOf(name string, data []byte) []byte {
	return tarOfAll([]string{name}, map[string][]byte{name: data})
}

func tarOfAll(order []string, files map[string][]byte) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range order {
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[name])), Format: tar.FormatPAX}
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		if _, err := w.Write(files[name]); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// file writes the archive where it is not there yet, and returns its path. Its writer may be killed.
func (a archive) file(dir string) (string, error) {
	path := filepath.Join(dir, strings.ReplaceAll(a.ref, ":", "-")+".tar")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.WriteFile(path+".new", a.data, 0o600); err != nil {
		return "", err
	}
	return path, os.Rename(path+".new", path)
}
