package pool

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
)

func (l loopback) names() (data, metadata string) { return l.files.data(), l.files.metadata() }

func (l loopback) open(_ context.Context, write bool) (_ *media, err error) {
	m := &media{}
	defer func() {
		if err != nil {
			_ = m.Close()
		}
	}()
	for path, to := range map[string]**part{l.files.data(): &m.data, l.files.metadata(): &m.metadata} {
		p, err := openPart(path, 0, write)
		if errors.Is(err, errs.ErrNotFound) {
			err = errs.WithHint(err, "the folder of a pool holds data and metadata")
		}
		if err != nil {
			return nil, err
		}
		*to = p
		if p.path == "" {
			return nil, fmt.Errorf("%s is no file: %w", path, errs.ErrInvalid)
		}
	}
	return m, nil
}

// check looks at the files. Whoever attaches or detaches them has the start/stop lock.
func (l loopback) check(_ context.Context, running bool) (list []Finding, err error) {
	for _, path := range []string{l.files.data(), l.files.metadata()} {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			list = append(list, NewFinding(FoundBackingMissing, path, "%v", err))
			continue
		} else if err != nil {
			return nil, err
		}
		loops, err := fsutil.FindLoops(path)
		if err != nil {
			return nil, err
		}
		if len(loops) > 1 {
			list = append(list, NewFinding(FoundBackingTwice, path, "%s and %s", loops[0].Path, loops[1].Path))
		}
		if !running {
			for _, loop := range loops {
				list = append(list, NewFinding(FoundBackingLeft, path, "%s", loop.Path))
			}
		}
	}
	return list, nil
}

func (l loopback) install(_ context.Context, path string) error {
	if err := os.Rename(path, l.files.metadata()); err != nil {
		return err
	}
	return fsutil.SyncDir(l.files.dir())
}

func (l loopback) devices(context.Context) (list []devmapper.DevNum, err error) {
	for _, path := range []string{l.files.data(), l.files.metadata()} {
		loops, err := fsutil.FindLoops(path)
		if err != nil {
			return nil, err
		}
		for _, loop := range loops {
			if n, err := fsutil.DevNumOf(loop.Path); err == nil {
				list = append(list, devmapper.DevNum(n))
			}
		}
	}
	return list, nil
}
