package metadata

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/dmlayer/dmlayer/internal/errs"
)

var (
	bucketMeta     = []byte("meta")     // keySchema, keyPool, keyWritable
	bucketNodes    = []byte("nodes")    // key -> Node
	bucketNames    = []byte("names")    // name -> key
	bucketIDs      = []byte("ids")      // thin id -> key, of nodes whose id is not their key any more
	bucketChildren = []byte("children") // parent key, key -> nothing
	bucketTombs    = []byte("tombs")    // thin id -> Tombstone
	bucketDocs     = []byte("docs")     // kind, NUL, key -> Document
	bucketDocRefs  = []byte("docrefs")  // node key, kind, NUL, key -> nothing

	allBuckets = [][]byte{bucketMeta, bucketNodes, bucketNames, bucketIDs, bucketChildren, bucketTombs, bucketDocs, bucketDocRefs}

	keySchema = []byte("schema")
	keyPool   = []byte("pool")
)

// Tx is a transaction. It must not be used after the function it was given to has returned.
type Tx struct {
	b    *bbolt.Tx
	pool *Pool // as it was read or written last
	last []func()
}

// Last has fn called when all that is in the transaction has been done, before it is committed: for who shares it with others, see UpdateTogether.
func (tx *Tx) Last(fn func()) { tx.last = append(tx.last, fn) }

func (tx *Tx) checkSchema() error {
	meta := tx.b.Bucket(bucketMeta)
	if meta == nil {
		return fmt.Errorf("no schema version: %w", errs.ErrDamaged)
	}
	v := meta.Get(keySchema)
	if len(v) != 4 {
		return fmt.Errorf("no schema version: %w", errs.ErrDamaged)
	}
	if err := knownSchema(int(binary.BigEndian.Uint32(v))); err != nil {
		return err
	}
	for _, name := range allBuckets {
		if tx.b.Bucket(name) == nil {
			return fmt.Errorf("bucket %s is missing: %w", name, errs.ErrDamaged)
		}
	}
	return nil
}

// knownSchema is ErrUnsupported for records that this program cannot read.
func knownSchema(version int) error {
	if version >= oldestSchema && version <= SchemaVersion {
		return nil
	}
	return errs.WithHint(fmt.Errorf("schema version %d, this program knows %d to %d: %w", version, oldestSchema, SchemaVersion, errs.ErrUnsupported),
		"use the version of dmlayer that wrote it, or a newer one")
}

// upgradeSchema marks the store as written by this program, which older ones then refuse. What they wrote means the same here: a field
// that they did not know is zero.
func (tx *Tx) upgradeSchema() error {
	meta, now := tx.b.Bucket(bucketMeta), u32(SchemaVersion)
	if bytes.Equal(meta.Get(keySchema), now) {
		return nil
	}
	return meta.Put(keySchema, now)
}

