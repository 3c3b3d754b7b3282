package image

import (
	"context"
	"errors"
	"fmt"

	"github.com/dmlayer/dmlayer/layer"
)

// Problem is one thing that is wrong with what is recorded of images.
type Problem struct {
	Object string // `image "sha256:…"`, `layer "sha256-…"`
	Layer  string // the layer whose side file is lost, "" for a record that is wrong
	Text   string
}

// Check reads the records of all images and looks whether what they name is there. It needs nothing but the records and the side
// files. The error is that of reading.
func Check(ctx context.Context, s *layer.Store) ([]Problem, error) {
	return checkImages(ctx, storeNodes{s})
}

func checkImages(ctx context.Context, n nodes) ([]Problem, error) {
	images, err := n.Documents(ctx, kindImage)
	if err != nil {
		return nil, fmt.Errorf("check images: %w", err)
	}
	refs, err := n.Documents(ctx, kindRef)
	if err != nil {
		return nil, fmt.Errorf("check images: %w", err)
	}
	var problems []Problem
	ids, layers := map[string]bool{}, map[string]bool{}
	for _, d := range images {
		ids[d.Key] = true
		if _, err := decodeImage(d); err != nil {
			problems = append(problems, Problem{Object: fmt.Sprintf("image %q", d.Key), Text: err.Error()})
		}
		for _, name := range d.Layers {
			if layers[name] {
				continue
			}
			layers[name] = true
			found, err := checkSideFile(ctx, n, name)
			if err != nil {
				return nil, fmt.Errorf("check images: %w", err)
			}
			problems = append(problems, found...)
		}
	}
	return append(problems, checkRefs(refs, ids)...), nil
}

func checkRefs(refs []layer.Document, ids map[string]bool) (problems []Problem) {
	for _, d := range refs {
		var r refRecord
		object := fmt.Sprintf("reference %q", d.Key)
		if err := decodeDocument(d, &r); err != nil {
			problems = append(problems, Problem{Object: object, Text: err.Error()})
		} else if !ids[r.ID] {
			problems = append(problems, Problem{Object: object, Text: fmt.Sprintf("there is no image %s", r.ID)})
		}
	}
	return problems
}

// checkSideFile looks whether a layer has what its tar is made of again: the tar itself, or the record of how it was.
func checkSideFile(ctx context.Context, n nodes, name string) ([]Problem, error) {
	for _, kind := range []string{blobTarSplit, blobTar} {
		f, err := n.OpenBlob(ctx, name, kind)
		if err == nil {
			return nil, f.Close()
		}
		if !errors.Is(err, ErrNotFound) {
			return nil, err
		}
	}
	return []Problem{{Object: fmt.Sprintf("layer %q", name), Layer: name, Text: "neither its tar nor a record of it is there"}}, nil
}
