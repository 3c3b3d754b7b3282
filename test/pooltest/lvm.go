package pooltest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/pool"
)

// NewLoop attaches a new, sparse file of that size to a loop device for the length of the test.
func NewLoop(t testing.TB, size int64) *fsutil.Loop {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.Loop)
	file := filepath.Join(t.TempDir(), "disk")
	ctx := Context(t)
	if err := fsutil.Allocate(ctx, file, uint64(size), fsutil.Sparse); err != nil {
		t.Fatal(err)
	}
	l, err := fsutil.Attach(ctx, fsutil.LoopOptions{Path: file})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := detach(l, detachTime); err != nil {
			t.Error(err)
		}
	})
	return l
}

// LVM runs one of lvm2's commands, as a person would, and returns what it prints.
func LVM(t testing.TB, args ...string) string {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.DM, testenv.LVM)
	out, err := RunLVM(Context(t), args...)
	if err != nil {
		t.Fatalf("lvm %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// RunLVM is LVM for a command that may fail.
func RunLVM(ctx context.Context, args ...string) (string, error) {
	const config = `activation { udev_sync=0 udev_rules=0 verify_udev_operations=0 monitoring=0 } global { use_lvmpolld=0 notify_dbus=0 thin_check_executable="" } ` +
		`devices { obtain_device_list_from_udev=0 external_device_info_source="none" global_filter=["a|^/dev/loop|", "r|.*|"] } backup { backup=0 archive=0 }`
	cmd := testenv.Tool(ctx, "lvm", append([]string{args[0], "--config", config}, args[1:]...)...)
	cmd.Env = append(cmd.Env, "LVM_SUPPRESS_FD_WARNINGS=1")
	if _, err := os.Stat("/etc/lvm"); err != nil {
		cmd.Env = append(cmd.Env, "LVM_SYSTEM_DIR=")
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// NewVG makes a volume group on a disk, for the length of the test.
func NewVG(t testing.TB, name string, disk *fsutil.Loop) {
	t.Helper()
	LVM(t, "vgcreate", "-y", name, disk.Path)
	t.Cleanup(func() { LVM(t, "vgremove", "-f", "-y", name) })
}

// NewLVM is New for a pool on the volumes of a volume group of that many bytes.
func NewLVM(t testing.TB, size int64, spec pool.Spec) *Env {
	t.Helper()
	testenv.Need(t, testenv.LVM)
	NewVG(t, "testvg", NewLoop(t, size))
	spec.Backing, spec.VG = pool.BackingLVM, "testvg"
	return New(t, spec)
}

// checkVolumes compares the thin devices with the records, of a pool on volumes that has been stopped, and wants the volumes to be
// inactive.
func (r *records) checkVolumes(ctx context.Context) (err error) {
	l := r.pool.Backing.LVM
	dm, err := devmapper.Open()
	if err != nil {
		return err
	}
	defer dm.Close()
	list, err := dm.List(devmapper.UUID("LVM-" + strings.ReplaceAll(l.VGUUID, "-", "")))
	if err != nil {
		return err
	}
	for _, d := range list {
		for _, uuid := range []string{l.DataUUID, l.MetadataUUID} {
			if strings.HasSuffix(string(d.UUID), strings.ReplaceAll(uuid, "-", "")) {
				err = errors.Join(err, fmt.Errorf("volume %s is still active", d.Name))
			}
		}
	}
	if err != nil {
		return err
	}
	volume := l.VG + "/" + l.MetadataLV
	if out, err := RunLVM(ctx, "lvchange", "-ay", volume); err != nil {
		return fmt.Errorf("activate %s: %w: %s", volume, err, out)
	}
	defer func() {
		if out, derr := RunLVM(ctx, "lvchange", "-an", volume); derr != nil {
			err = errors.Join(err, fmt.Errorf("deactivate %s: %w: %s", volume, derr, out))
		}
	}()
	return r.checkThins(ctx, "/dev/"+volume)
}
