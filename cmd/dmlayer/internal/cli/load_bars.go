package cli

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/dmlayer/dmlayer/image"
)

// barProgress draws a bar for each layer that is not there yet, as many as the terminal has room for, and a
// line that counts the layers. A layer that is there, and a warning, becomes a line above them, and in the
// end only those lines are left.
//
// For mpb all of that is one bar of several lines: a bar that it drops is drawn once more, and several of them beside
// new ones overflow the terminal, on which then nothing can be taken back.
type barProgress struct {
	terminal *os.File
	bars     *mpb.Progress
	bar      *mpb.Bar

	calls sync.Mutex // one at a time
	ended bool

	drawing sync.Mutex    // what mpb draws meanwhile
	layers  []image.Event // the last one of each layer that is not there yet, in their order
	there   int
	count   int
}

// redraw is how often the terminal changes.
const redraw = 100 * time.Millisecond

// leastRows is how many lines a terminal must have for bars: one each for a bar, the count, what is printed above
// them, and the cursor.
const leastRows = 4

func newBarProgress(terminal *os.File) *barProgress {
	p := &barProgress{terminal: terminal, bars: mpb.New(mpb.WithOutput(terminal), mpb.WithRefreshRate(redraw))}
	counted := decor.Any(func(decor.Statistics) string { return p.counted() })
	p.bar = p.bars.New(0, mpb.NopStyle(), mpb.PrependDecorators(counted), mpb.BarExtender(mpb.BarFillerFunc(p.draw), true))
	return p
}

func (p *barProgress) show(e image.Event) {
	p.calls.Lock()
	defer p.calls.Unlock()
	// The terminal is all there is to complain to.
	switch text := lastingLines(e); {
	case text == "":
	case p.ended:
		fmt.Fprint(p.terminal, text)
	default:
		_, _ = p.bars.Write([]byte(text))
	}
	if len(e.Warnings) == 0 {
		p.update(e)
	}
}

func (p *barProgress) update(e image.Event) {
	p.drawing.Lock()
	defer p.drawing.Unlock()
	p.count = e.Count
	at := slices.IndexFunc(p.layers, func(known image.Event) bool { return known.Layer == e.Layer })
	there := e.Stage == image.StageDone || e.Stage == image.StageExists
	switch {
	case there && at >= 0:
		p.layers = slices.Delete(p.layers, at, at+1)
		p.there++
	case there:
	case at >= 0:
		p.layers[at] = e
	default:
		p.layers = append(p.layers, e)
	}
}

func (p *barProgress) end() {
	p.calls.Lock()
	defer p.calls.Unlock()
	if !p.ended {
		p.ended = true
		p.bar.Abort(true)
		p.bars.Wait()
	}
}

func (p *barProgress) counted() string {
	p.drawing.Lock()
	defer p.drawing.Unlock()
	if p.count == 0 {
		return "reading the archive"
	}
	return fmt.Sprintf("%d of %s", p.there, count(p.count, "layer"))
}

// draw writes a line for each layer that is not there yet and for which there is room, the last one first: mpb turns
// lines around that it puts above a bar.
func (p *barProgress) draw(w io.Writer, s decor.Statistics) error {
	room := max(terminalRows(p.terminal)-leastRows+1, 0)
	p.drawing.Lock()
	defer p.drawing.Unlock()
	for _, e := range slices.Backward(p.layers[:min(room, len(p.layers))]) {
		if _, err := io.WriteString(w, layerLine(e, s.AvailableWidth)+"\n"); err != nil {
			return err
		}
	}
	return nil
}

// layerLine tells of a layer in as many columns: its name, what is done with it, a bar, and how far it is.
func layerLine(e image.Event, columns int) string {
	name, percent, amount := shortName(e.Layer), "    ", humanSize(e.Done)
	switch {
	case e.Total > 0:
		percent = fmt.Sprintf("%3d%%", min(100*e.Done/e.Total, 100))
		amount = fmt.Sprintf("%9s / %9s", amount, humanSize(e.Total))
	default:
		amount = fmt.Sprintf("%9s / %9s", amount, "-")
	}
	switch bar := columns - len(name) - len(percent) - 2; {
	case columns >= 70:
		stage := fmt.Sprintf("%-9s", stageWord(e.Stage))
		return name + " " + stage + " " + drawnBar(e, bar-len(stage)-len(amount)-2) + " " + amount + " " + percent
	case bar >= 10:
		return name + " " + drawnBar(e, bar) + " " + percent
	case bar >= -1:
		return name + " " + percent
	}
	return name[:min(len(name), max(columns, 0))]
}

var barStyle = mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]")

func drawnBar(e image.Event, columns int) string {
	var b strings.Builder
	// A strings.Builder takes everything.
	_ = barStyle.Build().Fill(&b, decor.Statistics{AvailableWidth: columns, Total: e.Total, Current: min(e.Done, e.Total)})
	return b.String()
}

func stageWord(s image.Stage) string {
	switch s {
	case image.StageWaiting:
		return "waiting"
	case image.StageVerify:
		return "verifying"
	}
	return "unpacking"
}
