package test

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestEveryTrapHasATest fails where docs/kernel-traps.md leaves a trap out, names a test that is gone, or none.
func TestEveryTrapHasATest(t *testing.T) {
	text, err := os.ReadFile("../docs/kernel-traps.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range undeclared(string(text)) {
		t.Error(b)
	}
	const traps = 20
	for n := 1; n <= traps; n++ {
		_, row, found := strings.Cut(string(text), fmt.Sprintf("\n| %d |", n))
		row, _, _ = strings.Cut(row, "\n")
		if !found || !testRef.MatchString(row) {
			t.Errorf("trap %d has no test", n)
		}
	}
}
