package pool

import (
	"errors"
	"fmt"
	"io"

	"github.com/dmlayer/dmlayer/metadata"
)

// The lock file also holds a byte for each thin id, from this offset on. It is set while an operation
// is changing what the kernel has of a node (activating, suspending, unmounting it), so that recovery
// finds what a dead process left in between without asking about every device. The file is sparse.
const marksOffset = 4096

// Mark says that the state of a node's device is about to change. Its lock is held. The mark goes when
// the session ends.
func (s *Session) Mark(id metadata.ThinID) error {
	for _, m := range s.marked {
		if m == id {
			return nil
		}
	}
	if _, err := s.holder.WriteAt([]byte{1}, marksOffset+int64(id)); err != nil {
		return fmt.Errorf("mark thin id %d: %w", id, err)
	}
	s.marked = append(s.marked, id)
	return nil
}

// KeepMark leaves a mark behind, for a device that could not be brought to rest: the next to come
// tries again.
func (s *Session) KeepMark(id metadata.ThinID) {
	for i, m := range s.marked {
		if m == id {
			s.marked = append(s.marked[:i], s.marked[i+1:]...)
			return
		}
	}
}

// ClearMark takes away the mark of a device that recovery has brought to rest. Its lock is held.
func (s *Session) ClearMark(id metadata.ThinID) error {
	s.KeepMark(id)
	if _, err := s.holder.WriteAt([]byte{0}, marksOffset+int64(id)); err != nil {
		return fmt.Errorf("clear mark of thin id %d: %w", id, err)
	}
	return nil
}

// Marked returns the ids with a mark, of the living and of the dead.
func (s *Session) Marked() ([]metadata.ThinID, error) {
	var ids []metadata.ThinID
	buf := make([]byte, 64<<10)
	for off := int64(marksOffset); off <= marksOffset+maxThinID; {
		start, err := s.holder.NextData(off)
		if errors.Is(err, io.EOF) {
			return ids, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read marks: %w", err)
		}
		n, err := s.holder.ReadAt(buf, start)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read marks: %w", err)
		}
		for i, b := range buf[:n] {
			if id := start + int64(i) - marksOffset; b != 0 && id >= 0 && id <= maxThinID {
				ids = append(ids, metadata.ThinID(id))
			}
		}
		if n == 0 {
			return ids, nil
		}
		off = start + int64(n)
	}
	return ids, nil
}

// clearMarks ends the session's marks: what it changed is at rest.
func (s *Session) clearMarks() {
	for _, id := range s.marked {
		// A mark that stays costs the next open one look.
		_, _ = s.holder.WriteAt([]byte{0}, marksOffset+int64(id))
	}
	s.marked = s.marked[:0]
}
