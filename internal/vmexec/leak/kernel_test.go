package leak_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/internal/vmexec/leak"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestKernelObjectsAreSeen(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.Dmsetup)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	before := leak.Kernel()
	loop := must(t, "losetup", "-f", "--show", file)
	defer must(t, "losetup", "-d", loop)
	// A device without a table has no entry in sysfs.
	must(t, "dmsetup", "create", "--notable", "leak-test")
	defer must(t, "dmsetup", "remove", "leak-test")
	must(t, "mount", "-t", "tmpfs", "none", dir)
	defer must(t, "umount", dir)
	want := []string{
		"dm device leak-test",
		"loop device " + filepath.Base(loop) + " (" + file + ")",
		"mount " + dir + " (tmpfs, none)",
	}
	if got := leak.Kernel().Since(before); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
