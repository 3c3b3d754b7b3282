package pool

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// Each device of a device backing begins with a header by which it is found under whatever name: magic, length (u32, little
// endian), JSON, CRC-32C of all before. It fits into a sector, which a disk writes whole or not at all.
const (
	headerMagic   = "dmlayer disk 01\n"
	headerVersion = 13      // offset of the two digits in the magic
	headerSector  = 512     // what the header fits into
	headerSize    = 4 << 10 // what is written for it, the rest zeros
	headerSpace   = 1 << 20 // what comes before data and metadata, zeros but for the header
	maxDiskSector = 4 << 10 // the largest logical block that the header and the metadata can do with
	minRawBlocks  = 16      // of data
	rawDataRole   = "data"
	rawMetaRole   = "metadata"
)

// diskHeader says what a device is.
type diskHeader struct {
	UUID    string    `json:"uuid"` // the pool's
	Name    string    `json:"name"` // the pool's, as at its creation: for people
	Role    string    `json:"role"` // rawDataRole or rawMetaRole
	Created time.Time `json:"created"`
	Start   int64     `json:"start"` // bytes: where data or metadata begin
}

// errNoHeader says that a device has no header of dmlayer.
var errNoHeader = errors.New("it is no device of a pool")

// encodeHeader returns the header's 4 KiB.
func encodeHeader(h diskHeader) ([]byte, error) {
	text, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	b := binary.LittleEndian.AppendUint32([]byte(headerMagic), uint32(len(text)))
	b = append(b, text...)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	if len(b) > headerSector {
		return nil, fmt.Errorf("header of %d bytes does not fit into a sector: %w", len(b), errs.ErrInvalid)
	}
	return append(b, make([]byte, headerSize-len(b))...), nil
}

// decodeHeader reads the header at the start of a device. A device without one is errNoHeader, one with a header that is not whole
// ErrDamaged, one of a version that is not known ErrUnsupported.
func decodeHeader(r io.ReaderAt) (h diskHeader, err error) {
	b := make([]byte, headerSector)
	if _, err := r.ReadAt(b, 0); err != nil {
		if errors.Is(err, io.EOF) {
			err = errNoHeader
		}
		return h, err
	}
	return parseHeader(b)
}

func parseHeader(b []byte) (h diskHeader, err error) {
	bad := func(format string, args ...any) (diskHeader, error) {
		return diskHeader{}, fmt.Errorf("header of a pool's device: %s: %w", fmt.Sprintf(format, args...), errs.ErrDamaged)
	}
	if !bytes.HasPrefix(b, []byte(headerMagic[:headerVersion])) {
		return h, errNoHeader
	}
	if len(b) < headerSector {
		return bad("%d bytes", len(b))
	}
	if !bytes.HasPrefix(b, []byte(headerMagic)) {
		return h, fmt.Errorf("header of a pool's device: version %q: %w", b[headerVersion:headerVersion+2], errs.ErrUnsupported)
	}
	body := b[len(headerMagic)+4 : headerSector-4]
	n := int(binary.LittleEndian.Uint32(b[len(headerMagic):]))
	if n < 0 || n > len(body) {
		return bad("too long")
	}
	end := len(headerMagic) + 4 + n
	if binary.LittleEndian.Uint32(b[end:]) != crc32.Checksum(b[:end], castagnoli) {
		return bad("wrong checksum")
	}
	if err := json.Unmarshal(body[:n], &h); err != nil {
		return bad("%v", err)
	}
	id, err := hex.DecodeString(h.UUID)
	switch {
	case err != nil || 2*len(id) != uuidLength:
		return bad("pool %q", h.UUID)
	case ValidateName("pool", h.Name) != nil:
		return bad("name %q", h.Name)
	case h.Role != rawDataRole && h.Role != rawMetaRole:
		return bad("role %q", h.Role)
	case h.Start != headerSpace:
		return bad("start %d", h.Start)
	}
	return h, nil
}
