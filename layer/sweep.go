package layer

import "context"

// Sweep finishes what dead processes and removals have left, as Open does, for a process that lives long.
func (s *Store) Sweep(ctx context.Context) error {
	o, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer o.Exit()
	return o.recover(ctx)
}
