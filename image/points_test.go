package image

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/fault"
)

// TestFailedAtEveryPoint has every crash point of this package fail, each time that it is reached: what is
// there then is whole, and doing it again comes to the same end.
func TestFailedAtEveryPoint(t *testing.T) {
	injected := errors.New("injected")
	data := tarOf(inOrder(gzipped, appImage)...)
	for _, point := range fault.Names() {
		if !strings.HasPrefix(point, "image.") {
			continue
		}
		for hit := 1; ; hit++ {
			s := newFakeStore(t)
			hits := 0
			fault.Set(func(name string) error {
				if name == point {
					if hits++; hits == hit {
						return injected
					}
				}
				return nil
			})
			o := LoadOptions{Input: bytes.NewReader(data), SpoolDir: t.TempDir()}
			_, err := load(t.Context(), s, "-", o)
			if err == nil {
				_, err = remove(t.Context(), s, RemoveOptions{}, "app:1")
			}
			fault.Set(nil)
			if hits < hit {
				if hit == 1 {
					t.Errorf("%s: never reached", point)
				}
				break
			}
			if !errors.Is(err, injected) {
				t.Errorf("%s, hit %d: %v", point, hit, err)
			}
			again(t, s, data)
		}
	}
}

// again loads what was interrupted: the layers that are there are not unpacked again.
func again(t *testing.T, s *fakeStore, data []byte) {
	t.Helper()
	left := s.names()
	s.fills = nil
	if _, err := load(t.Context(), s, "-", LoadOptions{Input: bytes.NewReader(data), SpoolDir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	checkApp(t, s)
	if slices.ContainsFunc(s.fills, func(name string) bool { return slices.Contains(left, name) }) || len(s.fills)+len(left) != 2 {
		t.Errorf("%q were there, %q were unpacked", left, s.fills)
	}
}
