package cli

import (
	"bytes"
	"sync"
)

// syncBuffer is a buffer that goroutines share, and that tells of the first write.
type syncBuffer struct {
	mu   sync.Mutex
	b    bytes.Buffer
	once sync.Once
	ch   chan struct{}
}

func (s *syncBuffer) init() { s.once.Do(func() { s.ch = make(chan struct{}, 1) }) }

func (s *syncBuffer) written() <-chan struct{} {
	s.init()
	return s.ch
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.init()
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.b.Write(p)
	select {
	case s.ch <- struct{}{}:
	default:
	}
	return n, err
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
