package layer_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// saidDamaged checks that an error, if there is one, says in words that the pool is damaged, and what to do.
func saidDamaged(t testing.TB, what string, err error) {
	t.Helper()
	if err == nil {
		return
	}
	gibberish := strings.Contains(err.Error(), "multibyte") || strings.Contains(err.Error(), "block device required")
	if !errors.Is(err, errs.ErrDamaged) || errors.Is(err, pool.ErrMispaired) || gibberish || !strings.Contains(errs.Hint(err), "pool check") {
		t.Errorf("%s: %v; hint %q", what, err, errs.Hint(err))
	}
}

// Wherever one block of the metadata is damaged, what is recorded can be read, from the pool or from the records, and each error says
// what it is of.
func TestReadableWhereMetadataIsDamaged(t *testing.T) {
	e, m := brokenPool(t)
	sb, err := thinmeta.ReadSuperblock(bytes.NewReader(m.Bytes))
	must(t, err)
	sound := bytes.Clone(m.Bytes)
	records, err := os.ReadFile(e.Store())
	must(t, err)
	ways := map[string]func(b []byte){
		"blank":       func(b []byte) { clear(b) },
		"flipped bit": func(b []byte) { b[200] ^= 1 },
	}
	for name, block := range map[string]uint64{
		"details":        sb.DetailsRoot,
		"devices":        sb.MappingRoot,
		"a node":         m.root(node(t, e, "small").ID),
		"data bitmaps":   sb.DataSpace.BitmapRoot,
		"data counts":    sb.DataSpace.RefCountRoot,
		"metadata index": sb.MetadataSpace.BitmapRoot,
	} {
		for way, damage := range ways {
			t.Run(name+" "+way, func(t *testing.T) {
				damage(m.Block(block))
				m.save()
				looked(t, e)
				saidDamaged(t, "stop", pool.Stop(pooltest.Context(t), e.Dirs, e.Name))
				must(t, pool.Stop(pooltest.Context(t), e.Dirs, e.Name))
				copy(m.Bytes, sound) // as they were, both: a start has changed them
				m.save()
				must(t, os.WriteFile(e.Store(), records, 0o600))
			})
		}
	}
}

// looked lists the nodes of a damaged pool, as the commands do that look, and mounts one.
func looked(t *testing.T, e *pooltest.Env) {
	t.Helper()
	ctx := pooltest.Context(t)
	s, err := layer.Open(ctx, e.Config())
	if err != nil {
		t.Logf("%v", err)
		saidDamaged(t, "open", err)
		s, err = layer.OpenRecords(ctx, e.Config())
	}
	must(t, err)
	defer func() { must(t, s.Close()) }()
	if nodes, err := s.List(ctx); err != nil || len(nodes) != 3 {
		t.Errorf("nodes %v, %v", nodes, err)
	}
	mounted, err := s.Mount(ctx, "small", "", layer.MountOptions{ReadOnly: true})
	saidDamaged(t, "mount", err)
	if err == nil {
		must(t, s.Unmount(ctx, mounted.Dir))
	}
}
