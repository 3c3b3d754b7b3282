package metadata

import "encoding/binary"

// keyWritable is where the sum of the sizes of all nodes that can be written to is kept, so that a ceiling for it costs the same with any
// number of nodes. A store that lacks it, as schema 1 does, gets it with the first change of a node.
var keyWritable = []byte("writable")

// writable is what a node may come to take of its own: all of its size, if it can be written to.
func (n Node) writable() int64 {
	if n.Kind == KindSnapshot || n.Kind == KindVolume {
		return n.Size
	}
	return 0
}

// Writable is the sum of the sizes of all snapshots and volumes, in bytes.
func (tx *Tx) Writable() (int64, error) {
	if v := tx.b.Bucket(bucketMeta).Get(keyWritable); len(v) == 8 {
		return int64(binary.BigEndian.Uint64(v)), nil
	}
	return tx.sumWritable()
}

func (tx *Tx) sumWritable() (sum int64, err error) {
	err = tx.Nodes(func(n Node) error {
		sum += n.writable()
		return nil
	})
	return sum, err
}

// changeWritable takes note that a node takes the place of another one; it is called before the record changes.
func (tx *Tx) changeWritable(old, n Node) error {
	delta := n.writable() - old.writable()
	if delta == 0 && tx.b.Bucket(bucketMeta).Get(keyWritable) != nil {
		return nil
	}
	sum, err := tx.Writable()
	if err != nil {
		return nil // it is kept once the damaged records are gone: they must not keep the others from being removed
	}
	return tx.putWritable(sum + delta)
}

func (tx *Tx) putWritable(sum int64) error {
	return tx.b.Bucket(bucketMeta).Put(keyWritable, binary.BigEndian.AppendUint64(nil, uint64(sum)))
}
