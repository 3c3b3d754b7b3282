package layer

import (
	"context"
	"errors"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// Who waits for a node is sent away while somebody edits it, and as soon as somebody does, but not by one who is about to end, nor of another node.
func TestEdits(t *testing.T) {
	var e edits
	cause := func(ctx context.Context) error { return context.Cause(ctx) }
	before, stopBefore := e.wait(t.Context(), "n")
	other, stopOther := e.wait(t.Context(), "other")
	gone, stopGone := e.wait(t.Context(), "n")
	stopGone()
	editing, cancel := context.WithCancel(t.Context())
	end := e.begin(editing, "n")
	during, stopDuring := e.wait(t.Context(), "n")
	for what, ctx := range map[string]context.Context{"before": before, "during": during} {
		if err := cause(ctx); !errors.Is(err, errEdited) || errs.Class(err) != errs.ErrBusy || errs.Hint(err) == "" {
			t.Errorf("who came %s: %v", what, err)
		}
	}
	if err := errors.Join(cause(other)); err != nil {
		t.Errorf("another node's: %v", err)
	}
	if err := cause(gone); errors.Is(err, errEdited) {
		t.Errorf("who had given up: %v", err)
	}
	cancel()
	ending, stopEnding := e.wait(t.Context(), "n")
	if err := cause(ending); err != nil {
		t.Errorf("who came at its end: %v", err)
	}
	end()
	after, stopAfter := e.wait(t.Context(), "n")
	if err := cause(after); err != nil {
		t.Errorf("who came after it: %v", err)
	}
	for _, stop := range []func(){stopBefore, stopOther, stopDuring, stopEnding, stopAfter} {
		stop()
	}
	if len(e.running)+len(e.waiting) > 0 {
		t.Errorf("left: %v, %v", e.running, e.waiting)
	}
}
