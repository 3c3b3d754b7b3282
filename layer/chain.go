package layer

import (
	"context"
	"errors"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// NewLayer is a layer that CreateLayers is to make.
type NewLayer struct {
	Name    string
	Options LayerOptions // Parent counts only for the first; the others stand on the one before
	Fill    func(ctx context.Context, w *LayerWriter) error
}

// CreateLayers makes layers, one on the other, with one mount for all of them where the file system allows (ext4): each but the last
// is a thin snapshot of the still mounted device, frozen for the moment. Every layer is whole and recorded before the next one's Fill is called. It
// ends early, without an error, before a layer (other than the first) that exists or that somebody else is making right now; the
// caller goes on from there with another call. The first exists: ErrExists. It returns the layers made, also beside an error; those stay.
func (s *Store) CreateLayers(ctx context.Context, layers []NewLayer) ([]Node, error) {
	var made []Node
	for i, l := range layers {
		if i > 0 {
			l.Options.Parent = layers[i-1].Name
		}
		n, err := s.CreateLayer(ctx, l.Name, l.Options, l.Fill)
		if i > 0 && errors.Is(err, errs.ErrExists) {
			return made, nil
		}
		if err != nil {
			return made, err
		}
		made = append(made, n)
	}
	return made, nil
}
