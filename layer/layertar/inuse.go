package layertar

import (
	"context"
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// Somebody may use the upper tree while it is read. A name that was listed may be gone when it is looked at, or be another
// file's by the time that its content is. It is looked at again then, until what was found belongs together.

// looks is how often a name is looked at. Who replaces a file without a pause wins each time with luck only.
const looks = 100

// errReplaced says that a name has become another file's since it was looked at.
var errReplaced = errors.New("another file took its place")

// moved reports whether err says that a file, or a directory above it, is not, or not any more, what was there when it was looked at.
func moved(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, errReplaced)
}

// goneIsNil is for those to whom a file that is not there is no error.
func goneIsNil(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// again calls look until nobody has meddled. ErrBusy if that never happens.
func again(ctx context.Context, look func() error) error {
	var err error
	for range looks {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err = look(); !moved(err) {
			return err
		}
	}
	return errs.WithHint(classed{err, errs.ErrBusy}, "pause what writes there")
}
