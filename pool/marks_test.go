package pool

import (
	"context"
	"slices"
	"testing"

	"github.com/dmlayer/dmlayer/metadata"
)

// other returns a session of another process on the same pool.
func other(t testing.TB, s *Session) *Session {
	t.Helper()
	h, err := s.p.locks.Holder(context.Background())
	must(t, err)
	t.Cleanup(func() { _ = h.Close() })
	return &Session{p: s.p, holder: h}
}

func TestMarks(t *testing.T) {
	a := testSession(t)
	b := other(t, a)
	want := func(ids ...metadata.ThinID) {
		t.Helper()
		have, err := b.Marked()
		if err != nil || !slices.Equal(have, ids) {
			t.Fatalf("marked are %v, %v, want %v", have, err, ids)
		}
	}
	want()
	for _, id := range []metadata.ThinID{maxThinID, 1, 70000, 70001, 1} { // far apart in a sparse file
		must(t, a.Mark(id))
	}
	want(1, 70000, 70001, maxThinID)
	a.KeepMark(70000)
	must(t, b.ClearMark(70001))
	want(1, 70000, maxThinID)
	a.clearMarks()
	want(70000)
	must(t, b.ClearMark(70000))
	want()
}

// The cursor and the marks lie in one file and leave each other alone.
func TestMarksAndCursor(t *testing.T) {
	s := testSession(t)
	must(t, s.Mark(0))
	must(t, s.writeCursor(cursor{next: 5, high: 64}))
	if ids, err := s.Marked(); err != nil || len(ids) != 1 || ids[0] != 0 {
		t.Errorf("marked: %v, %v", ids, err)
	}
	s.clearMarks()
	if c, known, err := s.readCursor(); err != nil || !known || c.next != 5 {
		t.Errorf("cursor: %v, %v, %v", c, known, err)
	}
}
