package torture_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
)

// What files and raw disks hold follows from a number that is not 0, which they begin with, so that nobody has
// to be asked what should be there: whatever is not whole is seen.

const headBytes = 16

var errTorn = errors.New("content is torn")

// text returns what belongs to a number.
func text(v uint64) []byte {
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, headBytes), v)
	rnd := rand.NewPCG(v, 0)
	n := int(rnd.Uint64() % 3000)
	switch v % 16 {
	case 0:
		n *= 80
	case 1, 2, 3:
		n *= 12
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(n))
	for len(b) < headBytes+n {
		b = binary.LittleEndian.AppendUint64(b, rnd.Uint64())
	}
	return b[:headBytes+n]
}

// maxText is no less than the length of any text.
const maxText = headBytes + 80*3000

// numberOf returns the number of a content, which may be followed by something else where it is raw.
func numberOf(b []byte, raw bool) (uint64, error) {
	if len(b) < headBytes {
		return 0, fmt.Errorf("%d bytes: %w", len(b), errTorn)
	}
	v := binary.LittleEndian.Uint64(b)
	want := text(v)
	if !bytes.HasPrefix(b, want) || !raw && len(b) != len(want) {
		return 0, fmt.Errorf("%d bytes that begin like number %d: %w", len(b), v, errTorn)
	}
	return v, nil
}
