package cli

import (
	"errors"
	"strings"
	"testing"
	"unicode"

	"github.com/dmlayer/dmlayer/image"
)

// TestTerminalIsSafe: names from archives reach no terminal as they are.
func TestTerminalIsSafe(t *testing.T) {
	evil := "\x1b[2J\u009b31m\x7f\r\x00\u202e\xff"
	if got := message(errors.New("layer "+evil+"\nnext"), nil); strings.ContainsFunc(got, unicode.IsControl) || !strings.Contains(got, "[2J") {
		t.Errorf("error %q", got)
	}
	for _, form := range []func(any) ([]byte, error){marshal, marshalIndent} {
		b, err := form(map[string]string{"a": evil + "ü"})
		text := strings.TrimSpace(strings.ReplaceAll(string(b), "\n", ""))
		if err != nil || strings.ContainsFunc(text, unicode.IsControl) || !strings.Contains(text, "ü") {
			t.Errorf("JSON %q (%v)", text, err)
		}
	}
	if got := lastingLines(warned(evil)); strings.ContainsFunc(strings.TrimSuffix(got, "\n"), unicode.IsControl) {
		t.Errorf("warning %q", got)
	}
}

func warned(text string) image.Event {
	return image.Event{Stage: image.StageUnpack, Layer: "sha256-" + strings.Repeat("0", 64), Warnings: []string{text}}
}
