package fsutil

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/run"
)

// Detached is a mount that is in no mount namespace: nobody sees it, and it ends with its last
// descriptor, thus at the latest with the process (fsmount(2), Linux 5.2).
type Detached struct {
	mu  sync.Mutex
	fd  int
	dev string
}

// DetachedMount mounts the file system on dev for this process alone, with the options that Mount gives. It
// is errs.ErrUnsupported before Linux 5.2.
func DetachedMount(ctx context.Context, dev string, o MountOptions) (*Detached, error) {
	const what = "mount privately"
	if err := context.Cause(ctx); err != nil {
		return nil, fail(what, dev, err)
	}
	p, err := o.parsed()
	if err != nil {
		return nil, fail(what, dev, err)
	}
	config, err := unix.Fsopen(string(o.Type), unix.FSOPEN_CLOEXEC)
	if err != nil {
		if errors.Is(err, unix.ENOSYS) {
			return nil, errs.WithHint(fail(what, dev, err), "private mounts need Linux 5.2")
		}
		return nil, mountError(what, dev, o.Type, err)
	}
	defer unix.Close(config)
	if err := configure(config, dev, p); err != nil {
		return nil, mountError(what, dev, o.Type, withKernelLog(config, err))
	}
	var fd int
	err = retryEINTR(func() (err error) { fd, err = unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, p.attrs); return err })
	if err != nil {
		return nil, mountError(what, dev, o.Type, withKernelLog(config, err))
	}
	d := &Detached{fd: fd, dev: dev}
	if o.Type == XFS && !p.ReadOnly() {
		if err := stopRetriesOf(d.Path()); err != nil {
			return nil, fail(what, dev, errors.Join(err, d.Close()))
		}
	}
	return d, nil
}

// configure hands the options to a file system context and creates or finds the superblock.
func configure(config int, dev string, p ParsedOptions) error {
	if err := unix.FsconfigSetString(config, "source", dev); err != nil {
		return fmt.Errorf("option source: %w", err)
	}
	var names []string
	if p.ReadOnly() {
		names = append(names, "ro")
	}
	for _, name := range superFlags {
		if p.Flags&generic[name].set != 0 {
			names = append(names, name)
		}
	}
	for _, o := range append(names, p.Data...) {
		key, value, hasValue := strings.Cut(o, "=")
		var err error
		if hasValue {
			err = unix.FsconfigSetString(config, key, strings.Trim(value, `"`))
		} else {
			err = unix.FsconfigSetFlag(config, key)
		}
		if err != nil {
			return fmt.Errorf("option %s: %w", key, err)
		}
	}
	return retryEINTR(func() error { return unix.FsconfigCreate(config) })
}

// withKernelLog adds the messages that the kernel left in a file system context (fsopen(2)): one a
// read, "e " and a text for an error.
func withKernelLog(config int, err error) error {
	var texts []string
	buf := make([]byte, 1024)
	for range 16 {
		n, rerr := unix.Read(config, buf)
		if rerr != nil || n <= 0 {
			break
		}
		kind, text, _ := strings.Cut(strings.TrimSpace(string(buf[:n])), " ")
		if kind == "e" {
			texts = append(texts, text)
		}
	}
	if len(texts) == 0 {
		return err
	}
	return fmt.Errorf("%w (%s)", err, strings.Join(texts, "; "))
}

// Path returns a path by which this process reaches the root of the mount. It works for paths below it too, and
// must not be used after Close.
func (d *Detached) Path() string { return "/proc/self/fd/" + strconv.Itoa(d.Fd()) }

// Fd returns the descriptor of the root, an O_PATH one, or -1 after Close. It stays the Detached's.
func (d *Detached) Fd() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fd
}

// Sync makes everything durable that was written to the file system (syncfs).
func (d *Detached) Sync() error { return SyncFS(d.Path()) }

// Close unmounts. What is still open below the mount keeps it. Otherwise the file system is gone and its
// device closed when Close returns, where nothing else has it mounted: dissolving the mount is work that the kernel
// does on this thread before the system call returns to it (task_work_add in fput and cleanup_mnt), and no
// program that is being started has a copy of the descriptor (see BetweenStarts). It may be called more than once.
func (d *Detached) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fd < 0 {
		return nil
	}
	fd := d.fd
	d.fd = -1
	err := run.BetweenStarts(func() error { return unix.Close(fd) })
	if err != nil && err != unix.EINTR { // Linux closes also when it says EINTR
		return fail("unmount private mount of", d.dev, err)
	}
	return nil
}

// SyncFS makes everything durable that was written to the file system that dir is on, and reports errors of
// earlier write-back (syncfs(2)).
func SyncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fail("sync file system", dir, errors.Unwrap(err))
	}
	defer f.Close()
	return fail("sync file system", dir, retryEINTR(func() error { return unix.Syncfs(int(f.Fd())) }))
}
