package metadata

import (
	"fmt"

	"go.etcd.io/bbolt"
)

// versionStep is by how much the version of a restored store is above those of its copy and of the store that it replaces. Nobody
// who has read that store, or one that came after the copy, takes the new one for what he has read.
const versionStep = 1 << 20

// Restore makes the store at path of a copy that ReadCopy found good, in place of the one that is there, at once or not at all.
func Restore(path string, c *Copy) error {
	if err := c.check(); err != nil {
		return fmt.Errorf("restore record store %s: %w", path, err)
	}
	replaced, _ := versionAt(path) // which may be damaged, or not there
	return replace("restore", path, max(c.Version, replaced)+versionStep, c.fill)
}

func (c *Copy) fill(tx *Tx) error {
	if err := tx.PutPool(c.Pool); err != nil {
		return err
	}
	var writable int64
	for _, n := range c.Nodes {
		writable += n.writable()
		if err := tx.index(n); err != nil {
			return err
		}
		if err := tx.put(bucketNodes, u64(n.Key), n); err != nil {
			return err
		}
	}
	if err := tx.putWritable(writable); err != nil {
		return err
	}
	for _, t := range c.Tombstones {
		if err := tx.PutTombstone(t); err != nil {
			return err
		}
	}
	for _, d := range c.Documents {
		if err := tx.PutDocument(d); err != nil {
			return err
		}
	}
	return nil
}

// fillNew makes the buckets of a new store and has fn write into them.
func fillNew(btx *bbolt.Tx, fn func(*Tx) error) error {
	for _, name := range allBuckets {
		if _, err := btx.CreateBucket(name); err != nil {
			return err
		}
	}
	if err := btx.Bucket(bucketMeta).Put(keySchema, u32(SchemaVersion)); err != nil {
		return err
	}
	return fn(&Tx{b: btx})
}
