package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
)

// hexes are chain ids of which two begin alike.
var hexes = []string{"0123456789ab" + strings.Repeat("0", 52), "0123456789ab" + strings.Repeat("1", 52), "fedcba987654" + strings.Repeat("2", 52)}

func testFinder(failing error) finder {
	nodes := []layer.Info{{Node: layer.Node{Name: "web1", Kind: layer.KindSnapshot}}, {Node: layer.Node{Name: "fedcba987654", Kind: layer.KindSnapshot}}}
	for _, h := range hexes {
		nodes = append(nodes, layer.Info{Node: layer.Node{Name: "sha256-" + h, Kind: layer.KindLayer}})
	}
	images := map[string]string{"app:latest": "top", "web1": "image-web1", "18": "x", "node:18": "node18", "ghcr.io/x/y:1": "y", "empty": ""}
	return finder{
		get: func(_ context.Context, name string) (layer.Node, error) {
			for _, n := range nodes {
				if n.Name == name {
					return n.Node, failing
				}
			}
			return layer.Node{}, errors.Join(fmt.Errorf("node %q: %w", name, errs.ErrNotFound), failing)
		},
		list: func(context.Context) ([]layer.Info, error) { return nodes, failing },
		image: func(_ context.Context, ref string) (string, error) {
			if top, ok := images[ref]; ok {
				return top, nil
			}
			return "", fmt.Errorf("image %q: %w", ref, errs.ErrNotFound)
		},
	}
}

func TestFindNode(t *testing.T) {
	for _, tc := range []struct {
		arg, want string
		class     error
		hint      string
	}{
		{"web1", "web1", nil, ""}, // the node before the image
		{"node:web1", "web1", nil, ""},
		{"image:web1", "image-web1", nil, ""},
		{"app:latest", "top", nil, ""},
		{"ghcr.io/x/y:1", "y", nil, ""},
		{"image:node:18", "node18", nil, ""},
		{"node:18", "", errs.ErrNotFound, "image:node:18"},
		{"fedcba987654", "fedcba987654", nil, ""}, // a whole name before the start of one
		{"fedcba9876542", "sha256-" + hexes[2], nil, ""},
		{"sha256-fedcba987654", "sha256-" + hexes[2], nil, ""},
		{hexes[2], "sha256-" + hexes[2], nil, ""},
		{"sha256-fedcba98765", "", errs.ErrNotFound, "dmlayer ls"}, // 11 digits
		{"sha256-0123456789ab", "", errs.ErrInvalid, ""},           // two
		{"sha256-0123456789ab1", "sha256-" + hexes[1], nil, ""},
		{"nosuch", "", errs.ErrNotFound, "dmlayer ls"},
		{"image:nosuch", "", errs.ErrNotFound, "dmlayer image ls"},
		{"nosuch:latest", "", errs.ErrNotFound, "dmlayer image ls"},
		{"empty", "", errs.ErrInvalid, "without --parent"},
	} {
		got, err := testFinder(nil).node(context.Background(), tc.arg)
		if got != tc.want || !errors.Is(err, tc.class) {
			t.Errorf("node(%q) = %q, %v, want %q, %v", tc.arg, got, err, tc.want, tc.class)
		}
		if hint := hintOf(orNone(err), nil); !strings.Contains(hint, tc.hint) {
			t.Errorf("node(%q): hint %q, want one with %q", tc.arg, hint, tc.hint)
		}
	}
	// Verbs that change a node take no image.
	if got, err := testFinder(nil).name(context.Background(), "app"); !errors.Is(err, errs.ErrNotFound) {
		t.Errorf("name(app) = %q, %v", got, err)
	}
	// What fails for another reason is no missing node.
	damaged := fmt.Errorf("x: %w", errs.ErrDamaged)
	f := testFinder(nil)
	f.get = func(context.Context, string) (layer.Node, error) { return layer.Node{}, damaged }
	if _, err := f.node(context.Background(), "web1"); !errors.Is(err, damaged) {
		t.Errorf("a damaged store: %v", err)
	}
}

func orNone(err error) error {
	if err == nil {
		return errors.New("none")
	}
	return err
}

func TestSameLineage(t *testing.T) {
	nodes := map[string]layer.Node{
		"base": {Name: "base", Kind: layer.KindLayer}, "top": {Name: "top", Kind: layer.KindLayer, Parent: "base"},
		"s": {Name: "s", Kind: layer.KindSnapshot, Parent: "top"}, "s2": {Name: "s2", Kind: layer.KindSnapshot, Parent: "s"},
		"other": {Name: "other", Kind: layer.KindLayer, Parent: "base"},
	}
	get := func(_ context.Context, name string) (layer.Node, error) {
		if n, ok := nodes[name]; ok {
			return n, nil
		}
		return layer.Node{}, errs.ErrNotFound
	}
	for _, tc := range []struct {
		lower, upper string
		want         bool
	}{
		{"top", "s", true}, {"base", "s", true}, {"top", "s2", true}, {"base", "top", true},
		{"s", "s2", false}, // s can have changed since
		{"other", "s", false}, {"s", "top", false}, {"top", "base", false}, {"", "base", false},
	} {
		if got, err := sameLineage(context.Background(), get, tc.lower, tc.upper); err != nil || got != tc.want {
			t.Errorf("sameLineage(%q, %q) = %v, %v", tc.lower, tc.upper, got, err)
		}
	}
	if _, err := sameLineage(context.Background(), get, "nosuch", "s"); !errors.Is(err, errs.ErrNotFound) {
		t.Errorf("a missing node: %v", err)
	}
}
