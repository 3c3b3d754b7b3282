package volume

import (
	"context"
	"time"
)

// LookAgain has Run look again at what is kept after this time, until the caller says that the test is over.
func LookAgain(after time.Duration) (restore func()) {
	before := again
	again = after
	return func() { again = before }
}

// DismissDead looks once, as Run does, and returns how many volumes are kept.
func (d *Driver) DismissDead(ctx context.Context) (int, error) {
	kept := keepers{}
	err := d.dismissDead(ctx, kept)
	return len(kept), err
}
