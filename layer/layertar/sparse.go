package layertar

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"math"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The archive library reads a sparse file with its holes, and a few bytes of archive can ask for a hole
// of exabytes. So it is used for the headers only: where the data belong is read here, from the same
// bytes, in all four forms that GNU tar has had, and the data go from the archive to their places.

// Keys of PAX records about sparse files. The library joins those of version 0.0 into one of 0.1.
const (
	paxSparseMajor = "GNU.sparse.major"
	paxSparseMinor = "GNU.sparse.minor"
	paxSparseMap   = "GNU.sparse.map"
	paxSize        = "size"
)

const (
	blockSize  = 512
	maxHeaders = 4 << 20 // of one entry: those that count are less; an archive may have any number of others before them
)

// A source is an archive that keeps the bytes of an entry's headers.
type source struct {
	r    io.Reader
	pos  int64
	keep bool
	head []byte
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.pos += int64(n)
	switch {
	case !s.keep:
	case len(s.head)+n <= maxHeaders:
		s.head = append(s.head, p[:n]...)
	default:
		s.keep, s.head = false, nil // with which nothing fits
	}
	return n, err
}

// next reads the next header. All content of the entry before must have been read.
func (s *source) next(tr *tar.Reader) (*tar.Header, error) {
	padding := s.padding()
	s.keep, s.head = true, s.head[:0]
	hdr, err := tr.Next()
	s.keep = false
	s.head = s.head[min(padding, int64(len(s.head))):]
	return hdr, err
}

// padding returns how many bytes are left to the end of the block.
func (s *source) padding() int64 { return -s.pos & (blockSize - 1) }

// fragment is a part of a sparse file that is not a hole.
type fragment struct{ offset, length int64 }

var errSparse = invalid("its sparse map does not fit its size")

// fragments returns where the data belong that follow the headers of a sparse file.
func (s *source) fragments(hdr *tar.Header) ([]fragment, error) {
	rest := s.head
	for {
		if len(rest) < blockSize {
			return nil, errSparse
		}
		if typ := rest[156]; typ != tar.TypeXHeader && typ != tar.TypeGNULongName && typ != tar.TypeGNULongLink {
			break
		}
		size := number(rest[124:136])
		if size < 0 || size > int64(len(rest))-blockSize {
			return nil, errSparse
		}
		rest = rest[min(blockSize+(size+blockSize-1)/blockSize*blockSize, int64(len(rest))):]
	}
	header, rest := rest[:blockSize], rest[blockSize:]
	size := number(header[124:136])
	if text, ok := hdr.PAXRecords[paxSize]; ok {
		size = decimal(text)
	}
	var numbers []int64
	switch {
	case header[156] == tar.TypeGNUSparse:
		numbers = oldGNU(header[386:483], rest)
	case hdr.PAXRecords[paxSparseMajor] == "1":
		numbers = linesOf(rest)
		size -= int64(len(rest))
	case hdr.PAXRecords[paxSparseMap] != "":
		for text := range strings.SplitSeq(hdr.PAXRecords[paxSparseMap], ",") {
			numbers = append(numbers, decimal(text))
		}
	}
	return checked(numbers, hdr.Size, size)
}

// checked makes fragments of offsets and lengths, and makes sure that they ascend, lie within the file,
// and are as many bytes as the archive has.
func checked(numbers []int64, size, packed int64) ([]fragment, error) {
	var all []fragment
	end := int64(0)
	for ; len(numbers) >= 2; numbers = numbers[2:] {
		f := fragment{numbers[0], numbers[1]}
		if f.offset < end || f.length < 0 || f.length > size || f.offset > size-f.length {
			return nil, errSparse
		}
		end = f.offset + f.length
		packed -= f.length
		all = append(all, f)
	}
	if len(numbers) > 0 || packed != 0 {
		return nil, errSparse
	}
	return all, nil
}

// linesOf reads the map of version 1.0: the number of fragments, then the numbers, a line each.
func linesOf(text []byte) []int64 {
	var all []int64
	count := int64(-1)
	for line := range bytes.Lines(text) {
		line, whole := bytes.CutSuffix(line, []byte("\n"))
		if !whole {
			break
		}
		if count < 0 {
			count = decimal(string(line))
			continue
		}
		if int64(len(all)) >= 2*count {
			break
		}
		all = append(all, decimal(string(line)))
	}
	return all
}

// oldGNU reads the map in the header, four fragments and a flag, and in the blocks that follow while the
// flag is set, 21 each.
func oldGNU(header, rest []byte) []int64 {
	var all []int64
	for {
		last := len(header) - 1
		for i := 0; i+24 <= last && header[i] != 0; i += 24 {
			all = append(all, number(header[i:i+12]), number(header[i+12:i+24]))
		}
		if header[last] == 0 || len(rest) < blockSize {
			return all
		}
		header, rest = rest[:505], rest[blockSize:]
	}
}

// number reads a number of a header: octal digits, or bytes with the first bit set. What is none of a
// size is -1.
func number(field []byte) int64 {
	if field[0]&0x80 == 0 {
		text, _, _ := bytes.Cut(bytes.Trim(field, " \x00"), []byte{0})
		if len(text) == 0 {
			return 0
		}
		n, err := strconv.ParseUint(string(text), 8, 63)
		if err != nil {
			return -1
		}
		return int64(n)
	}
	n := int64(field[0] & 0x7f)
	for _, b := range field[1:] {
		if n > math.MaxInt64>>8 {
			return -1
		}
		n = n<<8 | int64(b)
	}
	return n
}

func decimal(text string) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// fillSparse writes the data of a sparse file to their places, and leaves the archive at the next entry.
func (a *applier) fillSparse(fd int, hdr *tar.Header) error {
	fragments, err := a.src.fragments(hdr)
	if err != nil {
		return err
	}
	if err := unix.Ftruncate(fd, hdr.Size); err != nil {
		return os.NewSyscallError("ftruncate", err)
	}
	for _, f := range fragments {
		if err := a.fill(fd, f.offset, f.length, a.src); err != nil {
			return err
		}
	}
	_, err = io.CopyN(io.Discard, a.src, a.src.padding())
	if errors.Is(err, io.EOF) {
		err = nil // where an archive ends without padding, the library does not mind either
	}
	a.tr = tar.NewReader(a.src)
	return err
}
