package pool

import (
	"errors"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta/metagen"
)

// A device whose mappings are damaged is told of for itself, and keeps nobody from hearing of the others.
func TestOwnOfDamaged(t *testing.T) {
	p := metagen.New(metagen.Options{MetadataBlocks: 1024, DataBlocks: 4096, Seed: 7})
	devices := map[string]Descent{"gone": {Of: 9}}
	for id := uint64(1); id <= 3; id++ {
		p.Thin(id)
		p.Write(id, 0, 10*id)
		devices[string(rune('0'+id))] = Descent{Of: metadata.ThinID(id)}
	}
	im := p.Image()
	roots := im.Find(func(i metagen.Info) bool { return i.Tree == "mappings" })
	if len(roots) != 3 {
		t.Fatalf("%d blocks of mappings", len(roots))
	}
	clear(im.Block(roots[1]))
	m, err := thinmeta.Open(im, thinmeta.Options{})
	if err != nil {
		t.Fatal(err)
	}
	own, err := ownIn(t.Context(), m, devices, 1)
	if err != nil || len(own) != 3 {
		t.Fatalf("%v, %v", own, err)
	}
	damaged := 0
	for key, o := range own {
		if errors.Is(o.Err, errs.ErrDamaged) {
			damaged++
		} else if want := 10 * int64(key[0]-'0'); o.Err != nil || o.Bytes != want {
			t.Errorf("%s: %+v, want %d", key, o, want)
		}
	}
	if damaged != 1 {
		t.Errorf("%d are damaged: %v", damaged, own)
	}
}
