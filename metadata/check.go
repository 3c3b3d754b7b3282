package metadata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// What can be wrong with a store.
const (
	ProblemPages    = "pages"    // the file itself; nothing else is looked at then
	ProblemRecord   = "record"   // a record that cannot be read or makes no sense
	ProblemIndex    = "index"    // an index that does not agree with the records
	ProblemParent   = "parent"   // a node without its parent, or that descends from itself
	ProblemDocument = "document" // a document that names nodes that are not there
)

// Problem is one thing that is wrong with a store.
type Problem struct {
	Kind   string
	Object string // what has it, for people: `layer "base"`
	Text   string
}

// Check reads the whole store and returns what is wrong with it. The error is that of reading, or ErrNotFound; of a store that
// cannot be read as one it is ErrDamaged.
func (s *Store) Check(ctx context.Context) ([]Problem, error) {
	pages, err := s.checkFile(ctx)
	if err != nil || len(pages) > 0 {
		return pages, err
	}
	var c storeCheck
	err = s.View(ctx, func(tx *Tx) error {
		c = storeCheck{tx: tx, nodes: map[Key]Node{}, ids: map[ThinID]string{}, names: map[string]Key{}}
		c.run()
		return nil
	})
	return c.problems, err
}

func (s *Store) checkFile(ctx context.Context) ([]Problem, error) {
	unlock, err := s.locker.LockStore(ctx, true)
	if err != nil {
		return nil, fmt.Errorf("lock record store %s: %w", s.path, err)
	}
	defer unlock()
	f, err := os.Open(s.path)
	if errors.Is(err, os.ErrNotExist) {
		err = errs.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("open record store %s: %w", s.path, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	header, _, err := newestHeader(f)
	if err != nil {
		return nil, fmt.Errorf("check record store: %w", failing(err))
	}
	texts, err := checkPages(header, f, st.Size())
	var problems []Problem
	for _, t := range texts {
		problems = append(problems, Problem{ProblemPages, s.path, t})
	}
	return problems, failing(err)
}

// storeCheck compares the records of one transaction with each other.
type storeCheck struct {
	tx       *Tx
	nodes    map[Key]Node
	ids      map[ThinID]string // what has each
	names    map[string]Key
	unread   bool // not all nodes could be read
	problems []Problem
}

func (c *storeCheck) add(kind, object, format string, args ...any) {
	if len(c.problems) < maxProblems {
		c.problems = append(c.problems, Problem{kind, object, fmt.Sprintf(format, args...)})
	}
}

func (c *storeCheck) run() {
	c.readPool()
	c.readNodes()
	c.readTombstones()
	if c.unread { // what leads to a node that cannot be read is as it should be
		return
	}
	c.compareNames()
	c.compareIDs()
	c.compareChildren()
	c.compareDocuments()
	c.compareWritable()
	for _, key := range slices.Sorted(maps.Keys(c.nodes)) {
		if n := c.nodes[key]; n.Parent != 0 {
			c.checkAncestors(n)
		}
	}
}

func (n Node) describe() string { return fmt.Sprintf("%s %q", n.Kind, n.Name) }

func (c *storeCheck) readPool() {
	const object = "the pool"
	p, err := c.tx.Pool()
	if err != nil {
		c.add(ProblemRecord, object, "%v", err)
		return
	}
	if p.BlockSize <= 0 || p.BaseSize <= 0 || p.LowID > p.HighID || p.HighID > maxThinID+1 {
		c.add(ProblemRecord, object, "sizes or thin ids make no sense: blocks of %d, base size %d, ids %d to %d", p.BlockSize, p.BaseSize, p.LowID, p.HighID)
	}
}

func (c *storeCheck) readNodes() {
	_ = c.tx.b.Bucket(bucketNodes).ForEach(func(k, v []byte) error {
		var n Node
		object := fmt.Sprintf("node with key %x", k)
		if err := decode(object, v, &n); err != nil {
			c.add(ProblemRecord, object, "%v", err)
			c.unread = true
			return nil
		}
		object = n.describe()
		switch {
		case !bytes.Equal(k, u64(n.Key)) || n.Key == 0:
			c.add(ProblemRecord, object, "it is kept under the key %x and says %d", k, n.Key)
			c.unread = true
			return nil
		case n.Name == "" || n.Size <= 0 || n.ID == 0 || n.ID > maxThinID:
			c.add(ProblemRecord, object, "size %d, thin id %d", n.Size, n.ID)
		}
		if other, taken := c.ids[n.ID]; taken {
			c.add(ProblemRecord, object, "its thin id %d is also that of %s", n.ID, other)
		}
		if other, taken := c.names[n.Name]; taken {
			c.add(ProblemRecord, object, "the nodes %d and %d have this name", other, n.Key)
		}
		c.nodes[n.Key], c.ids[n.ID], c.names[n.Name] = n, object, n.Key
		return nil
	})
}

func (c *storeCheck) readTombstones() {
	_ = c.tx.b.Bucket(bucketTombs).ForEach(func(k, v []byte) error {
		var t Tombstone
		object := fmt.Sprintf("tombstone %x", k)
		if err := decode(object, v, &t); err != nil {
			c.add(ProblemRecord, object, "%v", err)
			return nil
		}
		if other, taken := c.ids[t.ID]; taken {
			c.add(ProblemRecord, other, "its thin id %d is being deleted as that of %q", t.ID, t.Name)
		}
		return nil
	})
}

// compareIndex tells of entries that an index should have and has not, or the other way round.
func (c *storeCheck) compareIndex(bucket []byte, want map[string]string) {
	_ = c.tx.b.Bucket(bucket).ForEach(func(k, v []byte) error {
		value, ok := want[string(k)]
		if !ok || value != string(v) {
			c.add(ProblemIndex, "index "+string(bucket), "entry %q leads to %x, which is wrong", k, v)
		}
		delete(want, string(k))
		return nil
	})
	for _, k := range slices.Sorted(maps.Keys(want)) {
		c.add(ProblemIndex, "index "+string(bucket), "entry %q is missing", k)
	}
}

func (c *storeCheck) compareNames() {
	want := map[string]string{}
	for name, key := range c.names {
		want[name] = string(u64(key))
	}
	c.compareIndex(bucketNames, want)
}

func (c *storeCheck) compareIDs() {
	want := map[string]string{}
	for _, n := range c.nodes {
		if Key(n.ID) != n.Key {
			want[string(u32(n.ID))] = string(u64(n.Key))
		}
	}
	c.compareIndex(bucketIDs, want)
}

func (c *storeCheck) compareChildren() {
	want := map[string]string{}
	for _, n := range c.nodes {
		if n.Parent != 0 {
			want[string(append(u64(n.Parent), u64(n.Key)...))] = ""
		}
	}
	c.compareIndex(bucketChildren, want)
}

func (c *storeCheck) compareWritable() {
	kept, err := c.tx.Writable()
	var sum int64
	for _, n := range c.nodes {
		sum += n.writable()
	}
	if err == nil && kept != sum {
		c.add(ProblemIndex, "sum of what can be written", "it is kept as %d, and the nodes have %d", kept, sum)
	}
}

func (c *storeCheck) compareDocuments() {
	refs := map[string]string{}
	_ = c.tx.b.Bucket(bucketDocs).ForEach(func(k, v []byte) error {
		var d Document
		object := string(bytes.ReplaceAll(k, []byte{0}, []byte{' '}))
		if err := decode(object, v, &d); err != nil {
			c.add(ProblemRecord, object, "%v", err)
			return nil
		}
		if !bytes.Equal(k, docKey(d.Kind, d.Key)) {
			c.add(ProblemRecord, object, "it says that it is %s %q", d.Kind, d.Key)
		}
		for _, n := range d.Nodes {
			if _, there := c.nodes[n]; !there {
				c.add(ProblemDocument, object, "it holds node %d, which is not there", n)
			}
			refs[string(append(u64(n), k...))] = ""
		}
		return nil
	})
	c.compareIndex(bucketDocRefs, refs)
}

// checkAncestors follows a node's parents, each at most once.
func (c *storeCheck) checkAncestors(n Node) {
	parent, there := c.nodes[n.Parent]
	if !there {
		c.add(ProblemParent, n.describe(), "its parent %d is not there", n.Parent)
		return
	}
	seen := map[Key]bool{n.Key: true}
	for at := parent; ; at = c.nodes[at.Parent] {
		if seen[at.Key] {
			c.add(ProblemParent, n.describe(), "it descends from itself by way of %q", at.Name)
			return
		}
		seen[at.Key] = true
		if _, more := c.nodes[at.Parent]; at.Parent == 0 || !more {
			return
		}
	}
}
