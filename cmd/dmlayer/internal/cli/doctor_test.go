package cli

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/pool"
)

func TestCheckKernel(t *testing.T) {
	for release, want := range map[string]string{
		"6.1.0-18-amd64": checkOK, "5.8": checkOK, "5.8.0": checkOK, "5.7.19": checkFail, "4.19.0": checkFail, "6.1-rc3": checkOK,
		"10.0.1": checkOK, "strange": checkWarn, "": checkWarn, "5": checkWarn, "a.b": checkWarn,
	} {
		if c := checkKernel(release, nil); c.Status != want || (c.Status != checkOK) != (c.Advice != "") {
			t.Errorf("checkKernel(%q) = %+v, want %s", release, c, want)
		}
	}
	if c := checkKernel("", errors.New("x")); c.Status != checkWarn || c.Detail != "x" {
		t.Errorf("unknown kernel: %+v", c)
	}
}

func TestCheckPlaces(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	release, err := kernelRelease()
	if err != nil {
		t.Fatal(err)
	}
	there := places{loopControl: write("loop", ""), udev: write("udev", ""), filesystems: write("filesystems", "nodev\ttmpfs\n\text4\n"), modules: filepath.Join(dir, "modules")}
	write("modules/"+release+"/modules.dep", "kernel/fs/xfs/xfs.ko.xz: kernel/lib/libcrc32c.ko.xz\n")
	missing := places{loopControl: "/nonexistent/a", udev: "/nonexistent/b", filesystems: "/nonexistent/c", modules: "/nonexistent/d"}

	if c := there.checkLoop(); c.Status != checkOK {
		t.Errorf("loop: %+v", c)
	}
	if c := missing.checkLoop(); c.Status != checkFail || c.Advice == "" {
		t.Errorf("no loop: %+v", c)
	}
	fs := there.checkFileSystems()
	if fs[0].Status != checkOK || fs[0].Detail != "in the kernel" || fs[1].Status != checkOK || !strings.Contains(fs[1].Detail, "module") {
		t.Errorf("file systems: %+v", fs)
	}
	for _, c := range missing.checkFileSystems() {
		if c.Status != checkWarn || c.Advice == "" {
			t.Errorf("missing: %+v", c)
		}
	}
	if c := there.checkUdev(); c.Status != checkOK || !strings.HasPrefix(c.Detail, "running") {
		t.Errorf("udev: %+v", c)
	}
	if c := missing.checkUdev(); c.Status != checkOK {
		t.Errorf("no udev: %+v", c)
	}
}

func TestCheckTools(t *testing.T) {
	without := func(missing ...string) func(string) (string, error) {
		return func(name string) (string, error) {
			for _, m := range missing {
				if m == name {
					return "", errs.WithHint(errs.ErrUnsupported, "install it")
				}
			}
			return "/sbin/" + name, nil
		}
	}
	failed := func(checks []checkRecord) (names []string) {
		for _, c := range checks {
			if c.Status == checkFail {
				names = append(names, c.Check)
			}
		}
		return names
	}
	if f := failed(checkTools(without())); len(f) > 0 {
		t.Errorf("all there: %q fail", f)
	}
	if f := failed(checkTools(without("mkfs.ext4", "e2fsck"))); len(f) > 0 {
		t.Errorf("xfs can be used: %q fail", f)
	}
	checks := checkTools(without("mkfs.ext4", "mkfs.xfs"))
	if f := failed(checks); len(f) != 1 || checks[0].Advice != "install it" {
		t.Errorf("neither: %+v", checks)
	}
}

func TestCheckPool(t *testing.T) {
	taken := uint64(16_000_000)
	for _, tc := range []struct {
		name string
		p    pool.Status
		err  error
		want string
	}{
		{"inactive", pool.Status{State: pool.StateInactive}, nil, checkOK},
		{"active", pool.Status{State: pool.StateActive, DataUsed: size(1), DataTotal: size(100)}, nil, checkOK},
		{"data", pool.Status{State: pool.StateActive, DataUsed: size(81), DataTotal: size(100)}, nil, checkWarn},
		{"metadata", pool.Status{State: pool.StateActive, DataUsed: size(1), DataTotal: size(100), MetadataUsed: size(90), MetadataTotal: size(100)}, nil, checkWarn},
		{"full", pool.Status{State: pool.StateOutOfDataSpace}, nil, checkWarn},
		{"read-only", pool.Status{State: pool.StateReadOnly}, nil, checkWarn},
		{"check", pool.Status{State: pool.StateNeedsCheck}, nil, checkWarn},
		{"failed", pool.Status{State: pool.StateFailed}, nil, checkWarn},
		{"old", pool.Status{State: pool.StateActive, SnapshotsTaken: &taken, SnapshotLimit: 1 << 24, IDLimit: 1 << 24}, nil, checkWarn},
		{"old ids", pool.Status{State: pool.StateActive, SnapshotLimit: 1 << 24, IDsTaken: taken, IDLimit: 1 << 24}, nil, checkWarn},
		{"not so old", pool.Status{State: pool.StateActive, SnapshotLimit: 1 << 24, IDsTaken: taken - 2_000_000, IDLimit: 1 << 24}, nil, checkOK},
		{"damaged", pool.Status{}, errs.WithHint(errs.ErrDamaged, "do this"), checkWarn},
	} {
		c := checkPool("p", tc.p, tc.err)
		if c.Status != tc.want || (c.Status == checkWarn) != (c.Advice != "") {
			t.Errorf("%s: %+v, want %s", tc.name, c, tc.want)
		}
	}
}

func TestCheckDirs(t *testing.T) {
	dir := t.TempDir()
	at, _, err := existing(filepath.Join(dir, "a", "b"))
	if err != nil || at != dir {
		t.Errorf("existing: %q, %v, want %q", at, err, dir)
	}
	if c := checkRootDir(filepath.Join(dir, "a")); !strings.Contains(c.Detail, "free") {
		t.Errorf("root directory: %+v", c)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if c := checkRunDir(dir); c.Status == checkOK == (c.Advice != "") {
		t.Errorf("run directory: %+v", c)
	}
}

func TestDoctorPrintsAndFails(t *testing.T) {
	good := []checkRecord{{"kernel", checkOK, "6.1", ""}, {"xfs", checkWarn, "not there", "load it"}}
	bad := append(good, checkRecord{"device-mapper", checkFail, "not there", "modprobe dm_mod"})
	a, out, _ := testApp(0, nil)
	if err := a.runDoctor(good); err != nil || out.String() != "ok    kernel: 6.1\nwarn  xfs: not there\n      -> load it\n" {
		t.Errorf("good: %q, %v", out, err)
	}
	err := a.runDoctor(bad)
	if code, _ := exitCode(err, nil); code != 8 || errs.Hint(err) != "modprobe dm_mod" {
		t.Errorf("bad: %v", err)
	}
	out.Reset()
	a.format.json = true
	if err := a.runDoctor(bad); !errors.Is(err, errs.ErrUnsupported) || !strings.Contains(out.String(), `"status": "fail"`) {
		t.Errorf("JSON: %q, %v", out, err)
	}
}
