package fsutil_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/testenv"
)

func numbers(loops []fsutil.LoopInfo) []int {
	var n []int
	for _, l := range loops {
		n = append(n, l.Number)
	}
	return n
}

func find(t *testing.T, path string) []fsutil.LoopInfo {
	t.Helper()
	found, err := fsutil.FindLoops(path)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestAttach(t *testing.T) {
	testenv.Need(t, testenv.Loop)
	file := newFile(t, 1<<20)
	l := attach(t, fsutil.LoopOptions{Path: file, BlockSize: 4096})
	if l.Path != fmt.Sprintf("/dev/loop%d", l.Number) || l.DevNum.Major != 7 || l.DirectIO {
		t.Errorf("%+v", l)
	}
	if size, err := fsutil.SizeOf(l.File); err != nil || size != 1<<20 {
		t.Errorf("size %d, %v", size, err)
	}
	if n, err := fsutil.DevNumOf(l.Path); err != nil || n != l.DevNum || n.String() != fmt.Sprintf("7:%d", n.Minor) {
		t.Errorf("%v, %v", n, err)
	}
	content := bytes.Repeat([]byte("loop"), 1024)
	if _, err := l.File.WriteAt(content, 4096); err != nil {
		t.Fatal(err)
	}
	if err := fsutil.Flush(l.File); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(got[4096:8192], content) {
		t.Errorf("the file has not what was written, %v", err)
	}
	found := find(t, file)
	if len(found) != 1 || found[0].Number != l.Number || found[0].ReadOnly || !found[0].Autoclear || found[0].BackingFile != file {
		t.Errorf("found %+v", found)
	}
	logical, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/queue/logical_block_size", l.Number))
	if err != nil || string(logical) != "4096\n" {
		t.Errorf("logical block size %q, %v", logical, err)
	}
}

func TestAttachReadOnly(t *testing.T) {
	testenv.Need(t, testenv.Loop)
	file := newFile(t, 1<<20)
	l := attach(t, fsutil.LoopOptions{Path: file, ReadOnly: true})
	if _, err := l.File.WriteAt([]byte("x"), 0); err == nil {
		t.Error("it can be written to")
	}
	if found := find(t, file); len(found) != 1 || !found[0].ReadOnly {
		t.Errorf("found %+v", found)
	}
}

// Direct I/O is what the kernel says it is, not what was asked for.
func TestAttachDirectIO(t *testing.T) {
	testenv.Need(t, testenv.Loop)
	l := attach(t, fsutil.LoopOptions{Path: newFile(t, 1<<20), DirectIO: true})
	dio, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/loop/dio", l.Number))
	if err != nil || (string(dio) == "1\n") != l.DirectIO {
		t.Errorf("we say %v, sysfs says %q, %v", l.DirectIO, dio, err)
	}
	t.Logf("direct I/O on %s: %v", t.TempDir(), l.DirectIO)
}

func TestAttachRefuses(t *testing.T) {
	testenv.Need(t, testenv.Loop)
	for name, tc := range map[string]struct {
		o     fsutil.LoopOptions
		class error
	}{
		"no file":    {fsutil.LoopOptions{Path: filepath.Join(t.TempDir(), "none")}, errs.ErrNotFound},
		"directory":  {fsutil.LoopOptions{Path: t.TempDir(), ReadOnly: true}, errs.ErrInvalid},
		"block size": {fsutil.LoopOptions{Path: newFile(t, 1<<20), BlockSize: 1000}, errs.ErrInvalid},
	} {
		if l, err := fsutil.Attach(t.Context(), tc.o); !errors.Is(err, tc.class) {
			t.Errorf("%s: %+v, %v", name, l, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := fsutil.Attach(ctx, fsutil.LoopOptions{Path: newFile(t, 1<<20)}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// Several attach at once: each gets a device of its own, and nothing is left when they close.
func TestAttachTogether(t *testing.T) {
	testenv.Need(t, testenv.Loop)
	const n = 12
	loops := make([]*fsutil.Loop, n)
	files := make([]string, n)
	for i := range files {
		files[i] = newFile(t, 1<<20)
	}
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			l, err := fsutil.Attach(t.Context(), fsutil.LoopOptions{Path: files[i], Autoclear: true})
			if err != nil {
				t.Error(err)
				return
			}
			loops[i] = l
		})
	}
	wg.Wait()
	seen := map[int]bool{}
	for i, l := range loops {
		if l == nil {
			continue
		}
		if seen[l.Number] {
			t.Errorf("loop%d was given twice", l.Number)
		}
		seen[l.Number] = true
		if found := find(t, files[i]); !slices.Equal(numbers(found), []int{l.Number}) {
			t.Errorf("found %+v, want loop%d", found, l.Number)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if found := find(t, files[i]); len(found) != 0 {
			t.Errorf("autoclear left %+v", found)
		}
	}
}

// A free device that somebody has open exclusively is passed over.
func TestAttachPassesOverClaimedDevice(t *testing.T) {
	testenv.Need(t, testenv.Loop)
	first, err := fsutil.Attach(t.Context(), fsutil.LoopOptions{Path: newFile(t, 1<<20), Autoclear: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	claimed, err := fsutil.OpenExclusive(first.Path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer claimed.Close()
	second := attach(t, fsutil.LoopOptions{Path: newFile(t, 1<<20)})
	if second.Number == first.Number {
		t.Errorf("loop%d was claimed", first.Number)
	}
}

func TestFindLoops(t *testing.T) {
	testenv.Need(t, testenv.Loop)
	for _, name := range []string{"plain", "with space", "new\nline", "x (deleted)", `back\slash`, "ümlaut"} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "dir")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, name)
			if err := fsutil.Allocate(t.Context(), path, 1<<20, fsutil.Sparse); err != nil {
				t.Fatal(err)
			}
			l := attach(t, fsutil.LoopOptions{Path: path})
			check := func(what, path string, want ...int) {
				t.Helper()
				if got := numbers(find(t, path)); !slices.Equal(got, want) {
					t.Errorf("%s: found %v, want %v", what, got, want)
				}
			}
			check("as it is", path, l.Number)
			link := filepath.Join(t.TempDir(), "link")
			if err := os.Link(path, link); err != nil {
				t.Fatal(err)
			}
			check("another name", link, l.Number)
			moved := dir + " moved"
			if err := os.Rename(dir, moved); err != nil {
				t.Fatal(err)
			}
			path = filepath.Join(moved, name)
			check("directory renamed", path, l.Number)
			if found := find(t, path); len(found) == 1 && (found[0].BackingFile != path || found[0].Deleted) {
				t.Errorf("%+v", found[0])
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			check("deleted", path, l.Number)
			if found := find(t, path); len(found) == 1 && (found[0].BackingFile != path || !found[0].Deleted) {
				t.Errorf("%+v", found[0])
			}
			if err := fsutil.Allocate(t.Context(), path, 1<<20, fsutil.Sparse); err != nil {
				t.Fatal(err)
			}
			check("another file of that name", path)
		})
	}
}

func TestAttachTwice(t *testing.T) {
	testenv.Need(t, testenv.Loop)
	file := newFile(t, 1<<20)
	a := attach(t, fsutil.LoopOptions{Path: file})
	b := attach(t, fsutil.LoopOptions{Path: file})
	got := numbers(find(t, file))
	slices.Sort(got)
	want := []int{a.Number, b.Number}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("found %v, want %v", got, want)
	}
}

func TestLoopAt(t *testing.T) {
	testenv.Need(t, testenv.Loop)
	file := newFile(t, 1<<20)
	l := attach(t, fsutil.LoopOptions{Path: file})
	info, attached, err := fsutil.LoopAt(l.DevNum)
	if err != nil || !attached || info.Number != l.Number || !info.IsFile(file) || info.IsFile(newFile(t, 1<<20)) {
		t.Errorf("%+v, attached: %v, %v", info, attached, err)
	}
	if err := errors.Join(l.Close(), fsutil.Detach(t.Context(), l.Number)); err != nil {
		t.Fatal(err)
	}
	if info, attached, err := fsutil.LoopAt(l.DevNum); err != nil || attached {
		t.Errorf("detached: %+v, %v, %v", info, attached, err)
	}
	if _, _, err := fsutil.LoopAt(fsutil.DevNum{Major: 7, Minor: 1 << 19}); !errors.Is(err, errs.ErrNotFound) {
		t.Errorf("a device that is not there: %v", err)
	}
}

func attachForever(t *testing.T, file string) int {
	t.Helper()
	l, err := fsutil.Attach(t.Context(), fsutil.LoopOptions{Path: file})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := numbers(find(t, file)); !slices.Equal(got, []int{l.Number}) {
		t.Fatalf("without autoclear, found %v", got)
	}
	return l.Number
}

func TestDetach(t *testing.T) {
	testenv.Need(t, testenv.Loop)
	file := newFile(t, 1<<20)
	n := attachForever(t, file)
	for range 2 { // the second time it is not attached
		if err := fsutil.Detach(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		if found := find(t, file); len(found) != 0 {
			t.Errorf("found %+v", found)
		}
	}
	if _, attached, err := fsutil.LoopOf(n); attached || err != nil {
		t.Errorf("attached: %v, %v", attached, err)
	}
	if err := fsutil.Detach(t.Context(), 999999); err != nil {
		t.Errorf("a device that does not exist: %v", err)
	}
}

func TestDetachWaitsForOthers(t *testing.T) {
	testenv.Need(t, testenv.Loop)
	file := newFile(t, 1<<20)
	n := attachForever(t, file)
	user, err := fsutil.OpenDevice(fmt.Sprintf("/dev/loop%d", n), false)
	if err != nil {
		t.Fatal(err)
	}
	defer user.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err = fsutil.Detach(ctx, n)
	if !errors.Is(err, errs.ErrBusy) || !errors.Is(err, context.DeadlineExceeded) || errs.Hint(err) == "" {
		t.Errorf("got %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- fsutil.Detach(t.Context(), n) }()
	if err := user.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if found := find(t, file); len(found) != 0 {
		t.Errorf("found %+v", found)
	}
}

func TestSetCapacity(t *testing.T) {
	testenv.Need(t, testenv.Loop)
	file := newFile(t, 1<<20)
	l := attach(t, fsutil.LoopOptions{Path: file})
	for i, set := range []func() error{l.SetCapacity, func() error { return fsutil.SetLoopCapacity(l.Number) }} {
		want := uint64(i+2) << 20
		if err := fsutil.Extend(t.Context(), file, want, fsutil.Full); err != nil {
			t.Fatal(err)
		}
		if err := set(); err != nil {
			t.Fatal(err)
		}
		if size, err := fsutil.DeviceSize(l.Path); err != nil || size != want {
			t.Errorf("size %d, %v, want %d", size, err, want)
		}
	}
}

func TestDiscard(t *testing.T) {
	testenv.Need(t, testenv.Loop)
	file := filepath.Join(t.TempDir(), "full")
	if err := fsutil.Allocate(t.Context(), file, 8<<20, fsutil.Full); err != nil {
		t.Fatal(err)
	}
	l := attach(t, fsutil.LoopOptions{Path: file})
	before := allocated(t, file)
	if before < 8<<20 {
		t.Fatalf("only %d bytes are allocated", before)
	}
	if err := fsutil.Discard(l.File, 1<<20, 4<<20); err != nil {
		t.Fatal(err)
	}
	if freed := before - allocated(t, file); freed < 4<<20 {
		t.Errorf("%d bytes were freed", freed)
	}
	if err := fsutil.Discard(l.File, 1, 1); !errors.Is(err, errs.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	if err := fsutil.Discard(l.File, 0, 0); err != nil {
		t.Errorf("got %v", err)
	}
}

func TestOpenExclusive(t *testing.T) {
	testenv.Need(t, testenv.Loop)
	l := attach(t, fsutil.LoopOptions{Path: newFile(t, 1<<20)})
	f, err := fsutil.OpenExclusive(l.Path, true)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := fsutil.DevNumOfFile(f); err != nil || n != l.DevNum {
		t.Errorf("%v, %v", n, err)
	}
	if _, err := fsutil.OpenExclusive(l.Path, false); !errors.Is(err, errs.ErrBusy) {
		t.Errorf("claimed twice: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	mustBeFree(t, l.Path)
	if _, err := fsutil.OpenExclusive("/dev/null", false); !errors.Is(err, errs.ErrInvalid) {
		t.Errorf("a character device: %v", err)
	}
	if _, err := fsutil.OpenDevice("/dev/nowhere", false); !errors.Is(err, errs.ErrNotFound) {
		t.Errorf("no device: %v", err)
	}
}
