package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
)

// LayerWriter is what CreateLayer hands to the function that fills a layer. It is not safe for
// concurrent use.
type LayerWriter struct {
	root  string
	store *Store
	node  *metadata.Node
	open  []*os.File
}

// Root returns the directory where the new layer is mounted, for this process alone. It must not be
// used after fill has returned.
func (w *LayerWriter) Root() string { return w.root }

// SetAttr gives the layer an attribute that is known only while it is filled, in the place of one of
// LayerOptions.
func (w *LayerWriter) SetAttr(key, value string) {
	if w.node.Attrs == nil {
		w.node.Attrs = map[string]string{}
	}
	w.node.Attrs[key] = value
}

// DevicesForbidden tells whether the pool was made to keep device nodes out of its layers. Whoever fills
// one from an archive heeds it.
func (w *LayerWriter) DevicesForbidden() bool { return w.store.pool.Record().ForbidDevices }

var blobKind = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

// Blob makes a side file that is kept with the layer and goes with it. It is durable before the layer
// is recorded. Closing it is optional.
func (w *LayerWriter) Blob(kind string) (io.WriteCloser, error) {
	if !blobKind.MatchString(kind) {
		return nil, fmt.Errorf("side file %q: %w", kind, errs.ErrInvalid)
	}
	if err := os.MkdirAll(w.store.blobDir(w.node.ID), 0o700); err != nil {
		return nil, fmt.Errorf("side file %q: %w", kind, err)
	}
	f, err := os.OpenFile(w.store.blobPath(w.node.ID, kind), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("side file %q: %w", kind, err)
	}
	w.open = append(w.open, f)
	return nopCloser{f}, nil
}

// nopCloser leaves the closing to finish, which syncs first.
type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// finish makes the side files durable, and tells whether there are any. Their folder is left to settleBlobs.
func (w *LayerWriter) finish() (blobs bool, err error) {
	if len(w.open) == 0 {
		return false, nil
	}
	for _, f := range w.open {
		err = errors.Join(err, f.Sync(), f.Close())
	}
	w.open = nil
	return true, errors.Join(err, fsutil.SyncDir(w.store.blobDir(w.node.ID)))
}

// settleBlobs gives the folder of the layer's side files, if there are any, to the thin device that becomes
// the layer. Until that is recorded both ids are in flight, and recovery removes the folder of either.
func (w *work) settleBlobs(blobs bool, id metadata.ThinID) error {
	if !blobs {
		return nil
	}
	if from, to := w.s.blobDir(w.node.ID), w.s.blobDir(id); from != to {
		if err := os.Rename(from, to); err != nil {
			return fmt.Errorf("side files: %w", err)
		}
	}
	return fsutil.SyncDir(w.s.pool.BlobDir())
}

// abandon closes the side files of a layer that will not be.
func (w *LayerWriter) abandon() {
	for _, f := range w.open {
		_ = f.Close()
	}
}

// OpenBlob opens a side file of a node. Errors: ErrNotFound.
func (s *Store) OpenBlob(ctx context.Context, name, kind string) (io.ReadCloser, error) {
	o, err := s.reader(ctx)
	if err != nil {
		return nil, err
	}
	defer o.Exit()
	var n metadata.Node
	err = o.view(ctx, func(tx *metadata.Tx) error {
		n, err = lookup(tx, name)
		return err
	})
	if err != nil {
		return nil, err
	}
	if !blobKind.MatchString(kind) {
		return nil, fmt.Errorf("side file %q of %q: %w", kind, name, errs.ErrInvalid)
	}
	f, err := os.Open(s.blobPath(n.ID, kind))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("side file %q of %q: %w", kind, name, errs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("side file %q of %q: %w", kind, name, err)
	}
	return f, nil
}
