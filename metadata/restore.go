package metadata

import (
	"fmt"

	"go.etcd.io/bbolt"
)

// Restore makes the store at path of a copy that ReadCopy found good, in place of the one that is there, at once or not at all.
func Restore(path string, c *Copy) error {
	if err := c.check(); err != nil {
		return fmt.Errorf("restore record store %s: %w", path, err)
	}
	return replace("restore", path, c.fill)
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
	return fn(&Tx{btx})
}
