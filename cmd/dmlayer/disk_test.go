package main_test

import (
	"context"
	"os"
	"strconv"

	"github.com/docker/go-units"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/dmlayer/dmlayer/fsutil"
)

// cmdDisk makes a disk with sectors of so many bytes, and a variable with its path.
func cmdDisk(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: disk VARIABLE SIZE SECTOR")
	}
	size, err := units.RAMInBytes(args[1])
	ts.Check(err)
	sector, err := strconv.ParseUint(args[2], 10, 32)
	ts.Check(err)
	file := ts.MkAbs(args[0] + ".disk")
	ts.Check(os.WriteFile(file, nil, 0o600))
	ts.Check(os.Truncate(file, size))
	loop, err := fsutil.Attach(context.Background(), fsutil.LoopOptions{Path: file, BlockSize: uint32(sector), Autoclear: true})
	ts.Check(err)
	// A pool on it goes later, and the disk then with it.
	ts.Defer(func() { ts.Check(loop.Close()) })
	ts.Setenv(args[0], loop.Path)
}
