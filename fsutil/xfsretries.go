package fsutil

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// sysXFS has a folder for each xfs that is mounted, in whatever mount namespace, under the name of its block device.
const sysXFS = "/sys/fs/xfs"

// xfsErrors are the kinds of metadata write errors that xfs would retry for ever: what a full pool and what
// a pool without metadata space (or a full host file system below a loop device) gives, and any other. Such retries
// hold up freezing, and with it the suspension of the device, and hang whoever waits for the log. It never retries
// ENODEV. See Documentation/admin-guide/xfs.rst.
var xfsErrors = []string{"ENOSPC", "EIO", "default"}

// StopRetries tells the xfs that is mounted from a block device, by whomever and in whatever mount namespace, to give up at the first write of
// metadata that fails, instead of retrying for ever: it shuts down then, and its log is replayed by the next mount. Mount and DetachedMount
// do it themselves; it is for mounts that others make, right after those. A new mount forgets it. The error is ErrNotFound where no xfs
// is mounted from the device.
func StopRetries(dev DevNum) error {
	name, err := deviceName(dev)
	if err != nil {
		return err
	}
	dir := filepath.Join(sysXFS, name, "error/metadata")
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("stop retries: no xfs is mounted from %s: %w", name, errs.ErrNotFound)
	}
	for _, kind := range xfsErrors {
		err := writeAttribute(filepath.Join(dir, kind, "max_retries"), "0")
		if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("stop retries: the xfs of %s is gone: %w: %w", name, err, errs.ErrNotFound) // unmounted in between
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// MountedXFS returns the block devices from which an xfs is mounted, in whatever mount namespace. A kernel without xfs has none.
func MountedXFS() ([]DevNum, error) {
	found, err := filepath.Glob(filepath.Join(sysXFS, "*", "error"))
	if err != nil {
		return nil, err
	}
	var devs []DevNum
	for _, dir := range found {
		var n DevNum
		text, err := os.ReadFile(filepath.Join("/sys/class/block", filepath.Base(filepath.Dir(dir)), "dev"))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue // it is gone, before or after the file was opened, or its name has a slash
		}
		if err != nil {
			return nil, fmt.Errorf("list mounted xfs: %w", err)
		}
		if _, err := fmt.Sscanf(string(text), "%d:%d", &n.Major, &n.Minor); err != nil {
			return nil, fmt.Errorf("list mounted xfs: number %q of a block device: %w", text, errs.ErrInvalid)
		}
		devs = append(devs, n)
	}
	return devs, nil
}

// stopRetriesOf is StopRetries for the xfs that is mounted at dir.
func stopRetriesOf(dir string) error {
	var st unix.Stat_t
	if err := retryEINTR(func() error { return unix.Stat(dir, &st) }); err != nil {
		return fail("look at", dir, err)
	}
	return StopRetries(devNum(uint64(st.Dev)))
}

func writeAttribute(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fail("set", path, errors.Unwrap(err))
	}
	_, err = f.WriteString(value)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fail("set", path, errors.Unwrap(err))
	}
	return nil
}
