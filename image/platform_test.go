package image

import (
	"bytes"
	"errors"
	"testing"
)

// TestPlatformOfTheConfig asks for a platform where only the image's config says which it is for.
func TestPlatformOfTheConfig(t *testing.T) {
	for name, archive := range map[string][]byte{
		"docker": tarOf(dockerFiles(gzipped, appImage)...),
		"oci":    tarOf(ociFiles(gzipped, appImage)...),
	} {
		t.Run(name, func(t *testing.T) {
			s := newFakeStore(t)
			for _, o := range []LoadOptions{{Platform: "linux/arm64"}, {Platform: "linux/arm64", Input: bytes.NewReader(archive)}} {
				source := "-"
				if o.Input == nil {
					source = write(t, archive)
				}
				if _, err := load(t.Context(), s, source, o); !errors.Is(err, ErrUnsupported) {
					t.Errorf("for arm64 from %s: %v", source, err)
				}
				s.checkEmpty(t)
			}
			if _, err := load(t.Context(), s, write(t, archive), LoadOptions{Platform: "linux/amd64"}); err != nil {
				t.Errorf("for amd64: %v", err)
			}
		})
	}
	if err := CheckPlatform("linux/arm64/v8"); err != nil {
		t.Error(err)
	}
	if err := CheckPlatform("linux//"); !errors.Is(err, ErrInvalid) {
		t.Errorf("linux//: %v", err)
	}
}
