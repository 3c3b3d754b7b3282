package image

import (
	"errors"
	"testing"
)

func TestTag(t *testing.T) {
	for _, c := range []struct {
		name, ref string
		spelled   string // "" where it is refused
		want      error
		left      string // references
	}{
		{"app:1", "mine", "mine:latest", nil, "app:1 example.com:5000/team/other:v2 mine:latest other"},
		{"app:1", "example.com/mine:v1", "example.com/mine:v1", nil, "app:1 example.com/mine:v1 example.com:5000/team/other:v2 other"},
		{"docker.io/library/app:1", "docker.io/library/app:2", "docker.io/library/app:2", nil, "app:1 docker.io/library/app:2 example.com:5000/team/other:v2 other"},
		{appImage.id(), "mine:1", "mine:1", nil, "app:1 example.com:5000/team/other:v2 mine:1 other"},
		{appImage.id()[7:19], "mine:1", "mine:1", nil, "app:1 example.com:5000/team/other:v2 mine:1 other"},
		// Its own reference, in another spelling.
		{"app:1", "library/app:1", "library/app:1", nil, "example.com:5000/team/other:v2 library/app:1 other"},
		// One of another image, which keeps its second one; its last one.
		{"app:1", "other:latest", "other:latest", nil, "app:1 example.com:5000/team/other:v2 other:latest"},
		{"other", "app:1", "app:1", nil, "- app:1 example.com:5000/team/other:v2 other"},
		{"app:1", "deadbeefcafe:1", "deadbeefcafe:1", nil, "app:1 deadbeefcafe:1 example.com:5000/team/other:v2 other"},
		{"app:1", "cafe", "cafe:latest", nil, "app:1 cafe:latest example.com:5000/team/other:v2 other"},

		{"nothing", "mine", "", ErrNotFound, ""},
		{"sha256:0123456789ab", "mine", "", ErrNotFound, ""},
		{"App", "mine", "", ErrInvalid, ""},
		{"app:1", "", "", ErrInvalid, ""},
		{"app:1", "Mine", "", ErrInvalid, ""},
		{"app:1", "../mine", "", ErrInvalid, ""},
		{"app:1", "mine:", "", ErrInvalid, ""},
		{"app:1", "mine@" + appImage.id(), "", ErrInvalid, ""},
		{"app:1", "mine:1@" + appImage.id(), "", ErrInvalid, ""},
		{"app:1", appImage.id(), "", ErrInvalid, ""},
		{"app:1", appImage.id()[7:], "", ErrInvalid, ""},
		{"app:1", "deadbeefcafe", "", ErrInvalid, ""},
		{"app:1", "docker.io/library/deadbeefcafe:latest", "", ErrInvalid, ""},
	} {
		t.Run(c.name+" "+c.ref, func(t *testing.T) {
			s := newFakeStore(t)
			loadInto(t, s, appImage, otherImage)
			before := called(must(list(t.Context(), s)))
			source, _ := get(t.Context(), s, c.name)
			spelled, err := tag(t.Context(), s, c.name, c.ref)
			if spelled != c.spelled || !errors.Is(err, c.want) {
				t.Errorf("%q (%v), want %q (%v)", spelled, err, c.spelled, c.want)
			}
			if c.left == "" {
				c.left = before
			} else if i, err := get(t.Context(), s, c.ref); err != nil || i.ID != source.ID || i.Ref != c.spelled {
				t.Errorf("%s is %s %q (%v), want %s", c.ref, i.ID, i.Ref, err, source.ID)
			}
			if left := called(must(list(t.Context(), s))); left != c.left {
				t.Errorf("left %s, want %s", left, c.left)
			}
			if (CheckTag(c.ref) == nil) != (c.spelled != "" || errors.Is(c.want, ErrNotFound) || c.name == "App") {
				t.Errorf("checked: %v", CheckTag(c.ref))
			}
		})
	}
}

// TestTagRemoved has the image removed, and loaded again, between the search for it and the transaction.
func TestTagRemoved(t *testing.T) {
	s := newFakeStore(t)
	loadInto(t, s, appImage)
	s.beforeUpdate = func() {
		s.beforeUpdate = nil
		if _, err := remove(t.Context(), s, RemoveOptions{}, "app:1"); err != nil {
			t.Error(err)
		}
	}
	if _, err := tag(t.Context(), s, "app:1", "mine"); !errors.Is(err, ErrNotFound) {
		t.Errorf("tagging what was removed meanwhile: %v", err)
	}
	s.checkEmpty(t)
}
