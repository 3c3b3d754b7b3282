package vmexec

import (
	"encoding/binary"
	"fmt"
	"io"
)

// A console has no end of file that a program could not also have typed. So standard input is sent
// in frames: a length of two bytes, big endian, and that many bytes. Length zero is the end.
//
// A terminal drops what its reader does not fetch in time: the next frame is sent when the reader
// has acknowledged the one before with a byte, and a frame is smaller than the terminal's buffer
// of 4096 bytes. The reader's first byte says that it listens: UML does not notice what was sent
// before the guest opened the console.

const (
	frameMax = 3072
	frameAck = 'k'
)

// sendFrames copies r to w until r ends, and sends the end.
func sendFrames(w io.Writer, acks io.Reader, r io.Reader) error {
	buf := make([]byte, 2+frameMax)
	ack := make([]byte, 1)
	if _, err := io.ReadFull(acks, ack); err != nil {
		return fmt.Errorf("wait for a reader of standard input: %w", err)
	}
	for {
		n, err := r.Read(buf[2:])
		if n > 0 {
			binary.BigEndian.PutUint16(buf, uint16(n))
			if _, err := w.Write(buf[:2+n]); err != nil {
				return fmt.Errorf("send standard input: %w", err)
			}
			if _, err := io.ReadFull(acks, ack); err != nil {
				return fmt.Errorf("wait for the receipt of standard input: %w", err)
			}
		}
		if err != nil {
			_, werr := w.Write([]byte{0, 0})
			return werr
		}
	}
}

// receiveFrames copies the content of the frames in rw to w until the end frame. A w that takes no
// more, because the job closed its input, stops nothing: the sender must not wait for ever.
func receiveFrames(w io.Writer, rw io.ReadWriter) error {
	buf := make([]byte, 1<<16)
	if _, err := rw.Write([]byte{frameAck}); err != nil {
		return fmt.Errorf("announce the reader of standard input: %w", err)
	}
	for {
		if _, err := io.ReadFull(rw, buf[:2]); err != nil {
			return fmt.Errorf("receive standard input: %w", err)
		}
		n := int(binary.BigEndian.Uint16(buf))
		if n == 0 {
			return nil
		}
		if _, err := io.ReadFull(rw, buf[:n]); err != nil {
			return fmt.Errorf("receive standard input: %w", err)
		}
		_, _ = w.Write(buf[:n])
		if _, err := rw.Write([]byte{frameAck}); err != nil {
			return fmt.Errorf("acknowledge standard input: %w", err)
		}
	}
}
