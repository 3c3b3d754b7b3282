package torture_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/dmlayer/dmlayer/layer"
)

// torn is the number of a raw disk of which nobody knows what it holds: its owner was writing.
const torn = 1

// node is what there must be of a node.
type node struct {
	Kind    layer.Kind
	Parent  string
	Size    int64
	Label   string            // the value of the label "l"
	Files   map[string]uint64 // what each holds
	Side    uint64            // what the side file holds
	Raw     uint64            // what the raw disk holds; then it is foreign
	Mounted bool
}

// same compares. Where anyUse is set, it may be mounted or not.
func (n node) same(o node, anyUse bool) bool {
	if n.Raw == torn || o.Raw == torn {
		n.Raw, o.Raw = torn, torn
	}
	return n.Kind == o.Kind && n.Parent == o.Parent && n.Size == o.Size && n.Label == o.Label &&
		maps.Equal(n.Files, o.Files) && n.Side == o.Side && n.Raw == o.Raw && (anyUse || n.Mounted == o.Mounted)
}

func (n node) String() string {
	text := fmt.Sprintf("%s of %q, %d MiB", n.Kind, n.Parent, n.Size>>20)
	for _, name := range slices.Sorted(maps.Keys(n.Files)) {
		text += fmt.Sprintf(" %s=%x", name, n.Files[name])
	}
	return text + fmt.Sprintf(" label %q side %x raw %x mounted %v", n.Label, n.Side, n.Raw, n.Mounted)
}

// state is what there must be of an actor's nodes and images. It is never changed: with makes another.
type state struct {
	Nodes map[string]node
	Refs  map[string]int // of images: which of the actor's archives
}

func emptyState() state { return state{map[string]node{}, map[string]int{}} }

// with returns the state after a change.
func (s state) with(change func(state)) state {
	next := state{maps.Clone(s.Nodes), maps.Clone(s.Refs)}
	change(next)
	return next
}

func (s state) put(name string, n node) state { return s.with(func(s state) { s.Nodes[name] = n }) }

// withFile returns the node with a file changed.
func (n node) withFile(name string, v uint64) node {
	n.Files = maps.Clone(n.Files)
	if n.Files == nil {
		n.Files = map[string]uint64{}
	}
	n.Files[name] = v
	return n
}

func (s state) children(name string) (names []string) {
	for _, child := range slices.Sorted(maps.Keys(s.Nodes)) {
		if s.Nodes[child].Parent == name {
			names = append(names, child)
		}
	}
	return names
}

// rename gives a node another name, which its children know it by.
func (s state) rename(old, name string) {
	n := s.Nodes[old]
	delete(s.Nodes, old)
	s.Nodes[name] = n
	for _, child := range s.children(old) {
		c := s.Nodes[child]
		c.Parent = name
		s.Nodes[child] = c
	}
}

// descends tells whether a node stands on another.
func (s state) descends(name, on string) bool {
	for at := s.Nodes[name].Parent; at != ""; at = s.Nodes[at].Parent {
		if at == on {
			return true
		}
	}
	return false
}

// unmounted is the state after a reboot.
func (s state) unmounted() state {
	return s.with(func(s state) {
		for name, n := range s.Nodes {
			n.Mounted = false
			s.Nodes[name] = n
		}
	})
}

// differences says in what what there is differs from the state.
func (s state) differences(have state, anyUse bool) error {
	var all []error
	for _, name := range slices.Sorted(maps.Keys(union(s.Nodes, have.Nodes))) {
		want, wanted := s.Nodes[name]
		n, there := have.Nodes[name]
		switch {
		case !there:
			all = append(all, fmt.Errorf("%s is missing: %v", name, want))
		case !wanted:
			all = append(all, fmt.Errorf("%s should not be there: %v", name, n))
		case !n.same(want, anyUse):
			all = append(all, fmt.Errorf("%s is  %v\n  must be %v", name, n, want))
		}
	}
	if !maps.Equal(s.Refs, have.Refs) {
		all = append(all, fmt.Errorf("images are %v, must be %v", have.Refs, s.Refs))
	}
	return errors.Join(all...)
}

func union[K comparable, V any](a, b map[K]V) map[K]V {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

// between tells whether each node and each image is either as before or as after an operation.
func between(before, after, have state) bool {
	for name := range union(union(before.Nodes, after.Nodes), have.Nodes) {
		n, there := have.Nodes[name]
		if !either(n, there, before.Nodes, name) && !either(n, there, after.Nodes, name) {
			return false
		}
	}
	for ref := range union(union(before.Refs, after.Refs), have.Refs) {
		n, there := have.Refs[ref]
		a, inA := before.Refs[ref]
		b, inB := after.Refs[ref]
		if (there != inA || n != a) && (there != inB || n != b) {
			return false
		}
	}
	return true
}

func either(n node, there bool, in map[string]node, name string) bool {
	want, wanted := in[name]
	return there == wanted && (!there || n.same(want, true))
}

// owned returns the part of a state that belongs to an actor.
func (s state) owned(a *cast) state {
	part := emptyState()
	for name, n := range s.Nodes {
		if a.owns(name) {
			part.Nodes[name] = n
		}
	}
	for ref, n := range s.Refs {
		if strings.HasPrefix(ref, a.id) {
			part.Refs[ref] = n
		}
	}
	return part
}
