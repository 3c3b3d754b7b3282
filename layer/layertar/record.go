package layertar

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"hash"
	"hash/crc64"
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/vbatts/tar-split/tar/storage"
)

// segmentSize bounds the literal bytes of one entry in the metadata, and so the memory to read it.
const segmentSize = 64 << 10

// A Recorder writes down, while a layer is being applied, what the tree will not tell about the
// archive: headers, padding, the order of entries. With that and the mounted tree, Rebuild makes
// the same archive again, byte for byte. The format is that of tar-split, JSON lines under gzip,
// which docker and the containers libraries use too.
//
//	rec := layertar.NewRecorder(tarStream, metadata)
//	_, err := layertar.Apply(ctx, root, rec, layertar.ApplyOptions{})
//	err = errors.Join(err, rec.Close())
//
// A Recorder is for one goroutine.
type Recorder struct {
	r     io.Reader
	err   error  // what r ended with
	chunk []byte // what was read of r and not yet from here

	feed   *feed // the same, for the goroutine that records
	done   chan error
	broken bool // recording has stopped; Close tells why
}

// NewRecorder returns a reader of what r holds, which records to w.
func NewRecorder(r io.Reader, w io.Writer) *Recorder {
	rec := &Recorder{r: r, feed: newFeed(), done: make(chan error, 1)}
	go func() {
		err := record(rec.feed, w)
		close(rec.feed.stopped)
		rec.done <- err
	}()
	return rec
}

// Read reads from the archive, up to some hundred KiB ahead. A failure to record does not disturb it.
func (rec *Recorder) Read(p []byte) (int, error) {
	if len(rec.chunk) == 0 && rec.err == nil {
		rec.fill()
	}
	if len(rec.chunk) == 0 {
		return 0, rec.err
	}
	n := copy(p, rec.chunk)
	rec.chunk = rec.chunk[n:]
	return n, nil
}

// fill reads the next chunk and hands it to both sides.
func (rec *Recorder) fill() {
	buf := rec.feed.buffer()
	n, empty := 0, 0
	for n < len(buf) && rec.err == nil {
		var got int
		got, rec.err = rec.r.Read(buf[n:])
		n += got
		if got > 0 {
			empty = 0
		} else if empty++; empty > 100 && rec.err == nil {
			rec.err = io.ErrNoProgress
		}
	}
	rec.chunk = buf[:n]
	if n > 0 && !rec.broken {
		rec.broken = !rec.feed.send(rec.chunk)
	}
}

// Close completes the record. It must be called exactly once, whether Apply succeeded or not.
//
// Any error means that what was written is of no use. So is it without one where Stats.Rewritten is
// set: then content that the record leaves to the tree is not there. ErrInvalid: the archive is
// malformed, or was not read to its end.
func (rec *Recorder) Close() error {
	end := io.EOF
	if rec.err != io.EOF || len(rec.chunk) > 0 {
		end = invalid("the archive was not read to its end")
	}
	rec.feed.close(end)
	if err := <-rec.done; err != nil {
		return fmt.Errorf("record layer tar: %w", classify(err))
	}
	return nil
}

// record reads an archive to its end and writes its metadata.
func record(r io.Reader, w io.Writer) error {
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return err
	}
	s := &scribe{r: r, enc: json.NewEncoder(z), sum: crc64.New(storage.CRCTable), buf: make([]byte, readSize)}
	if err := s.archive(); err != nil {
		return err
	}
	return z.Close()
}

// A scribe reads an archive and keeps literally whatever is not the content of a plain file.
type scribe struct {
	r       io.Reader
	enc     *json.Encoder
	pos     int
	content bool   // what is being read is in the tree
	pending []byte // literal bytes that are not written yet
	sum     hash.Hash64
	buf     []byte
}

// Read is how the tar reader gets its bytes: exactly as many as it needs, because it does not read
// ahead of what it was asked for.
func (s *scribe) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if !s.content {
		s.pending = append(s.pending, p[:n]...)
		if len(s.pending) >= segmentSize {
			if err := s.flush(); err != nil {
				return n, err
			}
		}
	}
	return n, err
}

func (s *scribe) flush() error {
	if len(s.pending) == 0 {
		return nil
	}
	err := s.write(storage.Entry{Type: storage.SegmentType, Payload: s.pending})
	s.pending = s.pending[:0]
	return err
}

func (s *scribe) write(e storage.Entry) error {
	e.Position = s.pos
	s.pos++
	return s.enc.Encode(e)
}

func (s *scribe) archive() error {
	tr := tar.NewReader(s)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := s.entry(tr, hdr); err != nil {
			return fmt.Errorf("entry %.300q: %w", hdr.Name, err)
		}
	}
	// What follows the end marker is part of the bytes, and of their digest.
	if _, err := io.Copy(io.Discard, struct{ io.Reader }{s}); err != nil {
		return err
	}
	return s.flush()
}

// entry records one entry. Only the content of a plain file is left to the tree: a whiteout's is
// nowhere, and of a sparse file the archive has another form than the tree.
func (s *scribe) entry(tr *tar.Reader, hdr *tar.Header) error {
	sparse, err := normalize(hdr)
	if err != nil {
		return err
	}
	name := path.Clean("/" + hdr.Name)
	if hdr.Typeflag != tar.TypeReg || sparse || hdr.Size == 0 || strings.Contains(name, "/"+whiteoutPrefix) {
		return nil // the tar reader passes over the content, which makes it literal
	}
	if err := s.flush(); err != nil {
		return err
	}
	s.sum.Reset()
	s.content = true
	_, err = io.CopyBuffer(s.sum, struct{ io.Reader }{tr}, s.buf)
	s.content = false
	if err != nil {
		return err
	}
	e := storage.Entry{Type: storage.FileType, Size: hdr.Size, Payload: s.sum.Sum(nil)}
	e.SetName(hdr.Name)
	return s.write(e)
}
