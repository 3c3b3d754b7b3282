package image

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer/layertar"
)

// The side files of a layer that came with an image.
const (
	blobTarSplit = "tarsplit" // layertar's record of the tar
	blobTar      = "tar"      // the tar as it came, packed or not, where no record can bring it back
)

// unpack unpacks a layer into its new node, records how its tar was put together, and compares its
// digests.
func (l *loader) unpack(ctx context.Context, w layerWriter, r *layerReader) (facts, error) {
	record, err := w.Blob(blobTarSplit)
	if err != nil {
		return facts{}, err
	}
	rec := layertar.NewRecorder(r, record)
	stats, err := layertar.Apply(ctx, w.Root(), rec, layertar.ApplyOptions{ForbidDevices: w.DevicesForbidden()})
	recErr := errors.Join(rec.Close(), record.Close())
	if err != nil {
		return facts{}, l.unpackError(r, err)
	}
	f, err := r.facts()
	if err != nil {
		return facts{}, err
	}
	if len(stats.Warnings) > 0 {
		l.report.event(Event{Stage: StageUnpack, Layer: r.lay.name, Done: f.packed, Total: f.packed, Warnings: stats.Warnings})
	}
	if recErr != nil {
		return facts{}, l.unpackError(r, recErr)
	}
	if stats.Rewritten {
		return f, classify(l.keepTar(ctx, w, r.lay))
	}
	return f, nil
}

// unpackError says what a failure of layertar means here: a tar that it finds malformed is a damaged
// archive, not a wrong request.
func (l *loader) unpackError(r *layerReader, err error) error {
	err = classify(err)
	switch class := errs.Class(err); {
	case errors.Is(err, ErrInvalid):
		return damaged("image archive: layer %s: %v", r.lay.path, err)
	case errors.Is(err, ErrNoSpace):
		return errs.WithHint(fmt.Errorf("layer %s: %w", r.lay.path, err), "make room with dmlayer rm, image rm or prune; a layer that is larger than the base size wants a pool with a larger one")
	case class == nil && r.ctx.Err() == nil:
		// The system refused something, perhaps because the archive is not what it should be.
		if _, wrong := r.drain(); errors.Is(wrong, ErrDamaged) {
			return fmt.Errorf("%w (noticed when it was unpacked: %w)", wrong, err)
		}
	}
	return fmt.Errorf("layer %s: %w", r.lay.path, err)
}

// keepTar keeps a layer as it came beside its node.
func (l *loader) keepTar(ctx context.Context, w layerWriter, lay *archivedLayer) error {
	b, err := l.tree.open(ctx, lay.path)
	if err != nil {
		return err
	}
	defer b.Close()
	out, err := w.Blob(blobTar)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{out}, b.reader(ctx), make([]byte, spoolChunk))
	return errors.Join(err, out.Close())
}
