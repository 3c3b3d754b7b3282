package image

import (
	"fmt"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
)

// drawn writes a tree as a test spells it: layer(size)[images]{children}.
func drawn(branches []*Branch) string {
	var all []string
	for _, b := range branches {
		size := "?"
		if b.Size != nil {
			size = fmt.Sprint(*b.Size)
		}
		s := b.Layer + "(" + size + ")"
		if b.Imageless {
			s += "!"
		}
		if len(b.Images) > 0 {
			s += "[" + called(b.Images) + "]"
		}
		if len(b.Children) > 0 {
			s += "{" + drawn(b.Children) + "}"
		}
		all = append(all, s)
	}
	return strings.Join(all, " ")
}

func TestLayers(t *testing.T) {
	s := newFakeStore(t)
	for _, l := range [][2]string{{"base", ""}, {"app", "base"}, {"other", "base"}, {"left", ""}, {"commit", "web"}} {
		s.node(l[0], layer.KindLayer, l[1])
	}
	s.node("web", layer.KindSnapshot, "app")
	s.layers["left"].node.Attrs = map[string]string{attrSize: "77"}
	recorded{refs: []string{"base"}, layers: []string{"base"}}.put(t, s)
	recorded{refs: []string{"app:1", "app:2"}, layers: []string{"base", "app"}}.put(t, s)
	recorded{layers: []string{"base", "other"}}.put(t, s)
	recorded{refs: []string{"bare"}}.put(t, s)
	const want = "base(100)[base]{app(101)[app:1 app:2]{commit(?)!} other(101)[-]} left(77)! (?)[bare]"
	if got, err := layers(t.Context(), s); err != nil || drawn(got) != want {
		t.Errorf("%s (%v)\nwant %s", drawn(got), err, want)
	}
	if got, err := layers(t.Context(), newFakeStore(t)); err != nil || len(got) != 0 {
		t.Errorf("nothing: %v (%v)", got, err)
	}
}
