package layer

import (
	"context"

	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
)

// Admission: what makes a node, or makes one larger, is refused when the pool runs low. It is looked at twice. When an operation
// begins, so that nothing is done in vain, with the settings that this process has seen last; and in the transaction of the record,
// with the settings of that moment and with all other nodes in sight. Both go by the status of the pool that the operation
// has asked for anyway.

// admit refuses what needs new blocks at the beginning of an operation.
func (o *op) admit(ctx context.Context) error {
	known := o.s.space.Load()
	if known != nil && o.s.pool.Admit(*known, o.Status) == nil {
		return nil
	}
	// The settings may have been changed since.
	var space pool.Space
	err := o.view(ctx, func(tx *metadata.Tx) (err error) {
		space, err = pool.Settings(tx)
		return err
	})
	if err != nil {
		return err
	}
	o.s.space.Store(&space)
	return o.s.pool.Admit(space, o.Status)
}

// admitWritable refuses what could come to take so many bytes more, where there is a ceiling, before anything is made.
func (o *op) admitWritable(ctx context.Context, more int64) error {
	if known := o.s.space.Load(); known == nil || known.Overcommit == 0 {
		return nil
	}
	return o.view(ctx, func(tx *metadata.Tx) error { return o.admitRecord(tx, more) })
}

// admitNext is admit for the next of several nodes of one operation, after the snapshot that made the one before.
func (o *op) admitNext(ctx context.Context) error {
	o.Status = o.after
	return o.admit(ctx)
}

// admitRecord is admit in the transaction that makes it true. more is by how many bytes what can be written grows.
func (o *op) admitRecord(tx *metadata.Tx, more int64) error {
	space, err := pool.Settings(tx)
	if err != nil {
		return err
	}
	if err := o.s.pool.Admit(space, o.Status); err != nil {
		return err
	}
	if space.Overcommit == 0 || more <= 0 {
		return nil
	}
	sum, err := tx.Writable()
	if err != nil {
		return err
	}
	return o.s.pool.AdmitWritable(space, o.Status, sum+more)
}

// canWrite is what of a node's size its user may come to fill.
func canWrite(n metadata.Node) int64 {
	if n.Kind == metadata.KindSnapshot || n.Kind == metadata.KindVolume {
		return n.Size
	}
	return 0
}
