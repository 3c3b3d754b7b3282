package pool

import (
	"errors"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
)

func TestCompleteSpace(t *testing.T) {
	for _, c := range []struct{ given, want Space }{
		{Space{}, Space{GrowAt: 80, GrowBy: 20, MinFree: 10}},
		{Space{GrowAt: -1, GrowBy: -1, GrowLimit: -1, MinFree: -1, Overcommit: -1}, Space{}},
		{Space{GrowAt: 50, GrowBy: 100, GrowLimit: 1 << 40, MinFree: 3, Overcommit: 150, Hook: "/bin/true"},
			Space{GrowAt: 50, GrowBy: 100, GrowLimit: 1 << 40, MinFree: 3, Overcommit: 150, Hook: "/bin/true"}},
	} {
		got := completeSpace(c.given)
		if got != c.want {
			t.Errorf("%+v: %+v, want %+v", c.given, got, c.want)
		}
		if err := checkSpace(got, 1<<30); err != nil {
			t.Errorf("%+v: %v", got, err)
		}
	}
	for what, s := range map[string]Space{
		"grow at 100":          {GrowAt: 100, GrowBy: 20},
		"grow by nothing":      {GrowAt: 80},
		"limit below the size": {GrowLimit: 1<<30 - 1},
		"limit too large":      {GrowLimit: 1 << 62},
		"min free 100":         {MinFree: 100},
		"relative hook":        {Hook: "hook.sh"},
	} {
		if err := checkSpace(s, 1<<30); !errors.Is(err, errs.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
