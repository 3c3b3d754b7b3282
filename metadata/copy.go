package metadata

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// Copy is all that a store held at one moment.
type Copy struct {
	Taken      time.Time
	Version    uint64 // of the store, see Store.Version
	Pool       Pool
	Nodes      []Node
	Tombstones []Tombstone
	Documents  []Document
}

// A copy is written as text that people can read too: one JSON object a line. The first line describes the copy
// and has the pool's record; each of the others has one record; the last has their number and the
// SHA-256 of all lines before it, so that a copy that is cut off or changed is never taken for a whole one.
const copyFormat = "dmlayer records"

// MaxCopySize bounds what is read as a copy.
const MaxCopySize = 256 << 20

type copyHead struct {
	Format  string    `json:"format"`
	Schema  int       `json:"schema"`
	Taken   time.Time `json:"taken"`
	Version uint64    `json:"version"`
	Pool    Pool      `json:"pool"`
}

type copyLine struct {
	Node      *Node      `json:"node,omitempty"`
	Tombstone *Tombstone `json:"tombstone,omitempty"`
	Document  *Document  `json:"document,omitempty"`
	copyEnd
}

type copyEnd struct {
	Records *int   `json:"records,omitempty"`
	SHA256  string `json:"sha256,omitempty"`
}

// WriteCopy writes all records as a copy. Records are not looked into, so that the transaction is short:
// ReadCopy tells whether they are sound.
func (tx *Tx) WriteCopy(w io.Writer, taken time.Time) error {
	pool, err := tx.Pool()
	if err != nil {
		return err
	}
	sum := sha256.New()
	out := io.MultiWriter(w, sum)
	head := copyHead{Format: copyFormat, Schema: SchemaVersion, Taken: taken.UTC(), Version: tx.Version(), Pool: pool}
	if err := writeLine(out, head); err != nil {
		return err
	}
	records := 0
	var line []byte
	for _, kind := range []struct {
		bucket []byte
		head   string
	}{{bucketNodes, `{"node":`}, {bucketTombs, `{"tombstone":`}, {bucketDocs, `{"document":`}} {
		err := tx.b.Bucket(kind.bucket).ForEach(func(_, record []byte) error {
			records++
			line = append(append(append(line[:0], kind.head...), record...), "}\n"...)
			_, err := out.Write(line)
			return err
		})
		if err != nil {
			return err
		}
	}
	return writeLine(w, copyEnd{Records: &records, SHA256: hex.EncodeToString(sum.Sum(nil))})
}

func writeLine(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err == nil {
		_, err = w.Write(append(b, '\n'))
	}
	return err
}

// ReadCopy reads a copy and checks that it is whole and that its records fit together. What is not is ErrDamaged, what
// another version of dmlayer wrote ErrUnsupported.
func ReadCopy(r io.Reader) (*Copy, error) {
	p := copyReader{r: bufio.NewReader(io.LimitReader(r, MaxCopySize+1)), sum: sha256.New()}
	c, err := p.read()
	if err == nil {
		err = c.check()
	}
	if err != nil {
		return nil, fmt.Errorf("copy of the records: %w", err)
	}
	return c, nil
}

type copyReader struct {
	r       *bufio.Reader
	sum     hash.Hash
	records int
}

func (p *copyReader) read() (*Copy, error) {
	line, err := p.line()
	if err != nil {
		return nil, err
	}
	var head copyHead
	if err := json.Unmarshal(line, &head); err != nil || head.Format != copyFormat {
		return nil, fmt.Errorf("it does not begin as one: %w", errs.ErrDamaged)
	}
	if err := knownSchema(head.Schema); err != nil {
		return nil, err
	}
	p.sum.Write(line)
	c := &Copy{Taken: head.Taken, Version: head.Version, Pool: head.Pool}
	for {
		line, err := p.line()
		if err != nil {
			return nil, err
		}
		var l copyLine
		if err := json.Unmarshal(line, &l); err != nil {
			return nil, fmt.Errorf("record %d: %w: %w", p.records+1, err, errs.ErrDamaged)
		}
		if l.Records != nil {
			return c, p.end(l.copyEnd)
		}
		p.sum.Write(line)
		p.records++
		if err := c.add(l); err != nil {
			return nil, fmt.Errorf("record %d: %w", p.records, err)
		}
	}
}

func (p *copyReader) line() ([]byte, error) {
	line, err := p.r.ReadBytes('\n')
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("it is cut off: %w", errs.ErrDamaged)
	}
	return line, err
}

func (p *copyReader) end(end copyEnd) error {
	if *end.Records != p.records || end.SHA256 != hex.EncodeToString(p.sum.Sum(nil)) {
		return fmt.Errorf("wrong checksum: %w", errs.ErrDamaged)
	}
	switch _, err := p.r.ReadByte(); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("something follows its end: %w", errs.ErrDamaged)
}

func (c *Copy) add(l copyLine) error {
	switch {
	case l.Node != nil:
		c.Nodes = append(c.Nodes, *l.Node)
	case l.Tombstone != nil:
		c.Tombstones = append(c.Tombstones, *l.Tombstone)
	case l.Document != nil:
		c.Documents = append(c.Documents, *l.Document)
	default:
		return fmt.Errorf("of no kind: %w", errs.ErrDamaged)
	}
	return nil
}

// CopyOf returns the copy of the store as it is.
func CopyOf(tx *Tx, taken time.Time) (*Copy, error) {
	var b bytes.Buffer
	if err := tx.WriteCopy(&b, taken); err != nil {
		return nil, err
	}
	return ReadCopy(&b)
}
