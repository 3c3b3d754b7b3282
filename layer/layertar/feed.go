package layertar

const (
	chunkSize = 256 << 10
	maxChunks = 4 // in flight
)

// A feed takes a stream from one goroutine to another in large chunks: an archive is read in steps
// of 512 bytes, and a switch of goroutines for each would cost more than all the rest.
type feed struct {
	chunks  chan []byte
	free    chan []byte
	stopped chan struct{} // closed when nobody reads any more
	end     error         // what the stream ends with; set before chunks is closed

	chunk, rest []byte // the reader's
}

func newFeed() *feed {
	return &feed{chunks: make(chan []byte, maxChunks), free: make(chan []byte, maxChunks+2), stopped: make(chan struct{})}
}

// buffer returns a buffer that the reader is done with, or a new one. What the caller sent
// before must be of no use to him any more.
func (f *feed) buffer() []byte {
	select {
	case b := <-f.free:
		return b
	default:
		return make([]byte, chunkSize)
	}
}

// send hands over a chunk, and reports whether somebody may read it.
func (f *feed) send(chunk []byte) bool {
	select {
	case f.chunks <- chunk:
		return true
	case <-f.stopped:
		return false
	}
}

// close ends the stream.
func (f *feed) close(end error) {
	f.end = end
	close(f.chunks)
}

// Read implements io.Reader for the other side.
func (f *feed) Read(p []byte) (int, error) {
	if len(f.rest) == 0 {
		if f.chunk != nil {
			select {
			case f.free <- f.chunk[:cap(f.chunk)]:
			default:
			}
			f.chunk = nil
		}
		chunk, ok := <-f.chunks
		if !ok {
			return 0, f.end
		}
		f.chunk, f.rest = chunk, chunk
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}
