package main_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// groups are the volume groups of a script.
type groups []func(ctx context.Context) error

type groupsKey struct{}

// cmdVG makes a volume group on a new disk of that many MiB. It goes when the script ends, after the pools.
func cmdVG(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: vg NAME MIB")
	}
	var mib uint64
	_, err := fmt.Sscan(args[1], &mib)
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Scale(time.Minute))
	defer cancel()
	file := filepath.Join(ts.Getenv("WORK"), args[0]+".disk")
	ts.Check(fsutil.Allocate(ctx, file, mib<<20, fsutil.Sparse))
	loop, err := fsutil.Attach(ctx, fsutil.LoopOptions{Path: file})
	ts.Check(err)
	all := ts.Value(groupsKey{}).(*groups)
	*all = append(*all, func(ctx context.Context) error {
		out, err := pooltest.RunLVM(ctx, "vgremove", "-f", "-y", args[0])
		if err != nil {
			err = fmt.Errorf("vgremove %s: %w: %s", args[0], err, out)
		}
		return errors.Join(err, loop.Close(), fsutil.Detach(ctx, loop.Number))
	})
	if out, err := pooltest.RunLVM(ctx, "vgcreate", "-y", args[0], loop.Path); err != nil {
		ts.Fatalf("vgcreate: %v: %s", err, out)
	}
}

func (g groups) remove() error {
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Scale(time.Minute))
	defer cancel()
	var err error
	for _, remove := range g {
		err = errors.Join(err, remove(ctx))
	}
	return err
}
