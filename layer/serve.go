package layer

import "github.com/dmlayer/dmlayer/pool"

// Pool returns the pool that the store is of, for a process that lives with it: what grows it and watches it. It is the
// store's, and closed with it.
func (s *Store) Pool() *pool.Pool { return s.pool }
