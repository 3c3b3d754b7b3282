package image

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/dmlayer/dmlayer/internal/ahead"
)

// layerReader reads the tar of an archive's layer, once: reading the archive, hashing that, unpacking,
// and hashing the tar are done ahead of whoever reads here. At the end it knows all digests.
type layerReader struct {
	*layerSource
	tar    *ahead.Reader
	stage  Stage
	report *reporter
	told   int64
	cancel context.CancelFunc
}

// readLayer begins to read a layer of the archive. It never waits for the archive; reading does.
func (l *loader) readLayer(ctx context.Context, lay *archivedLayer, s Stage) *layerReader {
	ctx, cancel := context.WithCancel(ctx)
	src := &layerSource{ctx: ctx, tree: l.tree, lay: lay}
	return &layerReader{src, ahead.New(src, digest.SHA256.Hash(), src.used), s, l.report, -reportStep, cancel}
}

// Read reads from the tar.
func (r *layerReader) Read(p []byte) (int, error) {
	n, err := r.tar.Read(p)
	if err != nil && err != io.EOF {
		return n, err
	}
	if done := r.tar.Mark(); done-r.told >= reportStep || err == io.EOF && done != r.told {
		r.told = done
		r.report.event(Event{Stage: r.stage, Layer: r.lay.name, Done: done, Total: r.blob.size})
	}
	return n, err
}

// facts are what is known of a layer once it was read.
type facts struct {
	path   string        // in the archive
	tar    int64         // bytes of its tar
	blob   digest.Digest // of its bytes in the archive
	packed int64         // how many those are
}

// facts compares the layer's digests. It may be called once the end was read.
func (r *layerReader) facts() (facts, error) {
	diff := digest.NewDigest(digest.SHA256, r.tar.Hash())
	got := diff
	if r.hash != nil {
		got = digest.NewDigest(r.lay.algorithm(), r.hash)
	}
	if r.lay.blob != "" && got != r.lay.blob {
		return facts{}, damaged("image archive: layer %s: has the digest %s, should have %s", r.lay.path, got, r.lay.blob)
	}
	if diff != r.lay.diffID {
		return facts{}, damaged("image archive: layer %s: has the diff id %s, the config says %s", r.lay.path, diff, r.lay.diffID)
	}
	return facts{r.lay.path, r.tar.Size(), got, r.blob.size}, nil
}

// drain reads what is left, and compares the digests.
func (r *layerReader) drain() (facts, error) {
	if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{r}, make([]byte, 64<<10)); err != nil {
		return facts{}, r.explain(err)
	}
	return r.facts()
}

// explain names the layer in an error of reading it.
func (r *layerReader) explain(err error) error {
	return fmt.Errorf("image archive: layer %s: %w", r.lay.path, err)
}

func (r *layerReader) close() error {
	r.cancel()
	r.tar.Close()
	return r.layerSource.close()
}

// layerSource is what a layerReader reads ahead of: a layer of an archive without its compression. It is
// opened by the first reading, because the archive may be a stream that has not come so far.
type layerSource struct {
	ctx  context.Context
	tree tree
	lay  *archivedLayer

	blob   *blob
	hash   hash.Hash     // of the bytes in the archive; nil where those are the tar, and hashed as such
	packed *ahead.Reader // reads the archive; nil where the layer is not packed
	z      io.ReadCloser
	plain  int64 // bytes read of a layer that is not packed
}

func (s *layerSource) Read(p []byte) (int, error) {
	if s.z == nil {
		if err := s.open(); err != nil {
			return 0, err
		}
	}
	n, err := s.z.Read(p)
	s.plain += int64(n)
	if err == io.EOF && s.packed != nil {
		// The digest is of all bytes, whatever the decompressor thought of the last of them.
		if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{s.packed}, make([]byte, 4096)); err != nil {
			return n, err
		}
	}
	return n, err
}

func (s *layerSource) open() error {
	b, err := s.lay.open(s.ctx, s.tree)
	if err != nil {
		return err
	}
	s.blob = b
	kind, err := s.kind()
	if err != nil {
		return err
	}
	if kind != plain || s.lay.algorithm() != digest.SHA256 {
		s.hash = s.lay.algorithm().Hash()
	}
	r := b.reader(s.ctx)
	switch {
	case kind != plain:
		s.packed = ahead.New(r, s.hash, nil)
		r = s.packed
	case s.hash != nil:
		r = io.TeeReader(r, s.hash)
	}
	z, _, err := unpacked(r)
	if err != nil {
		return err
	}
	s.z = z
	return nil
}

// kind tells the compression, for which the first bytes are read twice.
func (s *layerSource) kind() (compression, error) {
	var head [6]byte
	n, err := io.ReadFull(s.blob.reader(s.ctx), head[:])
	if err != nil && err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
		return plain, err
	}
	return detect(head[:n])
}

// used tells how many bytes of the archive were made use of.
func (s *layerSource) used() int64 {
	if s.packed == nil {
		return s.plain
	}
	return s.packed.Taken()
}

func (s *layerSource) close() error {
	var err error
	if s.z != nil {
		err = s.z.Close()
	}
	if s.packed != nil {
		s.packed.Close()
	}
	if s.blob != nil {
		err = errors.Join(err, s.blob.Close())
	}
	return err
}
