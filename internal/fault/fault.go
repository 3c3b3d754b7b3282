// Package fault names the instants at which a test may kill, stop or fail the process.
//
// A point is declared once, as a package variable, beside the code that reaches it. Nothing arms a
// point outside tests: reaching one costs a load of an atomic pointer.
package fault

import (
	"sort"
	"sync"
	"sync/atomic"
)

// Point is an instant in an operation. Its zero value is not usable; see New.
type Point struct{ name string }

var (
	mu     sync.Mutex
	points = map[string]*Point{}
	hook   atomic.Pointer[func(name string) error]
)

// New declares a point. It panics when the name is taken: points are package variables, so this is
// a mistake of the programmer and seen at once.
func New(name string) *Point {
	mu.Lock()
	defer mu.Unlock()
	if points[name] != nil {
		panic("fault: point declared twice: " + name)
	}
	p := &Point{name}
	points[name] = p
	return p
}

// Name returns the point's name.
func (p *Point) Name() string { return p.name }

// Hit reports that the point was reached. The hook may not return (kill), may block (stop), or may
// return an error that the operation must treat as its own failure at this place.
func (p *Point) Hit() error {
	h := hook.Load()
	if h == nil {
		return nil
	}
	return (*h)(p.name)
}

// Set installs what happens at every point, for tests; nil takes it away.
func Set(h func(name string) error) {
	if h == nil {
		hook.Store(nil)
		return
	}
	hook.Store(&h)
}

// Names returns the names of all points declared in the program, sorted.
func Names() []string {
	mu.Lock()
	defer mu.Unlock()
	names := make([]string, 0, len(points))
	for n := range points {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}
