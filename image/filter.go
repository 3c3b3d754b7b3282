package image

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"

	"github.com/dmlayer/dmlayer/layer"
)

// Filter chooses images as Docker's filters of the same names do. The zero value passes all. An image must
// pass each field that is set.
type Filter struct {
	References    []string  // patterns of path.Match, of which one must match the reference, or it without its tag
	Dangling      *bool     // whether the image must have no reference, or must have one
	Labels        []Label   // of the config; all must fit
	Before, Since []string  // names, as in Get, of images that must have been created later, or earlier
	Until         time.Time // the image must have been created before it; zero: whenever
}

// Label is what a filter wants of an image's labels.
type Label struct {
	Key   string
	Value *string // nil: any
	Not   bool    // the image must not have the label
}

// Select returns the images of List that pass a filter. An image whose config does not say when it was
// created passes no filter that asks for it. ErrNotFound for an image that Before or Since names, ErrInvalid for one
// that does not say when it was created, and for a malformed pattern.
func Select(ctx context.Context, s *layer.Store, f Filter) ([]Image, error) {
	return selected(ctx, storeNodes{s}, f)
}

func selected(ctx context.Context, n nodes, f Filter) ([]Image, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	before, since, err := f.bounds(ctx, n)
	if err != nil {
		return nil, err
	}
	all, err := list(ctx, n)
	if err != nil {
		return nil, err
	}
	var passed []Image
	for _, i := range all {
		if !inTime(i.Created, before, since) || !f.fits(i) {
			continue
		}
		ok, err := labelled(i, f.Labels)
		if err != nil {
			return nil, err
		}
		if ok {
			passed = append(passed, i)
		}
	}
	return passed, nil
}

func (f Filter) check() error {
	for _, p := range f.References {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("filter images: pattern %.300q: %w: %w", p, err, ErrInvalid)
		}
	}
	return nil
}

// bounds returns the times between which the image must have been created; zero ones bound nothing.
func (f Filter) bounds(ctx context.Context, n nodes) (before, since time.Time, err error) {
	before = f.Until
	for _, name := range f.Before {
		t, err := createdOf(ctx, n, name)
		if err != nil {
			return before, since, err
		}
		if before.IsZero() || t.Before(before) {
			before = t
		}
	}
	for _, name := range f.Since {
		t, err := createdOf(ctx, n, name)
		if err != nil {
			return before, since, err
		}
		if t.After(since) {
			since = t
		}
	}
	return before, since, nil
}

func createdOf(ctx context.Context, n nodes, name string) (time.Time, error) {
	i, err := get(ctx, n, name)
	if err == nil && i.Created.IsZero() {
		err = fmt.Errorf("filter images: %.300q does not say when it was created: %w", name, ErrInvalid)
	}
	return i.Created, err
}

func inTime(created, before, since time.Time) bool {
	if created.IsZero() {
		return before.IsZero() && since.IsZero()
	}
	return (before.IsZero() || created.Before(before)) && (since.IsZero() || created.After(since))
}

// fits looks at the image's reference.
func (f Filter) fits(i Image) bool {
	if f.Dangling != nil && *f.Dangling != (len(i.Refs) == 0) {
		return false
	}
	return len(f.References) == 0 || slices.ContainsFunc(f.References, func(p string) bool { return matches(p, i.Ref) })
}

// matches tries a reference as it is spelled, in the form that Docker shows, with and without its tag, and in
// full where the pattern is a full one.
func matches(pattern, ref string) bool {
	named, err := parse(ref)
	if err != nil {
		return false
	}
	forms := []string{ref, reference.FamiliarString(named), reference.FamiliarName(named)}
	if strings.HasPrefix(pattern, "docker.io/") {
		forms = append(forms, named.String(), named.Name())
	}
	return slices.ContainsFunc(forms, func(form string) bool {
		ok, err := path.Match(pattern, form)
		return ok && err == nil
	})
}

func labelled(i Image, want []Label) (bool, error) {
	if len(want) == 0 {
		return true, nil
	}
	labels, err := i.Labels()
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(want, func(l Label) bool {
		value, has := labels[l.Key]
		return (has && (l.Value == nil || *l.Value == value)) == l.Not
	}), nil
}

// Labels returns the labels of the image's config.
func (i Image) Labels() (map[string]string, error) {
	var config struct {
		Config struct{ Labels map[string]string } `json:"config"`
	}
	if err := json.Unmarshal(i.Config, &config); err != nil {
		return nil, damaged("image %s: config: %v", i.ID, err)
	}
	return config.Config.Labels, nil
}
