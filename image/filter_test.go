package image

import (
	"errors"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/layer"
)

func day(n int) time.Time { return time.Date(2026, 1, n, 0, 0, 0, 0, time.UTC) }

// shelf is a store with images of several ages and labels.
func shelf(t *testing.T) *fakeStore {
	s := newFakeStore(t)
	for _, name := range []string{"a", "b", "c", "d"} {
		s.node(name, layer.KindLayer, "")
	}
	recorded{refs: []string{"old:1", "example.com/team/old:1"}, layers: []string{"a"}, created: day(1), labels: map[string]string{"env": "prod", "x": ""}}.put(t, s)
	recorded{refs: []string{"new"}, layers: []string{"b"}, created: day(3), labels: map[string]string{"env": "dev"}}.put(t, s)
	recorded{layers: []string{"c"}, created: day(2)}.put(t, s)
	recorded{refs: []string{"timeless:2"}, layers: []string{"d"}}.put(t, s)
	return s
}

func TestSelect(t *testing.T) {
	s := shelf(t)
	yes, no, prod, empty := true, false, "prod", ""
	const all = "- example.com/team/old:1 new old:1 timeless:2"
	for _, c := range []struct {
		name   string
		filter Filter
		want   string
	}{
		{"nothing", Filter{}, all},
		{"dangling", Filter{Dangling: &yes}, "-"},
		{"not dangling", Filter{Dangling: &no}, "example.com/team/old:1 new old:1 timeless:2"},
		{"a name", Filter{References: []string{"old"}}, "old:1"},
		{"a name and a tag", Filter{References: []string{"old:1"}}, "old:1"},
		{"the tag that is not spelled", Filter{References: []string{"new:latest"}}, "new"},
		{"in full", Filter{References: []string{"docker.io/library/new:latest"}}, "new"},
		{"a star stops at a slash", Filter{References: []string{"*old*"}}, "old:1"},
		{"slashes", Filter{References: []string{"*/*/old:*"}}, "example.com/team/old:1"},
		{"one of two patterns", Filter{References: []string{"new", "time*:2"}}, "new timeless:2"},
		{"no such", Filter{References: []string{"hedgehog"}}, ""},
		{"a label", Filter{Labels: []Label{{Key: "env"}}}, "example.com/team/old:1 new old:1"},
		{"its value", Filter{Labels: []Label{{Key: "env", Value: &prod}}}, "example.com/team/old:1 old:1"},
		{"an empty value", Filter{Labels: []Label{{Key: "x", Value: &empty}}}, "example.com/team/old:1 old:1"},
		{"two labels", Filter{Labels: []Label{{Key: "env"}, {Key: "x"}}}, "example.com/team/old:1 old:1"},
		{"not a label", Filter{Labels: []Label{{Key: "env", Not: true}}}, "- timeless:2"},
		{"not a value", Filter{Labels: []Label{{Key: "env", Value: &prod, Not: true}}}, "- new timeless:2"},
		{"before", Filter{Before: []string{"new"}}, "- example.com/team/old:1 old:1"},
		{"since", Filter{Since: []string{"old:1"}}, "- new"},
		{"between", Filter{Since: []string{"old:1"}, Before: []string{"new"}}, "-"},
		{"two", Filter{Before: []string{"new", "old:1"}}, ""},
		{"until", Filter{Until: day(2)}, "example.com/team/old:1 old:1"},
		{"until and dangling", Filter{Until: day(3), Dangling: &yes}, "-"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := selected(t.Context(), s, c.filter)
			if err != nil || called(got) != c.want {
				t.Errorf("%q (%v), want %q", called(got), err, c.want)
			}
		})
	}
	for _, c := range []struct {
		filter Filter
		want   error
	}{
		{Filter{References: []string{"[a"}}, ErrInvalid},
		{Filter{Before: []string{"nothing"}}, ErrNotFound},
		{Filter{Since: []string{"nothing"}}, ErrNotFound},
		{Filter{Since: []string{"timeless:2"}}, ErrInvalid},
	} {
		if got, err := selected(t.Context(), s, c.filter); !errors.Is(err, c.want) || got != nil {
			t.Errorf("%+v: %v (%v), want %v", c.filter, got, err, c.want)
		}
	}
}
