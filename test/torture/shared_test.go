package torture_test

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/layer"
)

// event is an operation on a node that is everybody's, of which only the results can be judged, all together.
type event struct {
	Node       string
	Do         string // create, remove, label, reset, look
	Value      uint64 // of the label: written, or seen
	Result     string // ok, exists, notfound, busy
	Begin, End int64  // nanoseconds
}

func (e event) String() string {
	return fmt.Sprintf("%d-%d %s %s %d: %s", e.Begin, e.End, e.Do, e.Node, e.Value, e.Result)
}

const sharedPrefix = "everybodys-"

// sharer works on everybody's nodes.
type sharer struct {
	rnd  *rand.Rand
	file string
}

func (h *sharer) do(ctx context.Context, s *layer.Store) error {
	e := event{
		Node: fmt.Sprintf("%s%d", sharedPrefix, h.rnd.IntN(2)), Value: h.rnd.Uint64N(1<<40) + 1,
		Do: []string{"create", "create", "remove", "label", "look", "look", "reset"}[h.rnd.IntN(7)],
	}
	e.Begin = now()
	err := e.run(ctx, s)
	e.End = now()
	switch {
	case err == nil:
		e.Result = "ok"
	case errors.Is(err, layer.ErrExists):
		e.Result = "exists"
	case errors.Is(err, layer.ErrNotFound):
		e.Result = "notfound"
	case errors.Is(err, layer.ErrBusy):
		e.Result = "busy"
	default:
		return fmt.Errorf("%s %s: %w", e.Do, e.Node, err)
	}
	f, err := os.OpenFile(h.file, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(writeEntry(f, e), f.Close())
}

func now() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

func (e *event) run(ctx context.Context, s *layer.Store) error {
	switch e.Do {
	case "create":
		_, err := s.CreateSnapshot(ctx, e.Node, layer.SnapshotOptions{Labels: map[string]string{"l": fmt.Sprint(e.Value)}})
		return err
	case "remove":
		return s.Remove(ctx, e.Node)
	case "label":
		return s.Label(ctx, e.Node, map[string]string{"l": fmt.Sprint(e.Value)}, nil)
	case "reset":
		return s.Reset(ctx, e.Node, "")
	}
	i, err := s.Inspect(ctx, e.Node)
	if err == nil {
		_, err = fmt.Sscan(i.Labels["l"], &e.Value)
	}
	return err
}

// effect returns the value after an event, 0 for no node, and whether its result can be had there.
func (e event) effect(value uint64) (uint64, bool) {
	if e.Result == "busy" {
		return value, value != 0 && (e.Do == "remove" || e.Do == "reset")
	}
	if e.Do == "create" {
		if e.Result == "exists" {
			return value, value != 0
		}
		return e.Value, value == 0 && e.Result == "ok"
	}
	if e.Result == "notfound" {
		return value, value == 0
	}
	there := value != 0 && e.Result == "ok"
	switch e.Do {
	case "remove":
		return 0, there
	case "label":
		return e.Value, there
	case "look":
		return value, there && value == e.Value
	}
	return value, there
}

// readEvents returns what was done with each of everybody's nodes.
func readEvents(all []orders) (map[string][]event, error) {
	events := map[string][]event{}
	for _, o := range all {
		f, err := os.Open(o.eventFile())
		if err != nil {
			return nil, err
		}
		for scan := bufio.NewScanner(f); scan.Scan(); {
			var e event
			if err := json.Unmarshal(scan.Bytes(), &e); err != nil {
				return nil, errors.Join(err, f.Close())
			}
			events[e.Node] = append(events[e.Node], e)
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
	return events, nil
}

// linear looks for an order of the events in which each could have had its result, that keeps apart what was
// apart in time (Wing and Gong's search).
func linear(events []event) error {
	slices.SortFunc(events, func(a, b event) int { return cmp.Compare(a.Begin, b.Begin) })
	s := &search{events: events, done: make(mask, (len(events)+63)/64), tried: map[string]bool{}}
	if !s.from(0) {
		lines := make([]string, len(events))
		for i, e := range events {
			lines[i] = e.String()
		}
		return fmt.Errorf("the results of %d operations fit in no order; at most %d do\n\t%s", len(events), s.most, strings.Join(lines, "\n\t"))
	}
	return nil
}

type mask []uint64

func (m mask) has(i int) bool { return m[i/64]>>(i%64)&1 != 0 }
func (m mask) flip(i int)     { m[i/64] ^= 1 << (i % 64) }
func (m mask) count() (n int) {
	for _, w := range m {
		n += bits.OnesCount64(w)
	}
	return n
}

type search struct {
	events []event
	done   mask
	tried  map[string]bool
	most   int
}

// from goes on where the node has this value.
func (s *search) from(value uint64) bool {
	n := s.done.count()
	s.most = max(s.most, n)
	if n == len(s.events) {
		return true
	}
	key := fmt.Sprint(s.done, value)
	if s.tried[key] {
		return false
	}
	s.tried[key] = true
	end := int64(1<<63 - 1)
	for i, e := range s.events {
		if s.done.has(i) {
			continue
		}
		if e.Begin > end {
			break
		}
		end = min(end, e.End)
		next, ok := e.effect(value)
		if !ok {
			continue
		}
		s.done.flip(i)
		if s.from(next) {
			return true
		}
		s.done.flip(i)
	}
	return false
}

// sharedNodes takes everybody's nodes out of what there is, where they may be.
func sharedNodes(have state, all []orders) error {
	for name, n := range have.Nodes {
		if !strings.HasPrefix(name, sharedPrefix) {
			continue
		}
		if !all[0].Shared || n.Kind != layer.KindSnapshot || len(n.Files) > 0 {
			return fmt.Errorf("%s is %v", name, n)
		}
		delete(have.Nodes, name)
	}
	return nil
}
