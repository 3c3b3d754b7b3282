package vmexec

import (
	"encoding/binary"
	"fmt"
	"io"
)

// A console has no end of file that a program could not also have typed. So standard input is sent
// in frames: a length of two bytes, big endian, and that many bytes. Length zero is the end.

const frameMax = 1024

// sendFrames copies r to w until r ends, and sends the end.
func sendFrames(w io.Writer, r io.Reader) error {
	buf := make([]byte, 2+frameMax)
	for {
		n, err := r.Read(buf[2:])
		if n > 0 {
			binary.BigEndian.PutUint16(buf, uint16(n))
			if _, werr := w.Write(buf[:2+n]); werr != nil {
				return fmt.Errorf("send standard input: %w", werr)
			}
		}
		if err != nil {
			_, werr := w.Write([]byte{0, 0})
			return werr
		}
	}
}

// receiveFrames copies the content of the frames in r to w until the end frame.
func receiveFrames(w io.Writer, r io.Reader) error {
	buf := make([]byte, 1<<16)
	for {
		if _, err := io.ReadFull(r, buf[:2]); err != nil {
			return fmt.Errorf("receive standard input: %w", err)
		}
		n := int(binary.BigEndian.Uint16(buf))
		if n == 0 {
			return nil
		}
		if _, err := io.ReadFull(r, buf[:n]); err != nil {
			return fmt.Errorf("receive standard input: %w", err)
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
	}
}
