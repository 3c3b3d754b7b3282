package testenv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

func TestCheckedFindsAnOpenFile(t *testing.T) {
	for code, want := range map[int]int{0: ExitLeak, 1: 1} {
		path := fmt.Sprintf("%s/left-%d", t.TempDir(), code)
		var f *os.File
		var out bytes.Buffer
		got := checked(func() int {
			var err error
			if f, err = os.Create(path); err != nil {
				t.Fatal(err)
			}
			return code
		}, &out)
		if got != want || !strings.Contains(out.String(), "open file "+path) {
			t.Errorf("exit code %d, want %d; said %q", got, want, out.String())
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCheckedIsSilentWhenNothingIsLeft(t *testing.T) {
	var out bytes.Buffer
	if got := checked(func() int { return 7 }, &out); got != 7 || out.Len() > 0 {
		t.Errorf("exit code %d, said %q", got, out.String())
	}
}

func TestSettledWaits(t *testing.T) {
	looks := 0
	if got := settled(func() []string {
		if looks++; looks < 3 {
			return []string{"going away"}
		}
		return nil
	}); got != nil || looks != 3 {
		t.Errorf("got %q after %d looks", got, looks)
	}
}

// fakeTB records how a test ended. Its methods end the goroutine, as those of a real one do.
type fakeTB struct {
	testing.TB
	end string
}

type ended struct{}

func (f *fakeTB) Helper() {}
func (f *fakeTB) Fatalf(format string, args ...any) {
	f.end = "fatal: " + fmt.Sprintf(format, args...)
	panic(ended{})
}
func (f *fakeTB) Skipf(format string, args ...any) {
	f.end = "skip: " + fmt.Sprintf(format, args...)
	panic(ended{})
}

func needOf(features ...Feature) string {
	f := &fakeTB{}
	func() {
		defer func() {
			if e := recover(); e != nil && e != (ended{}) {
				panic(e)
			}
		}()
		Need(f, features...)
	}()
	return f.end
}

func TestNeed(t *testing.T) {
	const here, absent Feature = "test-here", "test-absent"
	probes[here] = func() error { return nil }
	probes[absent] = func() error { return errors.New("nowhere") }
	t.Cleanup(func() { delete(probes, here); delete(probes, absent) })
	for _, c := range []struct {
		require  string
		features []Feature
		want     string
	}{
		{"", []Feature{here}, ""},
		{"", []Feature{here, absent}, "skip: needs test-absent: nowhere"},
		{"root,test-here", []Feature{absent}, "skip: needs test-absent: nowhere"},
		{"root, test-absent", []Feature{here, absent}, "fatal: required feature test-absent is missing: nowhere"},
		{"test-absent-not", []Feature{absent}, "skip: needs test-absent: nowhere"},
		{"", []Feature{"test-misspelt"}, `fatal: testenv knows no feature "test-misspelt"`},
	} {
		t.Setenv("DMLAYER_TEST_REQUIRE", c.require)
		if got := needOf(c.features...); got != c.want {
			t.Errorf("require %q, need %v: got %q, want %q", c.require, c.features, got, c.want)
		}
	}
}

func TestScale(t *testing.T) {
	for kind, want := range map[string]time.Duration{"": time.Second, "none": time.Second, "uml": 10 * time.Second, "qemu": 20 * time.Second} {
		t.Setenv("DMLAYER_VM", kind)
		if got := Scale(time.Second); got != want {
			t.Errorf("%q: got %v, want %v", kind, got, want)
		}
	}
}
