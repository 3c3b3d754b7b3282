package image

import (
	"io"
	"sync"
)

// Stage is what Load is doing.
type Stage string

// The stages of a layer. Verifying names the layer's file in the archive, the others its node.
const (
	StageVerify Stage = "verify" // reading it to compare digests
	StageUnpack Stage = "unpack" // unpacking it into its node
	StageDone   Stage = "done"   // it is there and lasts; Total is the size of its tar
	StageExists Stage = "exists" // nothing to do
)

// Event is a step forward of Load.
type Event struct {
	Stage       Stage
	Layer       string
	Done, Total int64    // bytes of the layer's file in the archive, which may be packed
	Warnings    []string // what the node's file system could not hold and was left out
}

// reportStep is how many bytes pass between two events of a layer.
const reportStep = 1 << 20

// reporter calls back, never twice at once.
type reporter struct {
	mu sync.Mutex
	fn func(Event)
}

func newReporter(fn func(Event)) *reporter { return &reporter{fn: fn} }

func (r *reporter) event(e Event) {
	if r.fn == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fn(e)
}

// reader reports what is read through it.
func (r *reporter) reader(s Stage, layer string, total int64, src io.Reader) io.Reader {
	if r.fn == nil {
		return src
	}
	return &reportingReader{src, r, Event{Stage: s, Layer: layer, Total: total}, -reportStep}
}

type reportingReader struct {
	r      io.Reader
	to     *reporter
	e      Event
	before int64 // Done of the last event
}

func (r *reportingReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.e.Done += int64(n)
	if r.e.Done-r.before >= reportStep || r.e.Done == r.e.Total && r.before != r.e.Total {
		r.before = r.e.Done
		r.to.event(r.e)
	}
	return n, err
}
