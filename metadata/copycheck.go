package metadata

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// maxThinID is the largest thin id that the kernel takes (MAX_DEV_ID, drivers/md/dm-thin.c).
const maxThinID = 1<<24 - 1

// maxKeyLength bounds names and keys, far above those of a store and below what bbolt takes.
const maxKeyLength = 16 << 10

// check tells whether the records fit together, as those of a store do: a copy may come from anywhere.
func (c *Copy) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf(format+": %w", append(args, errs.ErrDamaged)...)
	}
	if _, err := hex.DecodeString(c.Pool.UUID); err != nil || len(c.Pool.UUID) != 32 {
		return bad("the pool's UUID is %q", c.Pool.UUID)
	}
	if p := c.Pool; p.BlockSize <= 0 || p.BaseSize <= 0 || p.Backing.MetadataHeld < 0 || p.Backing.DataSize < 0 || p.LowID > p.HighID || p.HighID > maxThinID+1 {
		return bad("the pool's sizes make no sense")
	}
	ids, names, nodes := map[ThinID]bool{}, map[string]bool{}, map[Key]Node{}
	for _, n := range c.Nodes {
		if _, twice := nodes[n.Key]; twice || n.Key == 0 || n.Key > maxThinID {
			return bad("node %q has the key %d of another, or none", n.Name, n.Key)
		}
		if ids[n.ID] || n.ID == 0 || n.ID > maxThinID {
			return bad("node %q has the thin id %d of another, or none", n.Name, n.ID)
		}
		if names[n.Name] || n.Name == "" || len(n.Name) > maxKeyLength || n.Size <= 0 {
			return bad("node %q has the name of another, none, or no size", n.Name)
		}
		if n.Name == "." || n.Name == ".." || strings.ContainsAny(n.Name, "/\x00") { // it is part of paths
			return bad("node %d has the name %q", n.ID, n.Name)
		}
		nodes[n.Key], ids[n.ID], names[n.Name] = n, true, true
	}
	for _, t := range c.Tombstones {
		if ids[t.ID] || t.ID == 0 || t.ID > maxThinID {
			return bad("tombstone of thin id %d", t.ID)
		}
		ids[t.ID] = true
	}
	if n, ok := rootless(nodes); ok {
		return bad("node %q has no parent %d, or descends from itself", n.Name, n.Parent)
	}
	return c.checkDocuments(nodes)
}

// rootless returns a node whose ancestors do not end.
func rootless(nodes map[Key]Node) (Node, bool) {
	rooted := make(map[Key]bool, len(nodes))
	for _, n := range nodes {
		var chain []Key
		seen := map[Key]bool{}
		for at := n; !rooted[at.Key]; at = nodes[at.Parent] {
			if _, there := nodes[at.Key]; !there || seen[at.Key] {
				return n, true
			}
			seen[at.Key] = true
			chain = append(chain, at.Key)
			if at.Parent == 0 {
				break
			}
		}
		for _, k := range chain {
			rooted[k] = true
		}
	}
	return Node{}, false
}

func (c *Copy) checkDocuments(nodes map[Key]Node) error {
	seen := map[string]bool{}
	for _, d := range c.Documents {
		key := string(docKey(d.Kind, d.Key))
		if seen[key] || d.Kind == "" || d.Key == "" || len(key) > maxKeyLength || strings.Contains(d.Kind+d.Key, "\x00") {
			return fmt.Errorf("%s %q is there twice, or has no proper key: %w", d.Kind, d.Key, errs.ErrDamaged)
		}
		seen[key] = true
		for _, n := range d.Nodes {
			if _, there := nodes[n]; !there {
				return fmt.Errorf("%s %q holds node %d, which is not there: %w", d.Kind, d.Key, n, errs.ErrDamaged)
			}
		}
	}
	return nil
}
