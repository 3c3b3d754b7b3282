package image

import (
	"bufio"
	"bytes"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// compression is how a stream is packed, told by its first bytes and never by its name or media type.
type compression string

const (
	plain   compression = ""
	gzipped compression = "gzip"
	zstded  compression = "zstd"
)

// maxZstdWindow is what zstd --long=27 needs, the most that zstd itself accepts unasked.
const maxZstdWindow = 128 << 20

// detect tells the compression by the first bytes of a stream.
func detect(head []byte) (compression, error) {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzipped, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}),
		len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}): // skippable frame
		return zstded, nil
	case bytes.HasPrefix(head, []byte("BZh")):
		return plain, unsupported("bzip2 compression")
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return plain, unsupported("xz compression")
	}
	return plain, nil
}

// unpacked returns the stream without its compression. Damaged compressed data is ErrDamaged; an error
// of r itself stays what it is. The caller closes the result, which leaves r open.
func unpacked(r io.Reader) (io.ReadCloser, compression, error) {
	src := &errorKeeper{r: r}
	br := bufio.NewReaderSize(src, 256<<10)
	head, err := br.Peek(6)
	if err != nil && err != io.EOF {
		return nil, plain, err
	}
	kind, err := detect(head)
	if err != nil {
		return nil, plain, err
	}
	switch kind {
	case gzipped:
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, kind, src.explain(kind, err)
		}
		return &unpacker{z, src, kind}, kind, nil
	case zstded:
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, kind, src.explain(kind, err)
		}
		return &unpacker{z.IOReadCloser(), src, kind}, kind, nil
	}
	return io.NopCloser(br), plain, nil
}

// unpacker gives a decompressor's errors their class.
type unpacker struct {
	z    io.ReadCloser
	src  *errorKeeper
	kind compression
}

func (u *unpacker) Read(p []byte) (int, error) {
	n, err := u.z.Read(p)
	if err != nil && err != io.EOF {
		err = u.src.explain(u.kind, err)
	}
	return n, err
}

// Close gives back what the decompressor has. Its error would be that of the last reading once more, if only
// that it was to stop.
func (u *unpacker) Close() error {
	_ = u.z.Close()
	return nil
}

// errorKeeper remembers the error of the stream below a decompressor, which may wrap or replace it.
type errorKeeper struct {
	r   io.Reader
	err error
}

func (k *errorKeeper) Read(p []byte) (int, error) {
	n, err := k.r.Read(p)
	if err != nil && err != io.EOF {
		k.err = err
	}
	return n, err
}

func (k *errorKeeper) explain(kind compression, err error) error {
	if k.err != nil {
		return k.err
	}
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return unsupported("zstd data that takes more than %d MiB of memory to decompress", maxZstdWindow>>20)
	}
	return damaged("%s data: %v", kind, err)
}
