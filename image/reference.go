package image

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/distribution/reference"
)

// normalize returns the key of a reference: all spellings that Docker's users take for the same
// ("app", "app:latest", "docker.io/library/app") have one. ErrInvalid if it is none.
func normalize(ref string) (string, error) {
	named, err := parse(ref)
	if err != nil {
		return "", err
	}
	return named.String(), nil
}

// maxReference is more bytes than any reference has: a path has 255 at most, a tag 128. To take apart what is longer can
// take long.
const maxReference = 4096

func parse(ref string) (reference.Named, error) {
	if strings.HasPrefix(ref, "sha256:") {
		// would be taken for a tag of an image called sha256
		return nil, fmt.Errorf("image reference %.300q: is an id: %w", ref, ErrInvalid)
	}
	if len(ref) > maxReference {
		return nil, fmt.Errorf("image reference %.300q: of %d bytes: %w", ref, len(ref), ErrInvalid)
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, fmt.Errorf("image reference %.300q: %w: %w", ref, err, ErrInvalid)
	}
	return reference.TagNameOnly(named), nil
}

var idPrefix = regexp.MustCompile(`^(?:sha256:)?([0-9a-f]{4,64})$`)

// idPrefixOf returns the beginning of an image id that name spells, "" if it cannot be one.
func idPrefixOf(name string) string {
	if m := idPrefix.FindStringSubmatch(name); m != nil {
		return "sha256:" + m[1]
	}
	return ""
}
