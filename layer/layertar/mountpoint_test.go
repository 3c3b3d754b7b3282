package layertar_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer/layertar"
)

// TestHostileMounts has other trees mounted inside the one that archives are applied to: they are not part
// of it.
func TestHostileMounts(t *testing.T) {
	testenv.Need(t, testenv.Root)
	open := with(dir("d/mnt"), func(e *entry) { e.Mode, e.Uid = 0o777, 99 })
	for _, tt := range []struct {
		name    string
		entries []entry
	}{
		{"whiteout", []entry{file("d/.wh.mnt", "")}},
		{"whiteout above", []entry{file(".wh.d", "")}},
		{"opaque marker above", []entry{file("d/.wh..wh..opq", "")}},
		{"opaque marker at the root", []entry{file(".wh..wh..opq", "")}},
		{"opaque marker inside", []entry{file("d/mnt/.wh..wh..opq", "")}},
		{"whiteout inside", []entry{file("d/mnt/.wh.canary", "")}},
		{"file inside", []entry{file("d/mnt/x", "1")}},
		{"file instead", []entry{file("d/mnt", "1")}},
		{"symlink instead of what is above", []entry{symlink("d", "e")}},
		{"attributes", []entry{open}},
		{"by a symlink", []entry{symlink("l", "d/mnt"), file("l/canary", "1")}},
		{"hard link", []entry{hardlink("l", "d/mnt/canary")}},
		{"whiteout of a file", []entry{file("e/.wh.bound", "")}},
		{"file instead of a file", []entry{file("e/bound", "1")}},
		{"hard link to a file", []entry{hardlink("l", "e/bound")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCanary(t, t.TempDir())
			mnt, bound := filepath.Join(c.root, "d/mnt"), filepath.Join(c.root, "e/bound")
			for _, p := range []string{mnt, filepath.Dir(bound)} {
				if err := os.MkdirAll(p, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(bound, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			for from, to := range map[string]string{c.outside: mnt, c.outside + "/canary": bound} {
				if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := unix.Unmount(to, unix.MNT_DETACH); err != nil {
						t.Error(err)
					}
				}()
			}
			c.before = c.look(t)
			_, err := tryApply(t, c.root, archive(t, tt.entries...))
			if !errors.Is(err, layertar.ErrBusy) {
				t.Errorf("error %v", err)
			}
			c.check(t)
		})
	}
}
