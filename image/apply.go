package image

import (
	"bufio"
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

// fill unpacks a layer into its new node.
func (l *loader) fill(ctx context.Context, w layerWriter, lay *archivedLayer) error {
	b, err := l.tree.open(lay.path)
	if err != nil {
		return err
	}
	defer b.Close()
	z, _, err := unpacked(l.report.reader(StageUnpack, lay.name, b.size, b.reader(ctx)))
	if err != nil {
		return fmt.Errorf("image archive: layer %s: %w", lay.path, err)
	}
	defer z.Close()
	record, err := w.Blob(blobTarSplit)
	if err != nil {
		return err
	}
	m := newMeter(z)
	err = l.apply(ctx, w, m, record, lay)
	if err := errors.Join(err, record.Close()); err != nil {
		return classify(err)
	}
	l.sizes[lay.name] = m.size
	return nil
}

// apply unpacks a tar, recording it, and compares its diff id.
func (l *loader) apply(ctx context.Context, w layerWriter, m *meter, record io.Writer, lay *archivedLayer) error {
	tar, stop := ahead(m)
	rec := layertar.NewRecorder(tar, record)
	// The buffer spares the recorder, a goroutine of its own, a wake-up for every header.
	stats, err := layertar.Apply(ctx, w.Root(), bufio.NewReaderSize(rec, 64<<10), layertar.ApplyOptions{})
	recErr := rec.Close()
	stop()
	if err != nil {
		return unpackError(lay, err)
	}
	if err := m.check(lay); err != nil {
		return err
	}
	if len(stats.Warnings) > 0 {
		l.report.event(Event{Stage: StageUnpack, Layer: lay.name, Warnings: stats.Warnings})
	}
	if errors.Is(recErr, ErrUnsupported) {
		return l.keepTar(ctx, w, lay)
	}
	if recErr != nil {
		return unpackError(lay, recErr)
	}
	return nil
}

// unpackError says what a failure of layertar means here: a tar that it finds malformed is a damaged
// archive, not a wrong request.
func unpackError(lay *archivedLayer, err error) error {
	switch {
	case errors.Is(err, ErrInvalid):
		return damaged("image archive: layer %s: %v", lay.path, err)
	case errors.Is(err, ErrNoSpace):
		return errs.WithHint(fmt.Errorf("layer %s: %w", lay.path, err), "make room with dmlayer rm, image rm or prune; a layer that is larger than the base size wants a pool with a larger one")
	}
	return fmt.Errorf("layer %s: %w", lay.path, err)
}

// keepTar keeps a layer as it came beside its node.
func (l *loader) keepTar(ctx context.Context, w layerWriter, lay *archivedLayer) error {
	b, err := l.tree.open(lay.path)
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

// ahead reads r in a goroutine of its own, so that unpacking does not wait for decompressing. After
// stop, r is in nobody's hands again.
func ahead(r io.Reader) (_ io.Reader, stop func()) {
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := io.CopyBuffer(struct{ io.Writer }{pw}, struct{ io.Reader }{r}, make([]byte, spoolChunk))
		pw.CloseWithError(err)
	}()
	return bufio.NewReaderSize(pr, spoolChunk), func() {
		pr.Close()
		<-done
	}
}
