package metadata

import (
	"bytes"
	"os"
)

// CheckPages is checkPages for a store in memory.
func CheckPages(b []byte) ([]string, error) {
	size := os.Getpagesize()
	header := b[:size]
	if transactionOf(b[size:2*size]) > transactionOf(header) {
		header = b[size : 2*size]
	}
	return checkPages(header, bytes.NewReader(b), int64(len(b)))
}

// Waiting is how many wait for their turn in UpdateTogether.
func (s *Store) Waiting() int {
	s.together.mu.Lock()
	defer s.together.mu.Unlock()
	return len(s.together.waiting)
}

// Reserve is reserve.
var Reserve = reserve
