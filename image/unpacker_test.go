package image

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
)

// TestUnpackerClose closes after a reading that was stopped.
func TestUnpackerClose(t *testing.T) {
	for _, kind := range []compression{gzipped, zstded} {
		data := pack(kind, noisyTar("a", 100_000))
		z, _, err := unpacked(io.MultiReader(bytes.NewReader(data[:len(data)/2]), failingReader{}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, z); err == nil {
			t.Error("read to the end")
		}
		if err := z.Close(); err != nil {
			t.Errorf("%s: close: %v", kind, err)
		}
	}
}

// oneByOne makes one layer at a time, as where somebody else makes the next.
type oneByOne struct{ *fakeStore }

func (s oneByOne) CreateLayers(ctx context.Context, layers []newLayer) ([]layer.Node, error) {
	return s.fakeStore.CreateLayers(ctx, layers[:1])
}

// TestAheadInVain stops reading layers, anywhere in them, whose turn does not come.
func TestAheadInVain(t *testing.T) {
	i := testImage{refs: []string{"many"}}
	for n := range 8 {
		i.layers = append(i.layers, noisyTar(string(rune('a'+n)), (n+1)<<18))
	}
	for _, kind := range []compression{plain, gzipped, zstded} {
		if _, err := load(t.Context(), oneByOne{newFakeStore(t)}, write(t, tarOf(dockerFiles(kind, i)...)), LoadOptions{}); err != nil {
			t.Errorf("%q: %v", kind, err)
		}
	}
}
