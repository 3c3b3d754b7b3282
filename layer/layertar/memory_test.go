package layertar_test

import (
	"archive/tar"
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer/layertar"
)

// maxMemory is what applying a layer takes at most, whatever is in it.
const maxMemory = 100 << 20

// childEnv is "COUNT DIRECTORY FLOOD" for a child, which applies a flood in a process of its own.
// countEnv is how many entries the floods have that can have any number; a million takes minutes.
const (
	childEnv = "DMLAYER_LAYERTAR_TEST_CHILD"
	countEnv = "DMLAYER_LAYERTAR_TEST_ENTRIES"
)

// floods are archives that want much memory. They are made while they are read.
var floods = map[string]func(w *flood, n int){
	"in one directory": func(w *flood, n int) {
		for i := range n {
			w.entry(fmt.Sprintf("d/f%d", i), tar.TypeSymlink)
		}
	},
	"in a directory of the lower layer": func(w *flood, n int) {
		for i := range n {
			w.entry(fmt.Sprintf("lower/f%d", i), tar.TypeSymlink)
		}
		w.entry("lower/.wh..wh..opq", tar.TypeReg)
	},
	"nested": func(w *flood, n int) {
		for i := range n {
			w.entry(fmt.Sprintf("%d/%d/%d/%d", i%10, i/10%10, i/100%100, i), tar.TypeReg)
		}
	},
	"deep": func(w *flood, n int) {
		for i := range n / 1000 {
			w.entry(fmt.Sprintf("%d/%sf", i, strings.Repeat("d/", 1000)), tar.TypeReg)
		}
	},
	"long names, and an opaque marker": func(w *flood, n int) {
		for i := range n / 4 {
			w.entry(fmt.Sprintf("lower/%0240d", i), tar.TypeSymlink)
		}
		w.entry("lower/.wh..wh..opq", tar.TypeReg)
	},
	"opaque markers": func(w *flood, n int) { // hours, if each looked at all files
		for i := range n / 4 {
			w.entry(fmt.Sprintf("lower/%d", i), tar.TypeSymlink)
		}
		for range n / 4 {
			w.entry("lower/.wh..wh..opq", tar.TypeReg)
			w.entry(".wh.lower", tar.TypeReg)
		}
	},
	"the same again": func(w *flood, n int) {
		for range n {
			w.entry("d/f", tar.TypeSymlink)
		}
	},
	"by links": func(w *flood, n int) {
		for i := range n / 20 {
			link := fmt.Sprintf("l%d-%0230d", i, i)
			w.entry(link, tar.TypeSymlink)
			w.entry(link+"/x", tar.TypeReg)
		}
	},
	"warnings": func(w *flood, _ int) {
		for i := range 300 {
			w.raw(pax("SCHILY.xattr.nonsense."+strings.Repeat("\x1b", 230), "1"), raw{name: fmt.Sprint(i), typ: tar.TypeReg})
		}
	},
	"PAX headers": func(w *flood, n int) {
		h := pax("comment", strings.Repeat("x", 1<<19))
		for range n / 1000 {
			w.raw(h)
		}
		w.raw(raw{name: "f", typ: tar.TypeReg})
	},
	"sparse maps": func(w *flood, n int) {
		numbers := make([]int64, 80_000) // near the most that the library takes
		for i := 0; i < len(numbers); i += 2 {
			numbers[i] = int64(i)
		}
		sparse := sparseOld(1<<20, "", numbers...)
		for range n / 20_000 {
			w.bytes(sparse[:len(sparse)-1024])
		}
	},
	"trailing zeros": func(w *flood, _ int) {
		w.entry("f", tar.TypeReg)
		for range 1024 {
			w.bytes(make([]byte, 1<<20))
		}
	},
}

// A flood writes an archive and gives up at the first error.
type flood struct{ w *bufio.Writer }

func (f *flood) bytes(b []byte) {
	if _, err := f.w.Write(b); err != nil {
		panic(err)
	}
}

func (f *flood) raw(all ...raw) {
	for _, r := range all {
		f.bytes(r.bytes())
	}
}

// entry writes an entry; a symbolic link leads to the directory "lower".
func (f *flood) entry(name string, typ byte) {
	if len(name) > 100 {
		f.raw(raw{typ: tar.TypeGNULongName, gnu: true, body: name + "\x00"})
	}
	r := raw{name: name[:min(len(name), 100)], typ: typ, gnu: true}
	if typ == tar.TypeSymlink {
		r.at = map[int]string{157: "/lower"}
	}
	f.raw(r)
}

// child applies a flood and prints how much memory that took.
func child() int {
	args := strings.SplitN(os.Getenv(childEnv), " ", 3)
	n, err := strconv.Atoi(args[0])
	if err != nil {
		panic(err)
	}
	r, w := io.Pipe()
	go func() {
		f := &flood{bufio.NewWriterSize(w, 1<<20)}
		floods[args[2]](f, n)
		f.bytes(make([]byte, 1024))
		if err := f.w.Flush(); err != nil {
			panic(err)
		}
		w.Close()
	}()
	rec := layertar.NewRecorder(r, io.Discard)
	_, err = layertar.Apply(context.Background(), args[1], rec, layertar.ApplyOptions{})
	if cerr := rec.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 1
	}
	os.Stdout.Write(status)
	return 0
}

var peakLine = regexp.MustCompile(`(?m)^VmHWM:\s+(\d+) kB$`)

func TestHostileMemory(t *testing.T) {
	testenv.Need(t, testenv.Root)
	n := 20_000
	if count, err := strconv.Atoi(os.Getenv(countEnv)); err == nil {
		n = count
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name := range floods {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			if err := unix.Mount("tmpfs", root, "tmpfs", 0, "nr_inodes=0"); err != nil { // quick, and not counted
				t.Fatal(err)
			}
			defer umount(t, root)
			if err := os.Mkdir(filepath.Join(root, "lower"), 0o755); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), exe)
			cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s %s", childEnv, n, root, name))
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			m := peakLine.FindSubmatch(out)
			if m == nil {
				t.Fatalf("no peak in %q", out)
			}
			kib, _ := strconv.Atoi(string(m[1]))
			t.Logf("%d MiB", kib>>10)
			if kib<<10 > maxMemory {
				t.Errorf("took %d MiB of memory at some time", kib>>10)
			}
		})
	}
}
