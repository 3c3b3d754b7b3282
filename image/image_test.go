package image

import (
	"errors"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
)

func loadInto(t *testing.T, s *fakeStore, images ...testImage) {
	t.Helper()
	if _, err := load(t.Context(), s, write(t, tarOf(ociFiles(gzipped, images...)...)), LoadOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestGet(t *testing.T) {
	s := newFakeStore(t)
	loadInto(t, s, appImage, otherImage)
	i, err := get(t.Context(), s, "other")
	if err != nil {
		t.Fatal(err)
	}
	manifest := digest.FromBytes(i.Manifest).String()
	for _, c := range []struct {
		name, id string
		want     error
	}{
		{"app:1", appImage.id(), nil},
		{"docker.io/library/app:1", appImage.id(), nil},
		{"library/app:1", appImage.id(), nil},
		{"index.docker.io/library/app:1", appImage.id(), nil},
		{"app", "", ErrNotFound},
		{"app:latest", "", ErrNotFound},
		{"other", otherImage.id(), nil},
		{"other:latest", otherImage.id(), nil},
		{"docker.io/library/other", otherImage.id(), nil},
		{"example.com:5000/team/other:v2", otherImage.id(), nil},
		{"team/other:v2", "", ErrNotFound},
		{"other@" + manifest, otherImage.id(), nil},
		{"other:latest@" + manifest, otherImage.id(), nil},
		{"other@" + otherImage.id(), otherImage.id(), nil},
		{"other:nope@" + manifest, "", ErrNotFound},
		{"app:1@" + manifest, "", ErrNotFound},
		{appImage.id(), appImage.id(), nil},
		{appImage.id()[:19], appImage.id(), nil},
		{appImage.id()[7:19], appImage.id(), nil},
		{appImage.id()[7:], appImage.id(), nil},
		{"sha256:", "", ErrInvalid},
		{"sha256:zzzz", "", ErrInvalid},
		{"0123456789ab", "", ErrNotFound},
		{"", "", ErrInvalid},
		{"App", "", ErrInvalid},
		{"a b", "", ErrInvalid},
		{"../../etc", "", ErrInvalid},
	} {
		i, err := get(t.Context(), s, c.name)
		if !errors.Is(err, c.want) || err == nil && i.ID != c.id {
			t.Errorf("%q: %s (%v), want %s (%v)", c.name, i.ID, err, c.id, c.want)
		}
		top, err := resolve(t.Context(), s, c.name)
		if !errors.Is(err, c.want) || err == nil && top != i.TopLayer() {
			t.Errorf("%q: layer %s (%v), want %s (%v)", c.name, top, err, i.TopLayer(), c.want)
		}
	}
}

func TestGetAmbiguous(t *testing.T) {
	s := newFakeStore(t)
	seen := map[string]bool{}
	var twins string
	for n := 0; twins == ""; n++ { // 300 ids or so until two begin alike
		i := testImage{comment: string(rune('a'+n%26)) + digest.FromString(string(rune(n))).Encoded()}
		loadInto(t, s, i)
		p := i.id()[:len("sha256:")+4]
		if seen[p] {
			twins = p
		}
		seen[p] = true
	}
	if _, err := get(t.Context(), s, twins); !errors.Is(err, ErrInvalid) {
		t.Errorf("%s: %v", twins, err)
	}
}

func TestRemove(t *testing.T) {
	base, app, other := appImage.layerName(0), appImage.layerName(1), otherImage.layerName(1)
	for _, c := range []struct {
		name   string
		busy   string // node that somebody has mounted
		remove []string
		want   error
		gone   []Removed
		refs   []string // left
		layers []string // left
	}{
		{"last reference", "", []string{"app:1"}, nil,
			[]Removed{{Refs: []string{"app:1"}, ID: appImage.id(), Image: true, Layers: []string{app}, Kept: []string{base}}},
			[]string{"example.com:5000/team/other:v2", "other"}, []string{base, other}},
		{"one of two references", "", []string{"docker.io/library/other:latest"}, nil,
			[]Removed{{Refs: []string{"other"}, ID: otherImage.id()}},
			[]string{"app:1", "example.com:5000/team/other:v2"}, []string{base, app, other}},
		{"all", "", []string{"app:1", "other", "example.com:5000/team/other:v2"}, nil,
			[]Removed{
				{Refs: []string{"app:1"}, ID: appImage.id(), Image: true, Layers: []string{app}, Kept: []string{base}},
				{Refs: []string{"other"}, ID: otherImage.id()},
				{Refs: []string{"example.com:5000/team/other:v2"}, ID: otherImage.id(), Image: true, Layers: []string{other, base}},
			}, nil, nil},
		{"by id", "", []string{appImage.id()[7:20]}, nil,
			[]Removed{{Refs: []string{"app:1"}, ID: appImage.id(), Image: true, Layers: []string{app}, Kept: []string{base}}},
			[]string{"example.com:5000/team/other:v2", "other"}, []string{base, other}},
		{"by an id with two references", "", []string{otherImage.id()}, ErrBusy, nil,
			[]string{"app:1", "example.com:5000/team/other:v2", "other"}, []string{base, app, other}},
		{"mounted", app, []string{"app:1"}, nil,
			[]Removed{{Refs: []string{"app:1"}, ID: appImage.id(), Image: true, Kept: []string{base, app}}},
			[]string{"example.com:5000/team/other:v2", "other"}, []string{base, app, other}},
		{"nothing, and one more", "", []string{"nothing", "app:1"}, ErrNotFound,
			[]Removed{{Refs: []string{"app:1"}, ID: appImage.id(), Image: true, Layers: []string{app}, Kept: []string{base}}},
			[]string{"example.com:5000/team/other:v2", "other"}, []string{base, other}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newFakeStore(t)
			loadInto(t, s, appImage, otherImage)
			s.busy[c.busy] = true
			gone, err := remove(t.Context(), s, RemoveOptions{}, c.remove...)
			if !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			if !slices.EqualFunc(gone, c.gone, func(a, b Removed) bool {
				return slices.Equal(a.Refs, b.Refs) && a.ID == b.ID && a.Image == b.Image && slices.Equal(a.Layers, b.Layers) && slices.Equal(a.Kept, b.Kept)
			}) {
				t.Errorf("removed %+v, want %+v", gone, c.gone)
			}
			images, err := list(t.Context(), s)
			var refs []string
			for _, i := range images {
				refs = append(refs, i.Ref)
			}
			slices.Sort(c.layers)
			if err != nil || !slices.Equal(refs, c.refs) || !slices.Equal(s.names(), c.layers) {
				t.Errorf("left %q (%v), layers %q; want %q, %q", refs, err, s.names(), c.refs, c.layers)
			}
		})
	}
}

// TestRemoveUntagged removes an image that has no reference.
func TestRemoveUntagged(t *testing.T) {
	s := newFakeStore(t)
	untagged := testImage{layers: appImage.layers}
	loadInto(t, s, untagged)
	if _, err := remove(t.Context(), s, RemoveOptions{}, untagged.id()); err != nil {
		t.Fatal(err)
	}
	s.checkEmpty(t)
}

func TestDamagedRecord(t *testing.T) {
	s := newFakeStore(t)
	loadInto(t, s, appImage)
	key := [2]string{kindImage, appImage.id()}
	d := s.docs[key]
	for _, data := range []string{`[]`, `{"layers":[]}`} {
		d.Data = []byte(data)
		s.docs[key] = d
		if _, err := list(t.Context(), s); !errors.Is(err, ErrDamaged) {
			t.Errorf("list: %v", err)
		}
		if _, err := get(t.Context(), s, "app:1"); !errors.Is(err, ErrDamaged) {
			t.Errorf("get: %v", err)
		}
	}
}
