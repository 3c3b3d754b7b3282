package vmexec

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// guestMounts are the places where the guest sees something of its own and not the host's files.
var guestMounts = []string{"/proc", "/sys", "/dev", "/run", "/lib/modules"}

// workPlaces are folders that every Debian has and that rarely hold anything that a job needs.
var workPlaces = []string{"/mnt", "/media", "/srv", "/opt"}

// checkVisible refuses a job whose files the guest's own mounts would hide.
func checkVisible(paths ...string) error {
	for _, path := range paths {
		for _, m := range guestMounts {
			if isBelow(path, m) {
				return fmt.Errorf("%s is hidden in the virtual machine, which has its own %s; move it, or set GOTMPDIR for a test binary", path, m)
			}
		}
	}
	return nil
}

// chooseWork returns where the guest mounts its big tmpfs: not where it would hide one of paths.
func chooseWork(paths ...string) (string, error) {
next:
	for _, place := range workPlaces {
		if info, err := os.Stat(place); err != nil || !info.IsDir() {
			continue
		}
		for _, path := range paths {
			if isBelow(path, place) {
				continue next
			}
		}
		return place, nil
	}
	return "", fmt.Errorf("no folder for the virtual machine's tmpfs: each of %s is missing or in use", strings.Join(workPlaces, ", "))
}

// isBelow says whether path, with its links resolved as far as it exists, is dir or below it.
func isBelow(path, dir string) bool {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return path == dir || strings.HasPrefix(path, dir+"/")
}
