package image

import (
	"archive/tar"
	"fmt"
	"slices"
)

// Fixture is an archive for the tests in package image_test.
type Fixture struct {
	Archive []byte
	IDs     []string   // of the images
	Layers  [][]string // names of the nodes of each
	Tars    [][][]byte // of the layers of each
}

func fixture(archive []byte, images ...testImage) Fixture {
	f := Fixture{Archive: archive}
	for _, i := range images {
		f.IDs = append(f.IDs, i.id())
		var names []string
		for n := range i.layers {
			names = append(names, i.layerName(n))
		}
		f.Layers = append(f.Layers, names)
		f.Tars = append(f.Tars, i.layers)
	}
	return f
}

// kindsTar has every kind of entry. Making it takes root.
var kindsTar = tarOf(
	file{name: "dev/", kind: tar.TypeDir},
	file{name: "dev/null", kind: tar.TypeChar, mode: 0o666, major: 1, minor: 3},
	file{name: "dev/block", kind: tar.TypeBlock, mode: 0o660, major: 7, minor: 200},
	file{name: "dev/fifo", kind: tar.TypeFifo, mode: 0o600},
	file{name: "bin/", kind: tar.TypeDir},
	file{name: "bin/su", body: "setuid", mode: 0o4755},
	file{name: "bin/ping", body: "capable", mode: 0o755, xattrs: map[string]string{
		"security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "user.note": "kept",
	}},
	file{name: "bin/ping-link", kind: tar.TypeLink, link: "bin/ping"},
	file{name: "tmp/", kind: tar.TypeDir, mode: 0o1777},
)

// TwoImages returns a docker save archive of "app:1" and "other", which share their lowest layer.
func TwoImages() Fixture {
	return fixture(tarOf(dockerFiles(gzipped, appImage, otherImage)...), appImage, otherImage)
}

// Kinds returns an OCI archive of "kinds:1", whose top layer has every kind of entry.
func Kinds() Fixture {
	i := testImage{layers: [][]byte{baseTar, kindsTar, appTar}, refs: []string{"kinds:1"}}
	return fixture(tarOf(ociFiles(zstded, i)...), i)
}

// WrongDiffID returns an OCI archive whose last layer is found to be another only while it is unpacked.
func WrongDiffID() Fixture { return fixture(tarOf(wrongDiffID()...)) }

// Heavy returns an archive of "heavy", with layers of so many bytes; in the order of which
// a stream needs no spool, or with the layers first.
func Heavy(layers, bytes int, ordered bool) Fixture {
	i := testImage{refs: []string{"heavy"}}
	for n := range layers {
		i.layers = append(i.layers, noisyTar(fmt.Sprintf("file%d", n), bytes))
	}
	files := inOrder(plain, i)
	if !ordered {
		slices.Reverse(files)
	}
	return fixture(tarOf(files...), i)
}
