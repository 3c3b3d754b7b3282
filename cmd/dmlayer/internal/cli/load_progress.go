package cli

import (
	"fmt"
	"io"
	"os"

	"github.com/dmlayer/dmlayer/image"
)

// loadProgress tells on standard error how far a load is.
type loadProgress interface {
	show(e image.Event) // never twice at once
	end()               // at any time, any number of times; nothing is shown afterwards
}

// newLoadProgress returns bars on a terminal, lines elsewhere, and nothing with --quiet.
func (a *app) newLoadProgress() loadProgress {
	if a.flags.quiet {
		return noProgress{}
	}
	// A log between the bars would tear them.
	logs := a.flags.logLevel == "debug" || a.flags.logLevel == "info"
	if logs || a.env("TERM") == "dumb" || terminalRows(a.err) < leastRows {
		return lineProgress{a.err}
	}
	return newBarProgress(a.err.(*os.File))
}

type noProgress struct{}

func (noProgress) show(image.Event) {}
func (noProgress) end()             {}

// lineProgress prints what stays: a line for each layer that is there, and for each warning.
type lineProgress struct{ out io.Writer }

func (p lineProgress) show(e image.Event) { fmt.Fprint(p.out, lastingLines(e)) }
func (lineProgress) end()                 {}

// lastingLines is what is to be read of an event also afterwards.
func lastingLines(e image.Event) string {
	name, text := shortName(e.Layer), ""
	for _, w := range e.Warnings {
		text += fmt.Sprintf("%s: warning: %s\n", name, printable(w))
	}
	switch {
	case text != "":
	case e.Stage == image.StageExists:
		text = name + ": exists\n"
	case e.Stage == image.StageDone:
		text = fmt.Sprintf("%s: unpacked %s\n", name, humanSize(e.Total))
	}
	return text
}
