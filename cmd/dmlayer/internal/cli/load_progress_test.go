package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/test/terminal"
)

// layerNamed is the name of the n-th layer of the tests.
func layerNamed(n int) string { return fmt.Sprintf("sha256-%02d%s", n, strings.Repeat("0", 62)) }

// waitingFor are the events that a load of n layers begins with.
func waitingFor(n int) []image.Event {
	var all []image.Event
	for i := range n {
		all = append(all, image.Event{Stage: image.StageWaiting, Layer: layerNamed(i), Position: i, Count: n, Total: 2 << 20})
	}
	return all
}

func at(stage image.Stage, n int, done, total int64) image.Event {
	return image.Event{Stage: stage, Layer: layerNamed(n), Position: n, Count: 3, Done: done, Total: total}
}

// loadEvents are those of a load of three layers, of which one is there; their lines are loadLines.
var loadEvents = append(waitingFor(3),
	at(image.StageVerify, 0, 1<<20, 2<<20), at(image.StageExists, 0, 5<<20, 5<<20),
	at(image.StageUnpack, 1, 1<<20, 0),
	image.Event{Stage: image.StageUnpack, Layer: layerNamed(1), Warnings: []string{"socket \x1b[2J left out"}},
	at(image.StageDone, 1, 6<<20, 6<<20), at(image.StageUnpack, 2, 1<<20, 2<<20), at(image.StageDone, 2, 7<<20, 7<<20),
)

const loadLines = "sha256-000000000000: exists\nsha256-010000000000: warning: socket  [2J left out\n" +
	"sha256-010000000000: unpacked 6MiB\nsha256-020000000000: unpacked 7MiB\n"

func TestLoadProgressWithoutATerminal(t *testing.T) {
	for _, c := range []struct {
		quiet bool
		want  string
	}{{false, loadLines}, {true, ""}} {
		a, out, stderr := testApp(0, nil)
		a.flags.quiet = c.quiet
		p := a.newLoadProgress()
		for _, e := range loadEvents {
			p.show(e)
		}
		p.end()
		if stderr.String() != c.want || out.Len() > 0 {
			t.Errorf("quiet %v: %q, want %q", c.quiet, stderr, c.want)
		}
	}
}

// onTerminal has fn show what a load of the command line on a terminal shows, and wait for what is
// to be seen; it returns what is left and all bytes that came.
func onTerminal(t *testing.T, columns, rows int, a *app, fn func(p loadProgress, sees func(text ...string))) (screen, raw string) {
	t.Helper()
	term, err := terminal.Open(columns, rows)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Scale(time.Minute))
	defer cancel()
	a.err = term.File
	p := a.newLoadProgress()
	fn(p, func(text ...string) {
		t.Helper()
		err := term.Wait(ctx, func(s string) bool {
			for _, want := range text {
				if !strings.Contains(s, want) {
					return false
				}
			}
			return true
		})
		if err != nil {
			t.Errorf("%v\nwant %q", err, text)
		}
	})
	p.end()
	p.end()
	screen, raw, err = term.End()
	if err != nil {
		t.Error(err)
	}
	return screen, raw
}

func TestLoadProgressOnATerminal(t *testing.T) {
	for _, columns := range []int{200, 80, 70, 60, 40, 39, 25, 12, 3} {
		t.Run(fmt.Sprint(columns), func(t *testing.T) {
			a, _, _ := testApp(0, nil)
			screen, _ := onTerminal(t, columns, 24, a, func(p loadProgress, sees func(...string)) {
				for _, e := range waitingFor(3) {
					p.show(e)
				}
				p.show(at(image.StageUnpack, 0, 1<<20, 2<<20))
				p.show(at(image.StageVerify, 1, 1<<20, 0))
				switch {
				case columns >= 70:
					sees("sha256-000000000000 unpacking [=", "1MiB /      2MiB  50%\n", "sha256-010000000000 verifying [ ", "1MiB /         -\n",
						"sha256-020000000000 waiting   [ ", "0B /      2MiB   0%\n0 of 3 layers\n")
				case columns >= 40:
					sees("sha256-000000000000 [=", "]  50%\n", "sha256-020000000000 [ ", "]   0%\n")
				case columns >= 25:
					sees("sha256-000000000000", " 50%\n", "sha256-020000000000", "  0%\n")
				default:
					sees("sh")
				}
				for _, e := range loadEvents[3:] {
					p.show(e)
				}
			})
			if unwrapped(screen, columns) != unwrapped(loadLines, columns) {
				t.Errorf("left:\n%s\nwant:\n%s", screen, loadLines)
			}
		})
	}
}

// unwrapped is text without what depends on where a terminal of so many columns breaks lines.
func unwrapped(text string, columns int) string {
	if columns < 60 {
		return strings.Join(strings.Fields(strings.ReplaceAll(text, "\n", "")), "")
	}
	return text
}

