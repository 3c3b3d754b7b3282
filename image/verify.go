package image

import (
	"context"
	"fmt"
	"hash"
	"io"
	"runtime"
	"sync"

	"github.com/opencontainers/go-digest"
)

// verify compares the digests of all layers of the archive with its bytes, before anything is made of
// them. It fills in what the archive does not spell: digest and size of the packed layers.
func (l *loader) verify(ctx context.Context) error {
	jobs := l.checks()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan *check)
	var wg sync.WaitGroup
	for range min(len(jobs), runtime.GOMAXPROCS(0), 4) {
		wg.Go(func() {
			for c := range next {
				if err := c.run(ctx, l.tree, l.report); err != nil {
					cancel(err)
				}
			}
		})
	}
	for _, c := range jobs {
		if ctx.Err() != nil {
			break
		}
		next <- c
	}
	close(next)
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, c := range jobs {
		for _, lay := range c.layers {
			lay.blob, lay.size = c.blob, c.size
		}
	}
	return nil
}

// check is a file of the archive and what images claim about it.
type check struct {
	path   string
	blob   digest.Digest // claimed, or found out by run
	size   int64         // claimed (-1: not), or found out by run
	diffID digest.Digest
	layers []*archivedLayer // that claim this
}

// checks returns each claim about each file once, in the order of the archive.
func (l *loader) checks() []*check {
	type claim struct {
		path         string
		blob, diffID digest.Digest
		size         int64
	}
	seen := map[claim]*check{}
	var all []*check
	for _, a := range l.images {
		for i := range a.layers {
			lay := &a.layers[i]
			k := claim{lay.path, lay.blob, lay.diffID, lay.size}
			if seen[k] == nil {
				seen[k] = &check{path: lay.path, blob: lay.blob, size: lay.size, diffID: lay.diffID}
				all = append(all, seen[k])
			}
			seen[k].layers = append(seen[k].layers, lay)
		}
	}
	return all
}

func (c *check) run(ctx context.Context, t tree, report *reporter) error {
	b, err := t.open(c.path)
	if err != nil {
		return err
	}
	defer b.Close()
	if c.size >= 0 && b.size != c.size {
		return damaged("image archive: layer %s has %d bytes, its manifest says %d", c.path, b.size, c.size)
	}
	c.size = b.size
	if err := c.compare(report.reader(StageVerify, c.path, b.size, b.reader(ctx))); err != nil {
		return fmt.Errorf("image archive: layer %s: %w", c.path, err)
	}
	return nil
}

// compare reads the layer and compares its digests. A packed layer whose packed digest is spelled is not
// unpacked here: its bytes are what the manifest means, and the diff id is compared while it is applied.
func (c *check) compare(r io.Reader) error {
	spelled := c.blob != ""
	algorithm := digest.SHA256
	if spelled {
		algorithm = c.blob.Algorithm()
	}
	packed := algorithm.Hash()
	z, kind, err := unpacked(io.TeeReader(r, packed))
	if err != nil {
		return err
	}
	defer z.Close()
	var diff hash.Hash
	switch {
	case kind == plain && algorithm == digest.SHA256:
		_, err = io.CopyBuffer(io.Discard, struct{ io.Reader }{z}, make([]byte, spoolChunk))
		diff = packed // the same bytes
	case kind == plain || !spelled:
		diff = digest.SHA256.Hash()
		_, err = io.CopyBuffer(diff, struct{ io.Reader }{z}, make([]byte, spoolChunk))
	}
	if err != nil {
		return err
	}
	// Of a packed layer, what the decompressor left or did not look at.
	if err := drain(r, packed); err != nil {
		return err
	}
	got := digest.NewDigest(algorithm, packed)
	if spelled && got != c.blob {
		return damaged("has the digest %s", got)
	}
	c.blob = got
	if diff != nil && digest.NewDigest(digest.SHA256, diff) != c.diffID {
		return damaged("has the diff id %s, the config says %s", digest.NewDigest(digest.SHA256, diff), c.diffID)
	}
	return nil
}

// drain hashes the rest of r.
func drain(r io.Reader, h hash.Hash) error {
	_, err := io.CopyBuffer(h, struct{ io.Reader }{r}, make([]byte, spoolChunk))
	return err
}

// measure returns the size of a layer's tar, and compares its diff id.
func (l *loader) measure(ctx context.Context, lay *archivedLayer) (int64, error) {
	b, err := l.tree.open(lay.path)
	if err != nil {
		return 0, err
	}
	defer b.Close()
	z, _, err := unpacked(b.reader(ctx))
	if err != nil {
		return 0, fmt.Errorf("image archive: layer %s: %w", lay.path, err)
	}
	defer z.Close()
	m := newMeter(z)
	if _, err := io.CopyBuffer(io.Discard, m, make([]byte, spoolChunk)); err != nil {
		return 0, fmt.Errorf("image archive: layer %s: %w", lay.path, err)
	}
	return m.size, m.check(lay)
}

// meter counts and hashes what is read through it.
type meter struct {
	r    io.Reader
	hash hash.Hash
	size int64
}

func newMeter(r io.Reader) *meter { return &meter{r: r, hash: digest.SHA256.Hash()} }

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.hash.Write(p[:n])
	m.size += int64(n)
	return n, err
}

// check compares the diff id of all that was read.
func (m *meter) check(lay *archivedLayer) error {
	if got := digest.NewDigest(digest.SHA256, m.hash); got != lay.diffID {
		return damaged("image archive: layer %s: has the diff id %s, the config says %s", lay.path, got, lay.diffID)
	}
	return nil
}
