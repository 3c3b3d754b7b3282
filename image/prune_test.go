package image

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
)

// goneOf lists what Prune has removed as a test spells it.
func goneOf(all []Removed) string {
	var names []string
	for _, r := range all {
		names = append(names, "["+strings.Join(r.Refs, " ")+"] "+strings.Join(r.Layers, "+"))
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func TestPrune(t *testing.T) {
	dev := "dev"
	for _, c := range []struct {
		name    string
		prepare func(s *fakeStore)
		options PruneOptions
		gone    string
		left    string // references
		layers  string
	}{
		{"dangling", nil, PruneOptions{}, "[] c", "example.com/team/old:1 new old:1 timeless:2", "a b d"},
		{"dry", nil, PruneOptions{DryRun: true}, "[] ", "- example.com/team/old:1 new old:1 timeless:2", "a b c d"},
		{"all", nil, PruneOptions{All: true}, "[] c, [example.com/team/old:1 old:1] a, [new] b, [timeless:2] d", "", ""},
		{"all, dry", nil, PruneOptions{All: true, DryRun: true}, "[] , [example.com/team/old:1 old:1] , [new] , [timeless:2] ",
			"- example.com/team/old:1 new old:1 timeless:2", "a b c d"},
		{"used by a snapshot", func(s *fakeStore) { s.node("web", layer.KindSnapshot, "b") }, PruneOptions{All: true},
			"[] c, [example.com/team/old:1 old:1] a, [timeless:2] d", "new", "b web"},
		{"used through a commit", func(s *fakeStore) {
			s.node("commit", layer.KindLayer, "b")
			s.node("web", layer.KindVolume, "commit")
		}, PruneOptions{All: true}, "[] c, [example.com/team/old:1 old:1] a, [timeless:2] d", "new", "b commit web"},
		{"with a commit that nobody uses", func(s *fakeStore) { s.node("commit", layer.KindLayer, "b") }, PruneOptions{All: true},
			"[] c, [example.com/team/old:1 old:1] a, [new] , [timeless:2] d", "", "b commit"},
		{"dangling and used", func(s *fakeStore) { s.node("web", layer.KindSnapshot, "c") }, PruneOptions{}, "",
			"- example.com/team/old:1 new old:1 timeless:2", "a b c d web"},
		{"dangling and mounted", func(s *fakeStore) { s.busy["c"] = true }, PruneOptions{}, "",
			"- example.com/team/old:1 new old:1 timeless:2", "a b c d"},
		{"until", nil, PruneOptions{All: true, Filter: Filter{Until: day(2)}}, "[example.com/team/old:1 old:1] a", "- new timeless:2", "b c d"},
		{"label", nil, PruneOptions{All: true, Filter: Filter{Labels: []Label{{Key: "env", Value: &dev}}}}, "[new] b",
			"- example.com/team/old:1 old:1 timeless:2", "a c d"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := shelf(t)
			if c.prepare != nil {
				c.prepare(s)
			}
			gone, err := prune(t.Context(), s, c.options)
			if err != nil || goneOf(gone) != c.gone {
				t.Errorf("removed %q (%v), want %q", goneOf(gone), err, c.gone)
			}
			left := called(must(list(t.Context(), s)))
			if names := strings.Join(s.names(), " "); left != c.left || names != c.layers {
				t.Errorf("left %q on %q, want %q on %q", left, names, c.left, c.layers)
			}
		})
	}
}

// TestPruneTagged has somebody tag an image after it was found to have no reference.
func TestPruneTagged(t *testing.T) {
	s := shelf(t)
	dangling := must(selected(t.Context(), s, Filter{}))[0]
	s.beforeUpdate = func() {
		s.beforeUpdate = nil
		if _, err := tag(t.Context(), s, dangling.ID, "saved:1"); err != nil {
			t.Error(err)
		}
	}
	if gone, err := prune(t.Context(), s, PruneOptions{}); err != nil || len(gone) != 0 {
		t.Errorf("removed %+v (%v)", gone, err)
	}
	if i, err := get(t.Context(), s, "saved:1"); err != nil || i.ID != dangling.ID {
		t.Errorf("saved:1 is %s (%v)", i.ID, err)
	}
}

func TestPruneDamaged(t *testing.T) {
	s := shelf(t)
	if _, err := prune(t.Context(), s, PruneOptions{Filter: Filter{Before: []string{"nothing"}}}); !errors.Is(err, ErrNotFound) {
		t.Errorf("a filter for an image that is not there: %v", err)
	}
}

// TestForcedRemoval removes an image with several references by its id.
func TestForcedRemoval(t *testing.T) {
	s := newFakeStore(t)
	loadInto(t, s, otherImage)
	if _, err := remove(t.Context(), s, RemoveOptions{}, otherImage.id()); !errors.Is(err, ErrBusy) {
		t.Errorf("without force: %v", err)
	}
	// A reference takes no other one along.
	loadInto(t, s, otherImage)
	gone, err := remove(t.Context(), s, RemoveOptions{Force: true}, "other")
	if err != nil || len(gone) != 1 || gone[0].Image || !slices.Equal(gone[0].Refs, []string{"other"}) {
		t.Errorf("by a reference: %+v (%v)", gone, err)
	}
	loadInto(t, s, otherImage)
	gone, err = remove(t.Context(), s, RemoveOptions{Force: true}, otherImage.id()[7:19])
	if err != nil || len(gone) != 1 || !gone[0].Image || len(gone[0].Refs) != 2 || len(gone[0].Layers) != 2 {
		t.Errorf("by an id: %+v (%v)", gone, err)
	}
	s.checkEmpty(t)
}

// TestStrays tells the layers that stay for another image from those that stay for a snapshot.
func TestStrays(t *testing.T) {
	s := newFakeStore(t)
	loadInto(t, s, appImage, otherImage)
	s.node("web", layer.KindSnapshot, appImage.layerName(1))
	gone := must(remove(t.Context(), s, RemoveOptions{}, "app:1"))
	want := []string{appImage.layerName(0), appImage.layerName(1)}
	if !slices.Equal(gone[0].Kept, want) || !slices.Equal(gone[0].Strays, want[1:]) {
		t.Errorf("kept %q, strays %q; want %q, %q", gone[0].Kept, gone[0].Strays, want, want[1:])
	}
	delete(s.layers, "web")
}
