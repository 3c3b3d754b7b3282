package pooltest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// A disk that a test has left open is not waited for, and it is said who has it.
func TestDetachSaysWho(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop)
	file := filepath.Join(t.TempDir(), "disk")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(file, make([]byte, 1<<20), 0o600))
	loop, err := fsutil.Attach(Context(t), fsutil.LoopOptions{Path: file, Autoclear: true})
	must(err)
	open, err := os.Open(loop.Path)
	must(err)
	dm, err := devmapper.Open()
	must(err)
	defer dm.Close()
	top := devmapper.ByUUID("TEST-pooltest")
	_, err = dm.Create("pooltest-top", "TEST-pooltest")
	must(err)
	must(dm.Load(top, devmapper.LoadOptions{}, devmapper.Target{Length: 8, Type: "linear", Params: loop.Path + " 0"}))
	_, err = dm.Resume(top, devmapper.ResumeOptions{})
	must(err)

	err = detach(loop, time.Nanosecond)
	for _, word := range []string{"pooltest-top", "open in the test itself"} {
		if !errors.Is(err, errs.ErrBusy) || !strings.Contains(err.Error(), word) {
			t.Errorf("%v does not say %q", err, word)
		}
	}
	_, err = dm.Remove(top, devmapper.RemoveOptions{})
	must(errors.Join(err, open.Close()))
	must(detach(loop, time.Minute))
}
