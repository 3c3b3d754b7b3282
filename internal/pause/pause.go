// Package pause waits for some time, for no longer than somebody wants it.
package pause

import (
	"context"
	"time"
)

// For returns after a time, or with the cause of ctx's end as soon as that has come. A time that is not above 0 is over at once.
func For(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return context.Cause(ctx)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
