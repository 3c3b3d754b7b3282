package layertar

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// The classes of this package's errors. Compare with errors.Is.
var (
	ErrInvalid     = errs.ErrInvalid     // the archive is malformed, or asks for what a layer cannot hold
	ErrNoSpace     = errs.ErrNoSpace     // the file system is full
	ErrDamaged     = errs.ErrDamaged     // a tree does not hold what the record says
	ErrUnsupported = errs.ErrUnsupported // what the file system, or the caller, does not take
	ErrBusy        = errs.ErrBusy        // something is mounted inside the tree
)

// classify adds the class that err's cause implies, where err carries none yet.
func classify(err error) error {
	if err == nil || errs.Class(err) != nil {
		return err
	}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return classed{err, errs.ErrNoSpace}
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENOTDIR):
		return classed{err, errs.ErrInvalid}
	case errors.Is(err, syscall.EFBIG), errors.Is(err, syscall.EMLINK):
		return classed{err, errs.ErrUnsupported} // another file system might
	case errors.Is(err, syscall.EXDEV), errors.Is(err, syscall.EBUSY):
		return classed{fmt.Errorf("a mount point: %w", err), errs.ErrBusy}
	}
	return err
}

// classed carries a class without changing the text.
type classed struct {
	error
	class error
}

func (c classed) Unwrap() []error { return []error{c.error, c.class} }

// invalid is an error about what an archive says.
func invalid(format string, a ...any) error {
	return classed{fmt.Errorf(format, a...), errs.ErrInvalid}
}

// unsupported is an error about what cannot be done with what an archive says.
func unsupported(format string, args ...any) error {
	return classed{fmt.Errorf(format, args...), errs.ErrUnsupported}
}

// sourceReader remembers how the reader below failed, so that a broken download or a full disk of
// somebody else is not taken for a malformed archive.
type sourceReader struct {
	r   io.Reader
	err error
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}
