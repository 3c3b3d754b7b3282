package fsutil

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/run"
)

// FsckOptions says how to check.
type FsckOptions struct {
	// Repair lets the check write. Without it nothing is written, and a dirty journal is not replayed.
	Repair bool
	// Thorough answers yes to every question of e2fsck where what is safe was not enough. Do it on a snapshot
	// first. It is for ext4 with Repair; xfs_repair knows one way only.
	Thorough bool
}

// FsckResult is what a check found.
type FsckResult struct {
	Clean  bool // nothing is wrong (any more)
	Fixed  bool // something was, and was repaired
	Output string

	// DirtyLog says that the log of an xfs holds what a mount would still write, and that was not looked at.
	DirtyLog bool
}

// Fsck checks an unmounted file system with e2fsck or xfs_repair. Damage that stays is errs.ErrDamaged, beside
// the result. An xfs whose log is dirty is errs.ErrDamaged too, with the hint to mount it once: neither
// checking nor repairing it as it is makes sense.
func Fsck(ctx context.Context, dev string, t Type, o FsckOptions) (FsckResult, error) {
	if err := t.Valid(); err != nil {
		return FsckResult{}, fmt.Errorf("check %s: %w", dev, err)
	}
	f, err := OpenReadable(dev)
	if err != nil {
		return FsckResult{}, fmt.Errorf("check %s: %w", dev, err)
	}
	if err := f.Close(); err != nil {
		return FsckResult{}, fail("check", dev, err)
	}
	r, err := fsck(ctx, dev, t, o)
	if o.Repair && t == Ext4 && strings.Contains(r.Output, textJournalLeft) {
		if err := runForgottenJournal(ctx, dev); err != nil {
			return r, err
		}
		r, err = fsck(ctx, dev, t, o)
		r.Fixed = true
	}
	return r, err
}

func fsck(ctx context.Context, dev string, t Type, o FsckOptions) (FsckResult, error) {
	cmd := run.Cmd{Program: "e2fsck", Args: e2fsckArgs(o, dev)}
	judge := judgeE2fsck
	if t == XFS {
		cmd = run.Cmd{Program: "xfs_repair", Args: xfsRepairArgs(o, dev)}
		judge = judgeXFSRepair
	}
	res, err := run.Do(ctx, cmd)
	var re *run.Error
	if err != nil && (!errors.As(err, &re) || re.Err != nil) {
		return FsckResult{}, fmt.Errorf("check %s: %w", dev, err)
	}
	out := strings.TrimSpace(string(res.Stdout) + "\n" + string(res.Stderr))
	r, err := judge(res.ExitCode, o, out, err)
	r.Output, r.DirtyLog = out, t == XFS && strings.Contains(out, textDirtyLog)
	if err != nil {
		err = fmt.Errorf("check %s: %w", dev, err)
	}
	return r, err
}

// textJournalLeft is what e2fsck says of a journal with something in it that the superblock does not tell of. ext4 leaves that behind
// when it is unmounted and cannot write what is in the journal to its place, as on a full pool: the mark goes, the journal stays
// (ext4_put_super). Everything that was made durable is in there; a mount would not look. e2fsck -p leaves it to a person.
const textJournalLeft = "needs_recovery flag is clear, but journal has data"

// runForgottenJournal replays such a journal, and looks at nothing else.
func runForgottenJournal(ctx context.Context, dev string) error {
	res, err := run.Do(ctx, run.Cmd{Program: "e2fsck", Args: []string{"-y", "-E", "journal_only", dev}})
	var re *run.Error
	if err != nil && (!errors.As(err, &re) || re.Err != nil) {
		return fmt.Errorf("replay journal of %s: %w", dev, err)
	}
	out := strings.TrimSpace(string(res.Stdout) + "\n" + string(res.Stderr))
	if _, err := judgeE2fsck(res.ExitCode, FsckOptions{Repair: true, Thorough: true}, out, err); err != nil {
		return fmt.Errorf("replay journal of %s: %w", dev, err)
	}
	return nil
}

// ReplayJournal brings the journal of an unmounted ext4 to its end without the kernel, and looks at nothing else. A
// journal that cannot be replayed is errs.ErrDamaged.
func ReplayJournal(ctx context.Context, dev string) error {
	res, err := run.Do(ctx, run.Cmd{Program: "e2fsck", Args: []string{"-p", "-E", "journal_only", dev}})
	var re *run.Error
	if err != nil && (!errors.As(err, &re) || re.Err != nil) {
		return fmt.Errorf("replay journal of %s: %w", dev, err)
	}
	out := strings.TrimSpace(string(res.Stdout) + "\n" + string(res.Stderr))
	if _, err := judgeE2fsck(res.ExitCode, FsckOptions{}, out, err); err != nil {
		return fmt.Errorf("replay journal of %s: %w", dev, err)
	}
	return nil
}

func e2fsckArgs(o FsckOptions, dev string) []string {
	switch {
	case o.Repair && o.Thorough:
		return []string{"-f", "-y", dev}
	case o.Repair:
		return []string{"-f", "-p", dev}
	}
	return []string{"-f", "-n", dev}
}

func xfsRepairArgs(o FsckOptions, dev string) []string {
	if o.Repair {
		return []string{"-e", dev}
	}
	return []string{"-n", dev}
}

// The bits of e2fsck's exit code (e2fsck(8)).
const (
	fsckFixed     = 1
	fsckReboot    = 2
	fsckLeft      = 4
	fsckOperation = 8
	fsckUsage     = 16
	fsckCancelled = 32
	fsckLibrary   = 128
)

func judgeE2fsck(code int, o FsckOptions, out string, err error) (FsckResult, error) {
	r := FsckResult{Fixed: code&(fsckFixed|fsckReboot) != 0}
	switch {
	case code < 0, code&(fsckOperation|fsckUsage|fsckCancelled|fsckLibrary) != 0:
		if strings.Contains(out, "is in use") || strings.Contains(out, "is mounted") {
			return r, &classed{err, errs.ErrBusy}
		}
		if code&fsckOperation != 0 && strings.Contains(out, "superblock") {
			return r, &classed{err, errs.ErrDamaged}
		}
		return r, err
	case code&fsckLeft != 0:
		err = &classed{err, errs.ErrDamaged}
		if o.Repair && !o.Thorough {
			return r, errs.WithHint(err, "repair a snapshot of it thoroughly first, then the file system")
		}
		return r, err
	}
	r.Clean = true
	return r, nil
}

// xfsFixed is what xfs_repair -e exits with when it repaired something (xfs_repair(8)).
const xfsFixed = 4

// judgeXFSRepair reads the exit code of xfs_repair(8): 0, 1 damage (-n) or a failure, 2 a dirty log, 4 repaired.
func judgeXFSRepair(code int, o FsckOptions, out string, err error) (FsckResult, error) {
	switch {
	case code == 0:
		return FsckResult{Clean: true}, nil
	case code == xfsFixed && o.Repair:
		return FsckResult{Clean: true, Fixed: true}, nil
	case code == 2, strings.Contains(out, textDirtyLog):
		return FsckResult{}, errs.WithHint(&classed{err, errs.ErrDamaged}, "mount and unmount it once, which replays its log, then check again")
	case textMounted.MatchString(out):
		return FsckResult{}, &classed{err, errs.ErrBusy}
	}
	return FsckResult{}, &classed{err, errs.ErrDamaged}
}

// xfs_repair says it with -n, and goes on, and without, and ends.
const textDirtyLog = "valuable metadata changes in a log"

var textMounted = regexp.MustCompile(`contains a mounted|couldn't open device|resource busy`)
