package differ

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/dmlayer/dmlayer/internal/ahead"
)

// maxZstdWindow is what zstd --long=27 needs, the most that zstd itself accepts unasked.
const maxZstdWindow = 128 << 20

// layerReader reads the tar of a layer in containerd's content store. Fetching, decompressing and hashing go on ahead of whoever reads.
type layerReader struct {
	blob  *ahead.Reader // as it is in the store
	z     io.ReadCloser
	plain *ahead.Reader // hashed

	progress func(int64)
}

// openLayer begins to read a layer. How one that may be compressed is compressed is told by its first bytes, as containerd does: media types
// are wrong sometimes.
func openLayer(b content.ReaderAt, compressed bool, progress func(int64)) (*layerReader, error) {
	l := &layerReader{blob: ahead.New(io.NewSectionReader(b, 0, b.Size()), nil, nil), progress: progress}
	l.z = io.NopCloser(l.blob)
	if compressed {
		z, err := decompressor(l.blob)
		if err != nil {
			l.blob.Close()
			return nil, err
		}
		l.z = z
	}
	l.plain = ahead.New(l.z, sha256.New(), l.blob.Taken)
	return l, nil
}

func decompressor(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	skippable := len(head) == 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:], []byte{0x2a, 0x4d, 0x18})
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b, 0x08}):
		return gzip.NewReader(br)
	case skippable || bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(br), nil
}

// Read reads from the tar.
func (l *layerReader) Read(p []byte) (int, error) {
	n, err := l.plain.Read(p)
	if l.progress != nil {
		l.progress(l.plain.Mark())
	}
	return n, err
}

// close gives back what reading has taken. Reading the blob must end by itself, or have been cancelled.
func (l *layerReader) close() {
	l.plain.Close()
	_ = l.z.Close() // its error is that of the last reading
	l.blob.Close()
}
