package image

import (
	"slices"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
)

func wrongObjects(t *testing.T, s *fakeStore) (list []string) {
	t.Helper()
	for _, p := range must(checkImages(t.Context(), s)) {
		list = append(list, p.Object)
	}
	return list
}

// What is recorded of images is compared with what is there: their references and side files.
func TestCheckImages(t *testing.T) {
	s := newFakeStore(t)
	loadInto(t, s, appImage)
	if found := wrongObjects(t, s); len(found) > 0 {
		t.Fatalf("of a sound image: %q", found)
	}
	name := s.names()[0]
	clear(s.layers[name].blobs)
	if found := wrongObjects(t, s); !slices.Equal(found, []string{`layer "` + name + `"`}) {
		t.Errorf("without side files: %q", found)
	}

	s = newFakeStore(t)
	loadInto(t, s, appImage)
	var image layer.Document
	for key, d := range s.docs {
		if d.Kind == kindImage {
			image = d
			delete(s.docs, key)
		}
	}
	found := wrongObjects(t, s)
	if len(found) == 0 || found[0][:9] != "reference" {
		t.Errorf("without the image: %q", found)
	}
	image.Data = []byte("[]")
	s.docs[[2]string{image.Kind, image.Key}] = image
	if found := wrongObjects(t, s); !slices.Equal(found, []string{`image "` + image.Key + `"`}) {
		t.Errorf("with a record that is none: %q", found)
	}
}
