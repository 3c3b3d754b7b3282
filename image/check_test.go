package image

import (
	"errors"
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

// What a check tells of a reference, that it leads nowhere or cannot be read, is in the way of no other image, and removing the reference ends it.
func TestRemoveWrongReference(t *testing.T) {
	for name, data := range map[string]string{"nowhere": `{"spelled":"example.com/wrong","id":"sha256:00"}`, "unreadable": `[]`} {
		t.Run(name, func(t *testing.T) {
			s := newFakeStore(t)
			loadInto(t, s, appImage)
			const key = "example.com/wrong:latest"
			s.docs[[2]string{kindRef, key}] = layer.Document{Kind: kindRef, Key: key, Data: []byte(data)}
			if found := wrongObjects(t, s); !slices.Equal(found, []string{`reference "` + key + `"`}) {
				t.Errorf("found %q", found)
			}
			images := must(list(t.Context(), s))
			if len(images) != 1 {
				t.Fatalf("images %+v", images)
			}
			removed := must(remove(t.Context(), s, RemoveOptions{}, key))
			if len(removed) != 1 || len(removed[0].Refs) != 1 || removed[0].Image {
				t.Errorf("removed %+v", removed)
			}
			if found := wrongObjects(t, s); len(found) > 0 || len(s.docs) != 2 {
				t.Errorf("found %q, %d documents", found, len(s.docs))
			}
			if _, err := remove(t.Context(), s, RemoveOptions{}, key); !errors.Is(err, ErrNotFound) {
				t.Errorf("removed again: %v", err)
			}
			must(remove(t.Context(), s, RemoveOptions{}, images[0].ID))
			if len(s.docs) != 0 {
				t.Errorf("left: %v", s.docs)
			}
		})
	}
}
