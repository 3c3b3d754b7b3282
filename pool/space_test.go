package pool

import (
	"errors"
	"os"
	"path/filepath"
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

func TestCheckHook(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, hook := range []string{dir, file, filepath.Join(dir, "nope"), filepath.Join(file, "x")} {
		if err := checkHook(hook); !errors.Is(err, errs.ErrInvalid) {
			t.Errorf("%s: %v", hook, err)
		}
	}
	if err := os.Chmod(file, 0o755); err != nil {
		t.Fatal(err)
	}
	strange := filepath.Join(dir, "\xff")
	if err := os.Link(file, strange); err != nil {
		t.Fatal(err)
	}
	if err := checkHook(strange); !errors.Is(err, errs.ErrInvalid) {
		t.Errorf("a name that a record cannot hold: %v", err)
	}
	for _, hook := range []string{"", file} {
		if err := checkHook(hook); err != nil {
			t.Errorf("%s: %v", hook, err)
		}
	}
}
