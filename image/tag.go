package image

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/distribution/reference"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
)

// Tag gives the image that name means, as in Get, one more reference, and returns it as List shows it: as
// it was spelled, with the tag "latest" where there was none. A reference that another image has moves; an
// image that loses its last one so stays without. ErrNotFound for the image; ErrInvalid for a new reference
// that has a digest, which nobody but the content decides, or that would be taken for an id.
func Tag(ctx context.Context, s *layer.Store, name, ref string) (string, error) {
	return tag(ctx, storeNodes{s}, name, ref)
}

// CheckTag is the error of Tag for a reference that no image can be given, without looking for an image.
func CheckTag(ref string) error {
	_, _, err := parseTarget(ref)
	return err
}

func tag(ctx context.Context, n nodes, name, ref string) (string, error) {
	key, spelled, err := parseTarget(ref)
	if err != nil {
		return "", err
	}
	for range maxAttempts {
		id, _, err := find(ctx, n, name)
		if err != nil {
			return "", err
		}
		err = n.UpdateDocuments(ctx, func(tx documentTx) error {
			if _, err := tx.Get(kindImage, id); errors.Is(err, ErrNotFound) {
				return errMoved
			} else if err != nil {
				return err
			}
			return putRef(tx, key, refRecord{Spelled: spelled, ID: id, Set: time.Now().UTC()})
		})
		if !errors.Is(err, errMoved) {
			return spelled, err
		}
	}
	return "", fmt.Errorf("tag image %.300q: %w: %w", name, errMoved, ErrBusy)
}

// likeID is what a person would take for an id, or for the start of one as lists show it.
var likeID = regexp.MustCompile(`^[0-9a-f]{12,64}$`)

// parseTarget returns the key and the spelling of a reference that is to be set.
func parseTarget(ref string) (key, spelled string, err error) {
	named, err := parse(ref)
	if err != nil {
		return "", "", err
	}
	if _, ok := named.(reference.Digested); ok {
		err := fmt.Errorf("image reference %.300q: a digest cannot be given: %w", ref, ErrInvalid)
		return "", "", errs.WithHint(err, "leave out the digest, and give a tag")
	}
	tagged, ok := named.(reference.NamedTagged)
	if !ok {
		return "", "", fmt.Errorf("image reference %.300q: has no tag: %w", ref, ErrInvalid)
	}
	if tagged.Tag() == "latest" && likeID.MatchString(reference.FamiliarName(named)) {
		// It would hide the image with that id, for references are tried first.
		err := fmt.Errorf("image reference %.300q: looks like an id: %w", ref, ErrInvalid)
		return "", "", errs.WithHint(err, "give another name, or a tag other than latest")
	}
	spelled = ref
	if bare, err := reference.ParseNormalizedNamed(ref); err == nil && reference.IsNameOnly(bare) {
		spelled += ":" + tagged.Tag()
	}
	return named.String(), spelled, nil
}
