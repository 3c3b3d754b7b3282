package image

import (
	"fmt"
	"slices"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// platformMatcher chooses among the manifests of an index.
type platformMatcher struct {
	platforms.MatchComparer
	name     string
	explicit bool // the caller asked for it: nothing else will do
}

// newPlatformMatcher takes "os/arch[/variant]"; "" is the platform that the program runs on.
func newPlatformMatcher(s string) (platformMatcher, error) {
	if s == "" {
		p := platforms.DefaultSpec()
		return platformMatcher{platforms.Only(p), formatPlatform(p), false}, nil
	}
	p, err := platforms.Parse(s)
	if err != nil {
		return platformMatcher{}, fmt.Errorf("platform %.100q: %w: %w", s, err, ErrInvalid)
	}
	return platformMatcher{platforms.Only(p), formatPlatform(p), true}, nil
}

// CheckPlatform is the error of Load for a platform that is spelled wrong.
func CheckPlatform(s string) error {
	_, err := newPlatformMatcher(s)
	return err
}

func (m platformMatcher) matches(p ocispec.Platform) bool { return m.Match(platforms.Normalize(p)) }

// order returns the descriptors worth trying, best first: those for the platform, then those that do not
// say what they are for. A lone one is taken for what it is, unless the caller asked for a platform.
func (m platformMatcher) order(ds []ocispec.Descriptor) []ocispec.Descriptor {
	if len(ds) == 1 && !m.explicit {
		return ds
	}
	var suitable []ocispec.Descriptor
	for _, d := range ds {
		if d.Platform == nil || m.matches(*d.Platform) {
			suitable = append(suitable, d)
		}
	}
	slices.SortStableFunc(suitable, func(a, b ocispec.Descriptor) int {
		switch {
		case a.Platform == nil && b.Platform == nil:
			return 0
		case a.Platform == nil:
			return 1
		case b.Platform == nil:
			return -1
		case m.Less(platforms.Normalize(*a.Platform), platforms.Normalize(*b.Platform)):
			return -1
		case m.Less(platforms.Normalize(*b.Platform), platforms.Normalize(*a.Platform)):
			return 1
		}
		return 0
	})
	return suitable
}

// admit refuses an image that says of itself, though nothing in the archive says it of the image, that it is for
// another platform than the one that the caller asked for.
func (m platformMatcher) admit(a *archived) error {
	if p, err := platforms.Parse(a.platform); m.explicit && err == nil && !m.matches(p) {
		return unsupported("image archive: image %s is for %s, not for %s", a.id, a.platform, m.name)
	}
	return nil
}

// none is the error where nothing suits; it says what there would be.
func (m platformMatcher) none(name string, ds []ocispec.Descriptor) error {
	var have []string
	for _, d := range ds {
		if d.Platform != nil && len(have) < 16 {
			have = append(have, formatPlatform(*d.Platform))
		}
	}
	return unsupported("image archive: %s: no image for %s (there is %.40q)", name, m.name, have)
}

// formatPlatform spells a platform "os/arch[/variant]"; "" where os or architecture are not known.
func formatPlatform(p ocispec.Platform) string {
	if p.OS == "" || p.Architecture == "" {
		return ""
	}
	return platforms.Format(platforms.Normalize(ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}))
}
