package metadata

import "fmt"

// Reindex makes all indexes anew, and the sum of what can be written, of the records, which have all that is in them. Records that cannot be read are ErrDamaged,
// and nothing is changed.
func (tx *Tx) Reindex() error {
	for _, bucket := range [][]byte{bucketNames, bucketIDs, bucketChildren, bucketDocRefs} {
		if err := tx.b.DeleteBucket(bucket); err != nil {
			return fmt.Errorf("index %s: %w", bucket, err)
		}
		if _, err := tx.b.CreateBucket(bucket); err != nil {
			return fmt.Errorf("index %s: %w", bucket, err)
		}
	}
	if err := tx.Nodes(tx.index); err != nil {
		return err
	}
	err := tx.b.Bucket(bucketDocs).ForEach(func(k, v []byte) error {
		var d Document
		if err := decode(fmt.Sprintf("%q", k), v, &d); err != nil {
			return err
		}
		return tx.hold(d.Nodes, k)
	})
	if err != nil {
		return err
	}
	sum, err := tx.sumWritable()
	if err != nil {
		return err
	}
	return tx.putWritable(sum)
}
