package layertar

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// holeSize is the granularity in which zeros become holes: the smallest block of a thin pool, below
// which a hole saves nothing.
const holeSize = 64 << 10

// punchZeros turns aligned runs of zeros in a file into holes. A file system that has no holes keeps
// the zeros.
func punchZeros(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()

	buf, zeros := make([]byte, holeSize), make([]byte, holeSize)
	var start, offset int64 // a run of zeros is [start, offset)
	punch := func() error {
		if start == offset {
			return nil
		}
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, start, offset-start)
		if err != nil && err != unix.EOPNOTSUPP {
			return fmt.Errorf("punch hole into %s: %w", path, err)
		}
		return nil
	}
	for {
		n, err := io.ReadFull(f, buf)
		if n > 0 && !bytes.Equal(buf[:n], zeros[:n]) {
			if err := punch(); err != nil {
				return err
			}
			start = offset + int64(n)
		}
		offset += int64(n)
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			return punch()
		default:
			return err
		}
	}
}
