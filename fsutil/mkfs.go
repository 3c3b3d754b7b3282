package fsutil

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/run"
)

// MkfsOptions describes a file system to make.
type MkfsOptions struct {
	Type Type
	// UUID of the file system; empty takes a random one.
	UUID string
	// Label of the file system: at most 16 bytes (ext4), 12 bytes (xfs).
	Label string
	// Zeroed says that every block of the device that was not written reads as zeros, also the rest of a block
	// written in part: a new device of a pool that zeroes. It saves ext4 from writing its inode tables.
	Zeroed bool
	// Extra arguments for the mkfs program, before the device.
	Extra []string
}

// Mkfs makes a file system on a device whose content is no longer wanted: nothing is probed first. The options
// are those that cost the snapshots of a thin device least: no discard of what is not mapped, no
// inode tables that every writable child would have to initialize for itself, a small journal.
func Mkfs(ctx context.Context, dev string, o MkfsOptions) error {
	if err := o.Type.Valid(); err != nil {
		return fmt.Errorf("make file system on %s: %w", dev, err)
	}
	size, err := DeviceSize(dev)
	if err != nil {
		return fmt.Errorf("make %s on %s: %w", o.Type, dev, err)
	}
	program := "mkfs." + string(o.Type)
	var args []string
	switch o.Type {
	case Ext4:
		prezeroed := false
		if o.Zeroed {
			if prezeroed, err = knowsPrezeroed(ctx, program); err != nil {
				return fmt.Errorf("make ext4 on %s: %w", dev, err)
			}
		}
		args = ext4Args(o, size, prezeroed)
	case XFS:
		args = xfsArgs(o)
	}
	args = append(append(args, o.Extra...), dev)
	if err := run.Run(ctx, program, args...); err != nil {
		return mkfsError(dev, o.Type, err)
	}
	return nil
}

// mkfsError adds what a mkfs that failed most often means, and drops the usage text that mkfs.xfs adds to
// every error.
func mkfsError(dev string, t Type, err error) error {
	if re := (*run.Error)(nil); errors.As(err, &re) && re.Err == nil {
		short := *re
		short.Stderr, _, _ = strings.Cut(re.Stderr, "\nUsage: ")
		err = &short
		for _, m := range mkfsTexts {
			if m.text.MatchString(short.Stderr) {
				err = &classed{err, m.class}
				break
			}
		}
	}
	return fmt.Errorf("make %s on %s: %w", t, dev, err)
}

// mkfsTexts are those of LC_ALL=C; the first that matches counts. They only choose a class; the error says it all
// anyway.
var mkfsTexts = []struct {
	class error
	text  *regexp.Regexp
}{
	{errs.ErrBusy, regexp.MustCompile(`(?i)is mounted|in use by the system|resource busy|contains a mounted filesystem`)},
	{errs.ErrNoSpace, regexp.MustCompile(`(?i)no space left`)},
	{errs.ErrInvalid, regexp.MustCompile(`(?i)too small|too large|too long|must be larger|invalid|bad option|unknown option|illegal value|usage:`)},
}

// Journal sizes in MiB. A snapshot ends up with a journal of its own, so it is small; a big disk gets what
// many writers need. Growing a mounted file system of 8 GiB and more takes one transaction of 1030 blocks,
// for up to 1024 reserved descriptor blocks (ext4_flex_group_add); a transaction has a quarter of the
// journal, and with 16 MiB the kernel warns and refuses.
const (
	smallJournal    = 32
	bigJournal      = 64
	bigJournalFrom  = 64 << 30
	ownJournalBelow = 512 << 20 // mke2fs knows better for tiny file systems
)

func ext4Args(o MkfsOptions, size uint64, prezeroed bool) []string {
	// Blocks of a page also on small devices: they grow, and a pool never gives less than 64 KiB at a time.
	args := []string{"-q", "-F", "-m", "0", "-b", "4096"}
	switch {
	case size >= bigJournalFrom:
		args = append(args, "-J", "size="+strconv.Itoa(bigJournal))
	case size >= ownJournalBelow:
		args = append(args, "-J", "size="+strconv.Itoa(smallJournal))
	}
	// lazy_itable_init=1 alone would make every child that is mounted writable initialize the tables for
	// itself, 160 MiB of 10 GiB. On a device that reads as zeros they are initialized already.
	if prezeroed {
		args = append(args, "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1,assume_storage_prezeroed=1")
	} else {
		args = append(args, "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0")
	}
	if o.UUID != "" {
		args = append(args, "-U", o.UUID)
	}
	if o.Label != "" {
		args = append(args, "-L", o.Label)
	}
	return args
}

func xfsArgs(o MkfsOptions) []string {
	args := []string{"-q", "-f", "-K"}
	if o.UUID != "" {
		args = append(args, "-m", "uuid="+o.UUID)
	}
	if o.Label != "" {
		args = append(args, "-L", o.Label)
	}
	return args
}

var prezeroed struct {
	sync.Mutex
	known map[string]bool // by the path of the program
}

// knowsPrezeroed says whether mkfs.ext4 has assume_storage_prezeroed (e2fsprogs 1.47). It asks once.
func knowsPrezeroed(ctx context.Context, program string) (bool, error) {
	path, err := run.Look(program)
	if err != nil {
		return false, err
	}
	prezeroed.Lock()
	defer prezeroed.Unlock()
	if yes, ok := prezeroed.known[path]; ok {
		return yes, nil
	}
	res, err := run.Do(ctx, run.Cmd{Program: path, Args: []string{"-V"}})
	if err != nil {
		return false, err
	}
	if prezeroed.known == nil {
		prezeroed.known = map[string]bool{}
	}
	yes := e2fsprogsAtLeast(string(res.Stderr), 1, 47)
	prezeroed.known[path] = yes
	return yes, nil
}

var e2fsprogsVersion = regexp.MustCompile(`(?m)^mke2fs (\d+)\.(\d+)`)

// e2fsprogsAtLeast reads what mke2fs -V prints ("mke2fs 1.47.0 (5-Feb-2023)"). What cannot be read is old.
func e2fsprogsAtLeast(text string, major, minor int) bool {
	m := e2fsprogsVersion.FindStringSubmatch(text)
	if m == nil {
		return false
	}
	gotMajor, _ := strconv.Atoi(m[1])
	gotMinor, _ := strconv.Atoi(m[2])
	return gotMajor > major || gotMajor == major && gotMinor >= minor
}

// RemoveLostFound removes the empty lost+found that mkfs.ext4 makes, below a mounted root: tar differs see a
// directory that no image has. e2fsck makes it again where it needs one. None is no error; one with
// content stays and is errs.ErrExists.
func RemoveLostFound(root string) error {
	path := root + "/lost+found"
	err := os.Remove(path)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if pe := (*os.PathError)(nil); errors.As(err, &pe) {
		err = pe.Err
	}
	if errors.Is(err, os.ErrExist) { // ENOTEMPTY
		return &classed{fmt.Errorf("remove %s: %w", path, err), errs.ErrExists}
	}
	return fail("remove", path, err)
}
