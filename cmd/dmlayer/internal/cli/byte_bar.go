package cli

import (
	"io"
	"os"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// byteBar is a progress bar of one thing, in bytes, on a terminal; on anything else it shows nothing. It appears
// with the first figures, and leaves nothing.
type byteBar struct {
	terminal *os.File // nil: shows nothing
	name     string

	calls sync.Mutex
	bars  *mpb.Progress
	bar   *mpb.Bar
	ended bool
}

func newByteBar(w io.Writer, name string) *byteBar {
	b := &byteBar{name: name}
	if terminalRows(w) >= leastRows {
		b.terminal = w.(*os.File)
	}
	return b
}

// show may be called from any goroutine.
func (b *byteBar) show(done, total int64) {
	b.calls.Lock()
	defer b.calls.Unlock()
	if b.terminal == nil || b.ended {
		return
	}
	if b.bar == nil {
		b.bars = mpb.New(mpb.WithOutput(b.terminal), mpb.WithRefreshRate(redraw))
		amount := decor.Any(func(s decor.Statistics) string { return " " + humanSize(s.Current) + " / " + humanSize(s.Total) })
		b.bar = b.bars.New(0, barStyle, mpb.PrependDecorators(decor.Name(b.name+" ")), mpb.AppendDecorators(amount))
	}
	b.bar.SetTotal(total, false)
	b.bar.SetCurrent(done)
}

func (b *byteBar) end() {
	b.calls.Lock()
	defer b.calls.Unlock()
	if b.bar != nil && !b.ended {
		b.bar.Abort(true)
		b.bars.Wait()
	}
	b.ended = true
}
