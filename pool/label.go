package pool

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
)

var (
	pointLabelActive      = fault.New("pool.label.active")
	pointRepairUnlabelled = fault.New("pool.repair.unlabelled")
)

// The label lies at the start of thin device 0: magic, length (u32, little endian), JSON, CRC-32C of
// the JSON. Virtual size costs nothing; the rest is kept for a copy of the records.
const (
	labelMagic  = "dmlayer pool 01\n"
	labelSize   = 1 << 30
	maxLabelLen = 1 << 20
)

// label is what the data itself says of the pool it belongs to.
type label struct {
	UUID     string        `json:"uuid"`
	Settings metadata.Pool `json:"settings"` // as at creation; the window and transaction id there mean nothing
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encodeLabel(l label) ([]byte, error) {
	text, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	b := append([]byte(labelMagic), binary.LittleEndian.AppendUint32(nil, uint32(len(text)))...)
	b = append(b, text...)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(text, castagnoli))
	return append(b, make([]byte, -len(b)&4095)...), nil
}

// decodeLabel reads a label; anything else is ErrDamaged.
func decodeLabel(r io.Reader) (label, error) {
	bad := func(what string) (label, error) {
		return label{}, fmt.Errorf("label: %s: %w", what, errs.ErrDamaged)
	}
	head := make([]byte, len(labelMagic)+4)
	if _, err := io.ReadFull(r, head); err != nil {
		return label{}, fmt.Errorf("read label: %w", err)
	}
	if !bytes.HasPrefix(head, []byte(labelMagic)) {
		return bad("not there")
	}
	n := binary.LittleEndian.Uint32(head[len(labelMagic):])
	if n > maxLabelLen {
		return bad("too long")
	}
	text := make([]byte, n+4)
	if _, err := io.ReadFull(r, text); err != nil {
		return label{}, fmt.Errorf("read label: %w", err)
	}
	if binary.LittleEndian.Uint32(text[n:]) != crc32.Checksum(text[:n], castagnoli) {
		return bad("wrong checksum")
	}
	var l label
	if err := json.Unmarshal(text[:n], &l); err != nil {
		return bad(err.Error())
	}
	if !isUUID(l.UUID) {
		return bad(fmt.Sprintf("the pool's UUID is %q", l.UUID))
	}
	return l, nil
}

// withLabel runs fn on the opened label device.
func (s *Session) withLabel(write bool, fn func(*os.File) error) (err error) {
	p := s.p
	uuid := p.DeviceUUID(labelID)
	spec := thinpool.ThinSpec{
		Name: p.DeviceName(labelID), UUID: uuid, Pool: s.Device, ID: labelID,
		Size: labelSize / devmapper.SectorSize, ReadOnly: !write,
	}
	info, err := thinpool.Activate(p.dm, spec)
	if errors.Is(err, devmapper.ErrExists) { // of a start that died
		if err := p.removeDevice(uuid); err != nil {
			return err
		}
		info, err = thinpool.Activate(p.dm, spec)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.removeDevice(uuid)) }()
	if err := pointLabelActive.Hit(); err != nil {
		return err
	}
	path, err := s.p.DeviceNode(info.Dev)
	if err != nil {
		return err
	}
	f, err := fsutil.OpenDevice(path, write)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	return fn(f)
}

// makeLabel makes thin device 0.
func (s *Session) makeLabel() error { return s.makeLabelOf(s.p.record) }

// makeLabelOf is makeLabel with settings, whose transaction id is the pool's.
func (s *Session) makeLabelOf(settings metadata.Pool) error {
	if err := s.Thin.CreateThin(labelID); err != nil {
		return err
	}
	b, err := encodeLabel(label{UUID: settings.UUID, Settings: settings})
	if err != nil {
		return err
	}
	return s.withLabel(true, func(f *os.File) error {
		if _, err := f.WriteAt(b, 0); err != nil {
			return fmt.Errorf("write label: %w", err)
		}
		return fsutil.Flush(f)
	})
}

// foundLabel is checkLabel, and makes a label that a repair has lost.
func (s *Session) foundLabel() error {
	err := s.checkLabel()
	if err == nil || !s.relabel {
		return err
	}
	if err := s.Writable(); err != nil {
		return err
	}
	if err := s.remakeLabel(); err != nil {
		return err
	}
	return s.checkLabel()
}

// remakeLabel writes the label anew, of a thin device 0 that is made anew: one of which a part is left would tell another life of the pool
// than the records.
func (s *Session) remakeLabel() error {
	if err := s.Thin.Delete(labelID); err != nil && !errors.Is(err, thinpool.ErrNoDevice) {
		return err
	}
	if err := pointRepairUnlabelled.Hit(); err != nil {
		return err
	}
	st, err := s.Thin.Status()
	if err != nil {
		return err
	}
	settings := s.p.record
	settings.TransactionID = st.TransactionID
	return s.makeLabelOf(settings)
}

// checkLabel tells whether data and metadata are this pool's.
func (s *Session) checkLabel() error {
	err := s.withLabel(false, func(f *os.File) error {
		l, err := decodeLabel(f)
		if unreadable(err) {
			return err
		}
		if err != nil {
			return s.p.mispaired("%v", err)
		}
		if l.UUID != s.p.record.UUID {
			return s.p.mispaired("the data belongs to pool %s", l.UUID)
		}
		return nil
	})
	if unreadable(err) {
		err = fmt.Errorf("%w: %w", errUnreadableLabel, err)
	}
	return err
}

// errUnreadableLabel says that nothing tells whose the data is, as the metadata or the disk is damaged where the label was.
var errUnreadableLabel = fmt.Errorf("the label of the pool cannot be read: %w", errs.ErrDamaged)

// unreadable tells whether an error is of damaged metadata or of a disk, rather than of what was read.
func unreadable(err error) bool {
	return badBlock(err) || errors.Is(err, thinpool.ErrDamaged) || errors.Is(err, thinpool.ErrNoDevice)
}
