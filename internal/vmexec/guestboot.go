package vmexec

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// bootFromInitrd goes from QEMU's initial root file system to the host's: it loads the modules that
// this takes, mounts the host's root and makes it its own.
func bootFromInitrd() error {
	list, err := os.ReadFile("/" + bootModulesFile)
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(list)) {
		if err := insertModule("/" + name); err != nil {
			return err
		}
	}
	if err := mount9p(tagRoot, "/root", unix.MS_RDONLY, "cache=loose"); err != nil {
		return err
	}
	if err := os.Chdir("/root"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("make the host's root file system the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	return os.Chdir("/")
}

func insertModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil {
		return fmt.Errorf("insert module %s: %w", filepath.Base(path), err)
	}
	return nil
}

func mount9p(tag, target string, flags uintptr, more string) error {
	options := "trans=virtio,version=9p2000.L,msize=262144,access=any"
	if more != "" {
		options += "," + more
	}
	if err := unix.Mount(tag, target, "9p", flags, options); err != nil {
		return fmt.Errorf("mount host folder %s on %s: %w", tag, target, err)
	}
	return nil
}
