package fault_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/dmlayer/dmlayer/internal/fault"
)

var point = fault.New("fault.test.point")

func TestPoint(t *testing.T) {
	if err := point.Hit(); err != nil {
		t.Errorf("nothing is armed: %v", err)
	}
	broken := errors.New("broken")
	var hit []string
	fault.Set(func(name string) error { hit = append(hit, name); return broken })
	t.Cleanup(func() { fault.Set(nil) })
	if err := point.Hit(); err != broken || !slices.Equal(hit, []string{"fault.test.point"}) {
		t.Errorf("%v, %v", err, hit)
	}
	fault.Set(nil)
	if err := point.Hit(); err != nil {
		t.Errorf("disarmed: %v", err)
	}
	if !slices.Contains(fault.Names(), point.Name()) {
		t.Errorf("names: %v", fault.Names())
	}
}

func TestNamesAreUnique(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a second point of the same name")
		}
	}()
	fault.New("fault.test.point")
}