func u32(n ThinID) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }
func u64(n Key) []byte    { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

func decode(what string, v []byte, into any) error {
	if err := json.Unmarshal(v, into); err != nil {
		return fmt.Errorf("record of %s: %w: %w", what, err, errs.ErrDamaged)
	}
	return nil
}

func (tx *Tx) put(bucket, key []byte, record any) error {
	v, err := json.Marshal(record)
	if err != nil {
		return err
	}
	return tx.b.Bucket(bucket).Put(key, v)
}

// Version is the number of the transaction: what Store.Version returns after it, if it changes anything
// and is committed, and before and after it, if it only reads.
func (tx *Tx) Version() uint64 { return uint64(tx.b.ID()) }

// Pool returns the pool's record. What it refers to is shared with others who ask in the same transaction: who changes it replaces it.
func (tx *Tx) Pool() (Pool, error) {
	if tx.pool != nil {
		return *tx.pool, nil
	}
	var p Pool
	v := tx.b.Bucket(bucketMeta).Get(keyPool)
	if v == nil {
		return p, fmt.Errorf("record of the pool is missing: %w", errs.ErrDamaged)
	}
	if err := decode("the pool", v, &p); err != nil {
		return p, err
	}
	tx.pool = &p
	return p, nil
}

// PutPool replaces the pool's record.
func (tx *Tx) PutPool(p Pool) error {
	tx.pool = nil
	return tx.put(bucketMeta, keyPool, p)
}

// Node returns the node of that name, or ErrNotFound.
func (tx *Tx) Node(name string) (Node, error) {
	k := tx.b.Bucket(bucketNames).Get([]byte(name))
	if k == nil {
		return Node{}, fmt.Errorf("node %q: %w", name, errs.ErrNotFound)
	}
	return tx.node(k)
}

// NodeByKey returns the node with that key, or ErrNotFound.
func (tx *Tx) NodeByKey(key Key) (Node, error) { return tx.node(u64(key)) }

// NodeByID returns the node that owns a thin id, or ErrNotFound.
func (tx *Tx) NodeByID(id ThinID) (Node, error) {
	if k := tx.b.Bucket(bucketIDs).Get(u32(id)); k != nil {
		return tx.node(k)
	}
	n, err := tx.NodeByKey(Key(id))
	if err == nil && n.ID != id {
		err = errs.ErrNotFound
	}
	if err != nil {
		return Node{}, fmt.Errorf("node with thin id %d: %w", id, err)
	}
	return n, nil
}

func (tx *Tx) node(key []byte) (Node, error) {
	var n Node
	v := tx.b.Bucket(bucketNodes).Get(key)
	if v == nil {
		return n, fmt.Errorf("node with key %x: %w", key, errs.ErrNotFound)
	}
	return n, decode(fmt.Sprintf("node %x", key), v, &n)
}

// Nodes calls fn for every node, templates included, in the order of their making, until it
// returns an error, which Nodes returns.
func (tx *Tx) Nodes(fn func(Node) error) error {
	return tx.b.Bucket(bucketNodes).ForEach(func(k, v []byte) error {
		var n Node
		if err := decode(fmt.Sprintf("node %x", k), v, &n); err != nil {
			return err
		}
		return fn(n)
	})
}

// AddNode records a new node. Its key is its first thin id, which no other node will ever have. A taken name is ErrExists, a thin id
// that another record or a tombstone names is ErrDamaged, a parent that is gone is ErrNotFound.
func (tx *Tx) AddNode(n Node) (Node, error) {
	if err := tx.checkFreeName(n.Name); err != nil {
		return n, err
	}
	if err := tx.checkFreeID(n.ID); err != nil {
		return n, err
	}
	if n.Parent != 0 {
		if _, err := tx.NodeByKey(n.Parent); err != nil {
			return n, fmt.Errorf("parent of %q: %w", n.Name, err)
		}
	}
	n.Key = Key(n.ID)
	if _, err := tx.NodeByKey(n.Key); err == nil {
		return n, fmt.Errorf("thin id %d was used before: %w", n.ID, errs.ErrDamaged)
	}
	if err := tx.changeWritable(Node{}, n); err != nil {
		return n, err
	}
	if err := tx.index(n); err != nil {
		return n, err
	}
	return n, tx.put(bucketNodes, u64(n.Key), n)
}

// PutNode replaces the record with n's key: name, thin id, parent and everything else may differ.
func (tx *Tx) PutNode(n Node) error {
	old, err := tx.NodeByKey(n.Key)
	if err != nil {
		return err
	}
	if n.Name != old.Name {
		if err := tx.checkFreeName(n.Name); err != nil {
			return err
		}
	}
	if n.ID != old.ID {
		if err := tx.checkFreeID(n.ID); err != nil {
			return err
		}
	}
	if n.Parent != old.Parent && n.Parent != 0 {
		if _, err := tx.NodeByKey(n.Parent); err != nil {
			return fmt.Errorf("parent of %q: %w", n.Name, err)
		}
	}
	if err := tx.changeWritable(old, n); err != nil {
		return err
	}
	if err := tx.unindex(old); err != nil {
		return err
	}
	if err := tx.index(n); err != nil {
		return err
	}
	return tx.put(bucketNodes, u64(n.Key), n)
}

// DeleteNode forgets a node. Children and documents that name it are the caller's to check.
func (tx *Tx) DeleteNode(key Key) error {
	n, err := tx.NodeByKey(key)
	if err != nil {
		return err
	}
	if err := tx.changeWritable(n, Node{}); err != nil {
		return err
	}
	if err := tx.unindex(n); err != nil {
		return err
	}
	return tx.b.Bucket(bucketNodes).Delete(u64(key))
}

func (tx *Tx) index(n Node) error {
	if err := tx.b.Bucket(bucketNames).Put([]byte(n.Name), u64(n.Key)); err != nil {
		return err
	}
	if Key(n.ID) != n.Key {
		if err := tx.b.Bucket(bucketIDs).Put(u32(n.ID), u64(n.Key)); err != nil {
			return err
		}
	}
	if n.Parent == 0 {
		return nil
	}
	return tx.b.Bucket(bucketChildren).Put(append(u64(n.Parent), u64(n.Key)...), []byte{})
}

func (tx *Tx) unindex(n Node) error {
	if err := tx.b.Bucket(bucketNames).Delete([]byte(n.Name)); err != nil {
		return err
	}
	if err := tx.b.Bucket(bucketIDs).Delete(u32(n.ID)); err != nil {
		return err
	}
	return tx.b.Bucket(bucketChildren).Delete(append(u64(n.Parent), u64(n.Key)...))
}

func (tx *Tx) checkFreeName(name string) error {
	other, err := tx.Node(name)
	if err == nil {
		return fmt.Errorf("%s %q: %w", other.Kind, name, errs.ErrExists)
	}
	if tx.b.Bucket(bucketNames).Get([]byte(name)) != nil {
		return fmt.Errorf("node %q: %w: %w", name, err, errs.ErrDamaged)
	}
	return nil
}

func (tx *Tx) checkFreeID(id ThinID) error {
	if n, err := tx.NodeByID(id); err == nil {
		return fmt.Errorf("thin id %d belongs to %q: %w", id, n.Name, errs.ErrDamaged)
	}
	if tx.Tombstone(id) {
		return fmt.Errorf("thin id %d is being deleted: %w", id, errs.ErrDamaged)
	}
	return nil
}

// Children returns the nodes whose parent is key, in the order of their making.
func (tx *Tx) Children(key Key) ([]Node, error) {
	var nodes []Node
	prefix := u64(key)
	c := tx.b.Bucket(bucketChildren).Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		n, err := tx.node(k[len(prefix):])
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

// Named tells whether a record or a tombstone names the thin id.
func (tx *Tx) Named(id ThinID) bool {
	if tx.Tombstone(id) {
		return true
	}
	_, err := tx.NodeByID(id)
	return !errors.Is(err, errs.ErrNotFound)
}

// PutTombstone records that a thin device is being deleted.
func (tx *Tx) PutTombstone(t Tombstone) error { return tx.put(bucketTombs, u32(t.ID), t) }

// Tombstone tells whether the thin id is being deleted.
func (tx *Tx) Tombstone(id ThinID) bool { return tx.b.Bucket(bucketTombs).Get(u32(id)) != nil }

// DropTombstone forgets a tombstone; one that is not there is no error.
func (tx *Tx) DropTombstone(id ThinID) error { return tx.b.Bucket(bucketTombs).Delete(u32(id)) }

// HasTombstones tells whether there is any, at the same cost with any number.
func (tx *Tx) HasTombstones() bool {
	k, _ := tx.b.Bucket(bucketTombs).Cursor().First()
	return k != nil
}

// Tombstones returns all tombstones by thin id.
func (tx *Tx) Tombstones() ([]Tombstone, error) {
	var ts []Tombstone
	err := tx.b.Bucket(bucketTombs).ForEach(func(k, v []byte) error {
		var t Tombstone
		if err := decode(fmt.Sprintf("tombstone %x", k), v, &t); err != nil {
			return err
		}
		ts = append(ts, t)
		return nil
	})
	return ts, err
}
