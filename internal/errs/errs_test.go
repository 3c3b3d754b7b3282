package errs_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
)

func TestClassAndHint(t *testing.T) {
	inner := errs.WithHint(fmt.Errorf("remove %q: %w", "x", errs.ErrBusy), "unmount it")
	outer := fmt.Errorf("do it: %w", inner)
	if errs.Class(outer) != errs.ErrBusy || errs.Hint(outer) != "unmount it" || !errors.Is(outer, errs.ErrBusy) {
		t.Errorf("%v: class %v, hint %q", outer, errs.Class(outer), errs.Hint(outer))
	}
	if got := errs.Hint(errs.WithHint(outer, "first this")); got != "first this" {
		t.Errorf("the outermost hint counts: %q", got)
	}
	if errs.Class(errors.New("plain")) != nil || errs.Hint(errors.New("plain")) != "" || errs.WithHint(nil, "x") != nil {
		t.Error("a plain error, or none")
	}
}
