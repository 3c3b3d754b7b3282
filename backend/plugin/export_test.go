package plugin

import "time"

// SetGrace has servers wait that long for requests when they end, and returns what puts it back.
func SetGrace(d time.Duration) (undo func()) {
	before := grace
	grace = d
	return func() { grace = before }
}
