package metadata_test

import (
	"os"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
)

// Who asks for the version of a store that was damaged while it was mapped leaves it to be used: the next transaction says that it is
// damaged, and when it was put back it works again.
func TestVersionOfDamaged(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, path string, good []byte){
		"headers": func(t *testing.T, path string, good []byte) {
			overwrite(t, path, make([]byte, min(len(good), 2*os.Getpagesize())))
		},
		"cut off": func(t *testing.T, path string, _ []byte) { must(t, os.Truncate(path, 0)) },
	} {
		t.Run(name, func(t *testing.T) {
			path := create(t)
			s := metadata.New(path, &lock{})
			update(t, s, add(1))
			good, err := os.ReadFile(path)
			must(t, err)
			damage(t, path, good)
			if v, err := s.Version(); v != 0 {
				t.Errorf("version %d, %v", v, err)
			}
			use := func() error { return s.View(t.Context(), func(*metadata.Tx) error { return nil }) }
			mustFail(t, ends(t, use), errs.ErrDamaged)
			overwrite(t, path, good)
			must(t, ends(t, use))
			must(t, ends(t, s.Close))
		})
	}
}

// overwrite writes to the beginning of a file, as it is.
func overwrite(t *testing.T, path string, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt(b, 0)
	must(t, err)
	must(t, f.Close())
}

// ends fails a test where fn waits for ever.
func ends(t *testing.T, fn func() error) error {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- fn() }()
	select {
	case err := <-ended:
		return err
	case <-time.After(time.Minute):
		t.Fatal("it waits for ever")
		return nil
	}
}
