package treecmp_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/test/treecmp"
)

// build makes the same small tree each time it is called.
func build(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	must(os.Mkdir(at("d"), 0o755))
	must(os.WriteFile(at("d/f"), []byte("content"), 0o644))
	must(os.WriteFile(at("g"), []byte("other"), 0o644))
	must(os.Link(at("d/f"), at("link")))
	must(os.Symlink("d/f", at("sym")))
	must(unix.Mkfifo(at("fifo"), 0o600))
	for _, name := range []string{"d/f", "g", "sym", "fifo", "d", "."} {
		ts := unix.Timespec{Sec: 1e9, Nsec: 123456789}
		must(unix.UtimesNanoAt(unix.AT_FDCWD, at(name), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}
	return dir
}

func TestEqualTrees(t *testing.T) {
	lines, err := treecmp.Compare(build(t), build(t), treecmp.Options{})
	if err != nil || len(lines) > 0 {
		t.Fatalf("differences %q, error %v", lines, err)
	}
}

func TestDifferences(t *testing.T) {
	tests := []struct {
		name   string
		change func(at func(string) string) error
		want   []string // starts of the lines
	}{
		{"mode", func(at func(string) string) error { return os.Chmod(at("g"), 0o644|os.ModeSetuid) }, []string{"g: mode -rw-r--r--, urw-r--r--"}},
		{"content", func(at func(string) string) error {
			return keepTimes(at("g"), func() error { return os.WriteFile(at("g"), []byte("OTHER"), 0) })
		}, []string{"g: content "}},
		{"size", func(at func(string) string) error {
			return keepTimes(at("g"), func() error { return os.Truncate(at("g"), 4) })
		}, []string{"g: size 5, 4"}},
		{"nanosecond", func(at func(string) string) error {
			return os.Chtimes(at("g"), time.Time{}, time.Unix(1e9, 123456788))
		}, []string{"g: modified 2001-09-09T01:46:40.123456789Z, 2001-09-09T01:46:40.123456788Z"}},
		{"target", func(at func(string) string) error {
			return keepTimes(at("."), func() error {
				return keepTimes(at("sym"), func() error {
					if err := os.Remove(at("sym")); err != nil {
						return err
					}
					return os.Symlink("g", at("sym"))
				})
			})
		}, []string{`sym: link to "d/f", "g"`}},
		{"hard links", func(at func(string) string) error {
			return keepTimes(at("."), func() error {
				return keepTimes(at("link"), func() error {
					if err := os.Remove(at("link")); err != nil {
						return err
					}
					return os.WriteFile(at("link"), []byte("content"), 0o644)
				})
			})
		}, []string{"d/f: links to the same inode: link; none", "link: links to the same inode: d/f; none"}},
		{"type", func(at func(string) string) error {
			return keepTimes(at("."), func() error {
				if err := os.Remove(at("fifo")); err != nil {
					return err
				}
				return os.Mkdir(at("fifo"), 0o600)
			})
		}, []string{"fifo: type prw-------, drw-------"}},
		{"missing", func(at func(string) string) error {
			return keepTimes(at("."), func() error { return os.Remove(at("fifo")) })
		}, []string{"fifo: only in "}},
		{"odd name", func(at func(string) string) error {
			return keepTimes(at("."), func() error { return os.WriteFile(at("a\nb"), nil, 0o600) })
		}, []string{`"a\nb": only in `}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := build(t), build(t)
			if err := tt.change(func(name string) string { return filepath.Join(b, name) }); err != nil {
				t.Fatal(err)
			}
			lines, err := treecmp.Compare(a, b, treecmp.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if len(lines) != len(tt.want) {
				t.Fatalf("differences %q, want %q", lines, tt.want)
			}
			for i := range lines {
				if !strings.HasPrefix(lines[i], tt.want[i]) {
					t.Errorf("difference %q, want %q", lines[i], tt.want[i])
				}
			}
		})
	}
}

// keepTimes sets the modification time of a path back after a change.
func keepTimes(path string, change func() error) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	if err := change(); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{st.Mtim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

func TestOptions(t *testing.T) {
	a, b := build(t), build(t)
	for _, name := range []string{"x", "y", "z"} {
		if err := os.WriteFile(filepath.Join(b, "d", name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	lines, err := treecmp.Compare(a, b, treecmp.Options{
		Ignore:      func(rel string) bool { return rel == "d/x" },
		IgnoreTimes: func(rel string) bool { return rel == "d" },
		Limit:       1,
	})
	if err != nil || len(lines) != 2 || !strings.HasPrefix(lines[0], "d/y: only in ") || lines[1] != "and 1 more" {
		t.Fatalf("differences %q, error %v", lines, err)
	}
}

func TestUnreadable(t *testing.T) {
	if _, err := treecmp.Compare(t.TempDir(), filepath.Join(t.TempDir(), "missing"), treecmp.Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("error %v", err)
	}
}
