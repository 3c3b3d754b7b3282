// Package fsutil does what dmlayer needs below a mount point and above a block device: it makes, mounts,
// grows, checks and trims ext4 and xfs, finds out what lies on a device, and manages loop devices and the
// files behind them. It knows nothing of device-mapper.
//
// Only Mkfs and Fsck start programs; everything else is system calls.
//
// Errors carry the classes of internal/errs and wrap the errno where there is one. All functions are safe for
// concurrent use; those that may block take a context.
package fsutil

import (
	"fmt"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// Type is a file system that dmlayer makes and mounts.
type Type string

// The types.
const (
	Ext4 Type = "ext4"
	XFS  Type = "xfs"
)

// Valid returns errs.ErrUnsupported for a type that dmlayer does not know.
func (t Type) Valid() error {
	switch t {
	case Ext4, XFS:
		return nil
	}
	return errs.WithHint(fmt.Errorf("file system %q: %w", string(t), errs.ErrUnsupported), "use ext4 or xfs")
}