// TestLoadProgressInterrupted leaves nothing of bars that were never finished, and shows none afterwards.
func TestLoadProgressInterrupted(t *testing.T) {
	a, _, _ := testApp(0, nil)
	screen, _ := onTerminal(t, 80, 24, a, func(p loadProgress, sees func(...string)) {
		for _, e := range loadEvents[:5] {
			p.show(e)
		}
		p.show(at(image.StageUnpack, 1, 1<<20, 2<<20))
		sees("sha256-000000000000: exists\n", "sha256-010000000000 unpacking", "sha256-020000000000 waiting")
		p.end()
		p.show(at(image.StageUnpack, 1, 2<<20, 2<<20))
		p.show(at(image.StageDone, 1, 6<<20, 6<<20))
		fmt.Fprintln(a.err, "dmlayer: interrupted")
	})
	if want := "sha256-000000000000: exists\nsha256-010000000000: unpacked 6MiB\ndmlayer: interrupted\n"; screen != want {
		t.Errorf("left:\n%s\nwant:\n%s", screen, want)
	}
}

// TestLoadProgressOnALowTerminal has more layers than the terminal has lines.
func TestLoadProgressOnALowTerminal(t *testing.T) {
	const layers = 30
	for _, rows := range []int{24, 5, 4, 3, 1} {
		t.Run(fmt.Sprint(rows), func(t *testing.T) {
			var want strings.Builder
			a, _, _ := testApp(0, nil)
			screen, _ := onTerminal(t, 80, rows, a, func(p loadProgress, sees func(...string)) {
				for _, e := range waitingFor(layers) {
					p.show(e)
				}
				for n := range layers {
					p.show(at(image.StageUnpack, n, 1<<20, 2<<20))
					if rows >= leastRows && n%5 == 0 {
						sees(shortName(layerNamed(n)) + " unpacking")
					}
					p.show(at(image.StageDone, n, 6<<20, 6<<20))
					fmt.Fprintf(&want, "%s: unpacked 6MiB\n", shortName(layerNamed(n)))
				}
			})
			if screen != want.String() {
				t.Errorf("left:\n%s\nwant:\n%s", screen, &want)
			}
		})
	}
}

// TestLoadProgressInLines is for terminals on which nothing can be placed, and beside a log.
func TestLoadProgressInLines(t *testing.T) {
	for name, c := range map[string]struct {
		columns int
		term    string
		level   string
		quiet   bool
		want    string
	}{
		"dumb":         {80, "dumb", "error", false, loadLines},
		"low":          {3, "xterm", "error", false, loadLines},
		"without size": {0, "xterm", "error", false, loadLines},
		"beside a log": {80, "xterm", "debug", false, loadLines},
		"quiet":        {80, "xterm", "error", true, ""},
		"quiet, a log": {80, "xterm", "info", true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			a, _, _ := testApp(0, map[string]string{"TERM": c.term})
			a.flags.logLevel, a.flags.quiet = c.level, c.quiet
			_, raw := onTerminal(t, c.columns, c.columns, a, func(p loadProgress, _ func(...string)) {
				for _, e := range loadEvents {
					p.show(e)
				}
			})
			if raw != strings.ReplaceAll(c.want, "\n", "\r\n") {
				t.Errorf("%q, want %q", raw, c.want)
			}
		})
	}
}

// TestLoadProgressWithoutItsTerminal has the terminal go away in the middle.
func TestLoadProgressWithoutItsTerminal(t *testing.T) {
	term, err := terminal.Open(80, 24)
	if err != nil {
		t.Fatal(err)
	}
	p := newBarProgress(term.File)
	p.show(loadEvents[0])
	if _, _, err := term.End(); err != nil {
		t.Error(err)
	}
	for _, e := range loadEvents {
		p.show(e)
	}
	p.end()
	var nothing bytes.Buffer
	lineProgress{&nothing}.show(loadEvents[0])
	if nothing.Len() > 0 {
		t.Errorf("a line for a layer that waits: %q", &nothing)
	}
}

func TestHintToGoOn(t *testing.T) {
	alive := t.Context()
	stopped, cancel := context.WithCancelCause(alive)
	cancel(interrupted{syscall.SIGINT})
	late, cancel := context.WithCancelCause(alive)
	cancel(errTimeout)
	const stayed = "2 layers stayed: load again to go on from there, or give the space back with dmlayer prune"
	for _, c := range []struct {
		name string
		ctx  context.Context
		err  error
		made int
		want string
	}{
		{"interrupted", stopped, context.Canceled, 2, stayed},
		{"interrupted, and so cut off", stopped, errs.ErrDamaged, 2, stayed},
		{"interrupted at once", stopped, context.Canceled, 0, ""},
		{"out of time", late, context.Canceled, 2, hintOf(context.Canceled, errTimeout) + "; " + stayed},
		{"full", alive, errs.WithHint(errs.ErrNoSpace, "make room"), 2, "make room; " + stayed},
		{"damaged", alive, errs.ErrDamaged, 2, ""},
		{"not supported", alive, errs.WithHint(errs.ErrUnsupported, "why"), 2, "why"},
		{"something else", alive, errs.ErrNotFound, 2, stayed},
	} {
		err := goOnHint(c.ctx, c.err, c.made)
		if hint := errs.Hint(err); hint != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %q (%v), want %q", c.name, hint, err, c.want)
		}
	}
}
