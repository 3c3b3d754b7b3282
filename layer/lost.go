package layer

import (
	"fmt"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
)

// Loss is what a node has lost in a repair of the pool's metadata.
type Loss = metadata.Loss

// Err is ErrDamaged, with what to do, for a node that has lost blocks in a repair of the pool's metadata: nothing may be made of it.
func (n Node) Err() error { return lossError(n.Kind, n.Name, n.Lost) }

// whole is ErrDamaged for a node that has lost blocks. A template is none that anybody knows of: the next one takes its place.
func whole(n metadata.Node) error {
	if n.Kind == metadata.KindTemplate {
		return nil
	}
	return lossError(Kind(n.Kind), n.Name, n.Lost)
}

func lossError(kind Kind, name string, lost *Loss) error {
	if lost == nil {
		return nil
	}
	err := fmt.Errorf("%s %q has lost %s in a repair of the pool's metadata: %w", kind, name, lost, errs.ErrDamaged)
	hint := "dmlayer mount --read-only --trust " + name + " shows what is left; dmlayer mount --trust " + name +
		" checks the file system and takes it as it is from then on; dmlayer reset " + name + " begins anew"
	if kind == KindLayer {
		hint = "remove it, of an image with dmlayer image rm, and load or make it again; dmlayer mount --trust " + name + " shows what is left"
	}
	return errs.WithHint(err, hint)
}

// warnLost says that what is shown of a node is not all of it.
func (o *op) warnLost(n metadata.Node) {
	if n.Lost != nil {
		o.s.log.Warn("the node has lost blocks in a repair of the pool's metadata: they read as zeros, and files may be missing", "node", n.Name, "lost", n.Lost.String())
	}
}
