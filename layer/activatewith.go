package layer

import (
	"context"

	"github.com/dmlayer/dmlayer/metadata"
)

// ActivateWith is Activate, before which documents are changed in a durable transaction of the same operation, as in Prepare. Where that fails, with an error of documents
// for example, nothing is done; where the activation fails, it stays.
func (s *Store) ActivateWith(ctx context.Context, name string, co ClaimOptions, documents func(*DocTx) error) (Device, error) {
	var d Device
	err := checkClaim(co.Claim)
	if err == nil {
		err = s.withNode(ctx, s.begin, name, func(o *op, n metadata.Node) error {
			err := o.updateTogether(ctx, func(tx *metadata.Tx) error {
				if err := stillSame(tx, n); err != nil {
					return err
				}
				return documents(&DocTx{tx})
			})
			if err == nil {
				err = pointDocumentsDone.Hit()
			}
			if err == nil {
				d, err = o.activateFor(ctx, n, co)
			}
			return err
		})
	}
	return d, opError("activate", name, err)
}
