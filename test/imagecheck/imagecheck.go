// Package imagecheck looks at the images in a pool for tests.
package imagecheck

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/layer"
)

// Rebuilt writes the tar of every layer of every image again, and returns how many layers that were, and
// what is wrong: each tar must have the diff id that the config of each image with the layer says.
func Rebuilt(ctx context.Context, s *layer.Store) (int, error) {
	images, err := image.List(ctx, s)
	if err != nil {
		return 0, err
	}
	got := map[string]string{} // digests of tars by layer
	var wrong error
	for _, i := range images {
		want, err := diffIDs(i)
		if err != nil {
			return len(got), err
		}
		if len(want) != len(i.Layers) {
			return len(got), fmt.Errorf("image %s: %d layers, and the config has %d diff ids", i.ID, len(i.Layers), len(want))
		}
		for n, l := range i.Layers {
			if got[l.Name] == "" {
				h := sha256.New()
				if err := image.RebuildLayer(ctx, s, l.Name, h); err != nil {
					wrong = errors.Join(wrong, fmt.Errorf("image %s: layer %d: %w", i.ID, n, err))
				}
				got[l.Name] = fmt.Sprintf("sha256:%x", h.Sum(nil))
			}
			if got[l.Name] != want[n] {
				wrong = errors.Join(wrong, fmt.Errorf("image %s: layer %d was rebuilt as %s, and is %s", i.ID, n, got[l.Name], want[n]))
			}
		}
	}
	return len(got), wrong
}

func diffIDs(i image.Image) ([]string, error) {
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(i.Config, &config); err != nil {
		return nil, fmt.Errorf("image %s: config: %w", i.ID, err)
	}
	return config.RootFS.DiffIDs, nil
}
