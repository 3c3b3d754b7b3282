package pool

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
)

const oldLife, newLife = 7 << tagBits, 9 << tagBits

// renewing makes a pool's folder as it is once a renewal has prepared everything.
func renewing(t *testing.T, tid uint64, blobs bool) *Session {
	t.Helper()
	p := &Pool{files: files{dirs: Dirs{Root: filepath.Join(t.TempDir(), "a [strange] root")}, name: "p"}}
	must(t, os.MkdirAll(p.files.dir(), 0o700))
	places := p.files.renewal(newLife)
	content := map[string]string{p.files.metadata(): "old", places.metadata: "new"}
	if blobs {
		content[filepath.Join(p.files.blobs(), "9", "tar")] = "nine"
		content[filepath.Join(places.blobs, "1", "tar")] = "nine"
	}
	for path, text := range content {
		must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		must(t, os.WriteFile(path, []byte(text), 0o600))
	}
	record := metadata.Pool{Name: "p", UUID: "00112233445566778899aabbccddeeff", State: metadata.PoolReady, BlockSize: 65536, BaseSize: 1 << 30, TransactionID: tid, LowID: 1, HighID: 1}
	must(t, metadata.Restore(p.files.store(), &metadata.Copy{Taken: time.Now(), Pool: record}))
	s := &Session{p: p, Records: metadata.New(p.files.store(), unlocked{})}
	t.Cleanup(func() { must(t, s.Records.Close()) })
	return s
}

// wantLife wants all of one life in its place, and nothing else.
func wantLife(t *testing.T, s *Session, metadataText, blob string) {
	t.Helper()
	text, err := os.ReadFile(s.p.files.metadata())
	must(t, err)
	if string(text) != metadataText {
		t.Errorf("metadata is the %s one", text)
	}
	var found []string
	for _, dir := range named(s.p.files.blobs(), func(string) bool { return true }) {
		found = append(found, named(dir, func(string) bool { return true })...)
	}
	if blob != "" && (len(found) != 1 || found[0] != filepath.Join(s.p.files.blobs(), blob, "tar")) || blob == "" && len(found) > 0 {
		t.Errorf("side files: %v", found)
	}
	if left := s.p.files.renewals(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A renewal that was not recorded has not been.
func TestRenewalNotRecorded(t *testing.T) {
	s := renewing(t, oldLife, true)
	must(t, s.finishPrepared(context.Background(), loopback{files: s.p.files}))
	wantLife(t, s, "old", "9")
	must(t, s.finishPrepared(context.Background(), loopback{files: s.p.files}))
	wantLife(t, s, "old", "9")
}

var errStop = errors.New("stopped here")

// One that was recorded is finished, however often that is interrupted.
func TestRenewalRecorded(t *testing.T) {
	for _, blobs := range []bool{true, false} {
		blob := ""
		if blobs {
			blob = "1"
		}
		for _, point := range []string{"", "pool.renew.side-files", "pool.renew.swapped"} {
			s := renewing(t, newLife, blobs)
			if point != "" {
				fault.Set(func(name string) error {
					if name == point {
						return errStop
					}
					return nil
				})
				err := s.finishPrepared(context.Background(), loopback{files: s.p.files})
				fault.Set(nil)
				if !errors.Is(err, errStop) || len(s.p.files.renewals()) == 0 {
					t.Fatalf("%s: %v, left %v", point, err, s.p.files.renewals())
				}
			}
			must(t, s.finishPrepared(context.Background(), loopback{files: s.p.files}))
			wantLife(t, s, "new", blob)
			must(t, s.finishPrepared(context.Background(), loopback{files: s.p.files}))
			wantLife(t, s, "new", blob)
		}
	}
}

// The instant between the two renames of the side files.
func TestRenewalBetweenRenames(t *testing.T) {
	s := renewing(t, newLife, true)
	must(t, os.Rename(s.p.files.blobs(), s.p.files.renewal(newLife).replaced))
	must(t, s.finishPrepared(context.Background(), loopback{files: s.p.files}))
	wantLife(t, s, "new", "1")
}
