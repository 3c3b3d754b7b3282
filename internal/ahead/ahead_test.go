package ahead

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"testing"
	"testing/iotest"
)

// TestAhead reads streams of many sizes, in pieces of many sizes.
func TestAhead(t *testing.T) {
	for _, size := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 10*chunkSize + 7} {
		data := bytes.Repeat([]byte("some bytes "), size/11+1)[:size]
		for name, src := range map[string]io.Reader{
			"plain": bytes.NewReader(data), "data with the end": iotest.DataErrReader(bytes.NewReader(data)), "halves": iotest.HalfReader(bytes.NewReader(data)),
		} {
			h := sha256.New()
			a := New(src, h, nil)
			got, err := io.ReadAll(iotest.OneByteReader(io.LimitReader(a, 100)))
			if err == nil {
				var rest []byte
				rest, err = io.ReadAll(a)
				got = append(got, rest...)
			}
			if want := sha256.Sum256(data); err != nil || !bytes.Equal(got, data) || !bytes.Equal(h.Sum(nil), want[:]) || a.size != int64(size) || a.taken != int64(size) {
				t.Errorf("%s of %d: %d bytes, hashed %d (%v)", name, size, len(got), a.size, err)
			}
			if _, err := a.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("after the end: %v", err)
			}
			a.Close()
		}
	}
}

// TestAheadFails passes an error on behind the bytes before it.
func TestAheadFails(t *testing.T) {
	a := New(io.MultiReader(bytes.NewReader(make([]byte, chunkSize+10)), iotest.ErrReader(os.ErrDeadlineExceeded)), sha256.New(), nil)
	defer a.Close()
	if n, err := io.Copy(io.Discard, a); n != chunkSize+10 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes (%v)", n, err)
	}
	b := New(iotest.ErrReader(nil), nil, nil)
	defer b.Close()
	if _, err := io.Copy(io.Discard, b); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("a source that gives nothing: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestAheadStops leaves an endless stream at any time.
func TestAheadStops(t *testing.T) {
	for n := range 20 {
		a := New(zeros{}, sha256.New(), nil)
		if _, err := io.CopyN(io.Discard, a, int64(n)*chunkSize/2); err != nil {
			t.Error(err)
		}
		a.Close()
	}
}
