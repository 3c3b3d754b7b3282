package image

import "sync"

// Stage is what Load is doing with a layer.
type Stage string

// The stages of a layer. Each layer of a load begins as waiting and ends as done or as existing, unless
// the load fails.
const (
	StageWaiting Stage = "waiting" // its turn comes; told once of every layer, in their order, before the first of them is unpacked
	StageVerify  Stage = "verify"  // it is there, and read once to find out how it came
	StageUnpack  Stage = "unpack"  // unpacking it into its node
	StageDone    Stage = "done"    // it is there and lasts; Done and Total are the size of its tar
	StageExists  Stage = "exists"  // there was nothing to do; Done and Total are the size of its tar
)

// Event is a step forward of Load.
type Event struct {
	Stage       Stage
	Layer       string   // the name of its node
	Position    int      // of the layer among those of the load, from 0
	Count       int      // of the load's layers; it can grow while a stream is read
	Done, Total int64    // bytes of the layer's file in the archive, which may be packed; Total is 0 while it is not known
	Warnings    []string // what the node's file system could not hold and was left out
}

// reportStep is how many bytes pass between two events of a layer.
const reportStep = 1 << 20

// reporter calls back, never twice at once.
type reporter struct {
	fn func(Event)

	mu        sync.Mutex
	positions map[string]int // of the layers told of, by name
}

func newReporter(fn func(Event)) *reporter { return &reporter{fn: fn, positions: map[string]int{}} }

// plan tells of the layers that a load is to make, those that it was not told of before.
func (r *reporter) plan(images []*archived) {
	if r.fn == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var waiting []Event
	for _, a := range images {
		for _, lay := range a.layers {
			if _, ok := r.positions[lay.name]; ok {
				continue
			}
			e := Event{Stage: StageWaiting, Layer: lay.name, Position: len(r.positions), Total: max(lay.size, 0)}
			r.positions[lay.name] = e.Position
			waiting = append(waiting, e)
		}
	}
	for _, e := range waiting {
		e.Count = len(r.positions)
		r.fn(e)
	}
}

func (r *reporter) event(e Event) {
	if r.fn == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e.Position, e.Count = r.positions[e.Layer], len(r.positions)
	r.fn(e)
}
