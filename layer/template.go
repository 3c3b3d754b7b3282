package layer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"time"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
)

var (
	pointTemplateMade   = fault.New("layer.template.made")
	pointTemplateRecord = fault.New("layer.template.recorded")
)

const (
	// A name that no user can give.
	templatePrefix = ".template-"

	// The smallest file systems that the mkfs programs make with our options.
	minSizeExt4 = 16 << 20
	minSizeXFS  = 300 << 20
)

// templateSize returns the size of the template that a node of the given size starts from: the base
// size if the node has at least that, else the largest power of two that fits, so that a pool has few
// templates; the node grows to its own size when it is first mounted.
func templateSize(r metadata.Pool, size int64) (int64, error) {
	if size == 0 || size >= r.BaseSize {
		return r.BaseSize, nil
	}
	least := int64(minSizeExt4)
	if r.FS == string(fsutil.XFS) {
		least = minSizeXFS
	}
	if size < least {
		err := fmt.Errorf("size %d is too small for %s: %w", size, r.FS, errs.ErrInvalid)
		return 0, errs.WithHint(err, fmt.Sprintf("%s needs %d MiB", r.FS, least>>20))
	}
	return max(int64(1)<<(bits.Len64(uint64(size))-1), least), nil
}

// templateName names the template of a size; what else it depends on is the same for all of a pool.
func templateName(r metadata.Pool, size int64) string {
	key := fmt.Sprintf("%s %d %v %s", r.FS, size, r.NoZero, strings.Join(r.MkfsOptions, "\x00"))
	sum := sha256.Sum256([]byte(key))
	return templatePrefix + hex.EncodeToString(sum[:8])
}

// beginTemplate begins an operation that makes a child of a template, which it makes where it is not
// there yet.
func (s *Store) beginTemplate(ctx context.Context, child string, size int64) (*op, metadata.Node, error) {
	r := s.pool.Record()
	tsize, err := templateSize(r, size)
	if err != nil {
		return nil, metadata.Node{}, err
	}
	name := templateName(r, tsize)
	for {
		o, err := s.beginCreate(ctx)
		if err != nil {
			return nil, metadata.Node{}, err
		}
		t, err := o.currentParent(ctx, child, name, (*metadata.Tx).Node)
		if err == nil {
			return o, t, nil
		}
		o.Exit() // the chain lock comes before the operation's
		if !errors.Is(err, errs.ErrNotFound) {
			return nil, t, err
		}
		if err := s.makeTemplate(ctx, name, tsize); err != nil {
			return nil, t, fmt.Errorf("make template: %w", err)
		}
	}
}

// makeTemplate makes a thin device with an empty file system, unless somebody else has.
func (s *Store) makeTemplate(ctx context.Context, name string, size int64) error {
	unlock, err := s.pool.LockChain(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	o, err := s.beginCreate(ctx)
	if err != nil {
		return err
	}
	defer o.Exit()
	err = o.view(ctx, func(tx *metadata.Tx) error { return nameFree(tx, name) })
	if errors.Is(err, errs.ErrExists) {
		return nil
	}
	if err != nil {
		return err
	}
	id, err := o.newThin(ctx, func(id metadata.ThinID) error { return o.Thin.CreateThin(thinpool.ID(id)) })
	if err != nil {
		return err
	}
	r := s.pool.Record()
	n := metadata.Node{ID: id, Name: name, Kind: metadata.KindTemplate, Size: size, FS: r.FS, Created: time.Now().UTC()}
	if err := o.fillTemplate(ctx, n, r); err != nil {
		return undoing(ctx, err, o.undo(id))
	}
	err = o.update(ctx, func(tx *metadata.Tx) error {
		n, err = tx.AddNode(n)
		return err
	})
	if err != nil {
		return undoing(ctx, err, o.undo(id))
	}
	o.remember(n)
	return pointTemplateRecord.Hit()
}

func (o *op) fillTemplate(ctx context.Context, n metadata.Node, r metadata.Pool) (err error) {
	d, err := o.openDevice(ctx, n, false)
	if err != nil {
		return err
	}
	err = func() error {
		mkfs := fsutil.MkfsOptions{Type: fsutil.Type(r.FS), Zeroed: !r.NoZero, Extra: r.MkfsOptions}
		if err := fsutil.Mkfs(ctx, d.path, mkfs); err != nil {
			return err
		}
		err := withMount(ctx, d, n, false, func(m *fsutil.Detached) error { return fsutil.RemoveLostFound(m.Path()) })
		if err != nil {
			return err
		}
		if err := pointTemplateMade.Hit(); err != nil {
			return err
		}
		return fsutil.Flush(d.File)
	}()
	return errors.Join(err, d.Close(), o.putAway(n.ID))
}
