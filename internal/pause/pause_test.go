package pause_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dmlayer/dmlayer/internal/pause"
)

var errEnough = errors.New("enough")

func TestFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			pause, end, took time.Duration // end is when the context ends, 0 for never
			want             error
		}{
			{time.Hour, 0, time.Hour, nil},
			{time.Hour, time.Minute, time.Minute, errEnough},
			{time.Minute, time.Hour, time.Minute, nil},
			{time.Hour, -1, 0, errEnough},
			{0, 0, 0, nil},
			{-1, 0, 0, nil},
			{0, -1, 0, errEnough},
		} {
			ctx, cancel := context.WithCancelCause(t.Context())
			switch {
			case c.end < 0:
				cancel(errEnough)
			case c.end > 0:
				time.AfterFunc(c.end, func() { cancel(errEnough) })
			}
			begin := time.Now()
			if err := pause.For(ctx, c.pause); !errors.Is(err, c.want) || time.Since(begin) != c.took {
				t.Errorf("%+v: %v after %v", c, err, time.Since(begin))
			}
			cancel(nil)
		}
	})
}
