package layer

import (
	"context"

	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
)

var pointCommitYielded = fault.New("layer.commit.yielded")

// document changes the documents that go with a commit.
func (co CommitOptions) document(tx *metadata.Tx) error {
	if co.Documents == nil {
		return nil
	}
	return co.Documents(&DocTx{tx})
}

// commitClaimed is commitMove for a node whose user gives up his claim with it. Where it fails, he has it again.
func (o *op) commitClaimed(ctx context.Context, src metadata.Node, name string, co CommitOptions) (Node, error) {
	mine, err := o.dropClaim(src, co.Claim)
	if err == nil {
		err = pointCommitYielded.Hit()
	}
	if err == nil {
		var n Node
		if n, err = o.commitMove(ctx, src, name, co); err == nil {
			return n, nil
		}
	}
	if !mine {
		return Node{}, err
	}
	return Node{}, undoing(ctx, err, func(ctx context.Context) error {
		if again, aerr := o.read(ctx, src.Name); aerr != nil || again.Kind == metadata.KindLayer {
			return nil // the record says that it was done
		}
		_, err := o.activateFor(ctx, src, ClaimOptions{Claim: co.Claim})
		return err
	})
}
