package layer

import (
	"context"
	"fmt"

	"github.com/dmlayer/dmlayer/pool"
)

// Measure sets Used and Exclusive of nodes that List or Inspect returned, from the pool's metadata as of one moment. It reads
// the mappings of all nodes once, however many are asked for.
//
// A node that was removed or reset since stays unknown. So does what damaged metadata hides: the error then says what, and the
// others are set. The other errors are those of pool.Session.ReadMetadata.
func (s *Store) Measure(ctx context.Context, infos []Info) error {
	o, err := s.begin(ctx)
	if err != nil {
		return fmt.Errorf("measure nodes: %w", pool.KernelError(err))
	}
	defer o.Exit()
	usage, err := o.Usage(ctx)
	for k := range infos {
		u, ok := usage[infos[k].id]
		if !ok {
			continue
		}
		infos[k].Used = &u.Used
		if u.Exclusive >= 0 {
			infos[k].Exclusive = &u.Exclusive
		}
	}
	if err != nil {
		return fmt.Errorf("measure nodes: %w", err)
	}
	return nil
}
