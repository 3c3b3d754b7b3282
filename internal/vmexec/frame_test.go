package vmexec

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

// duplex joins what a reader of frames receives with what it answers.
type duplex struct {
	io.Reader
	io.Writer
}

func TestFramesRoundTrip(t *testing.T) {
	for _, size := range []int{0, 1, frameMax - 1, frameMax, frameMax + 1, 10*frameMax + 7} {
		in := strings.Repeat("\x00\x04x", size/3+1)[:size]
		dataR, dataW := io.Pipe()
		ackR, ackW := io.Pipe()
		sent := make(chan error, 1)
		go func() { sent <- sendFrames(dataW, ackR, strings.NewReader(in)) }()
		var out bytes.Buffer
		if err := receiveFrames(&out, duplex{dataR, ackW}); err != nil {
			t.Fatal(err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		if out.String() != in {
			t.Errorf("size %d: got %d bytes back, or others", size, out.Len())
		}
	}
}

func TestFramesToAClosedReader(t *testing.T) {
	closed, w := io.Pipe()
	_ = closed.Close()
	var acks bytes.Buffer
	if err := receiveFrames(w, duplex{strings.NewReader("\x00\x02ab\x00\x01c\x00\x00"), &acks}); err != nil {
		t.Fatal(err)
	}
	if acks.String() != "kkk" {
		t.Errorf("acknowledged %q, want the start and two frames", acks.String())
	}
}

// No byte sequence makes the receiver fail otherwise than by ending too early, and what it passes on
// is what the frames hold.
func FuzzReceiveFrames(f *testing.F) {
	for _, seed := range []string{"", "\x00", "\x00\x00", "\x00\x01a\x00\x00", "\x00\x05abc", "\xff\xff", "\x00\x00rest"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var out bytes.Buffer
		err := receiveFrames(&out, duplex{bytes.NewReader(data), io.Discard})
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("unexpected error %v", err)
		}
		if out.Len() > len(data) {
			t.Errorf("%d bytes out of %d", out.Len(), len(data))
		}
	})
}
