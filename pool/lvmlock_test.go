package pool_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/lockfile"
	"github.com/dmlayer/dmlayer/internal/run"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// growLock is the lock of whoever changes the tables of a pool that runs (docs/architecture.md).
var growLock = lockfile.Range{Start: 1<<32 + 4, Len: 1}

// once has a program of lvm2 that is to be started do something else before, in the language of the shell, where a condition holds, the first time that it
// does. "$lvm" is the program, "$@" its arguments.
func once(t *testing.T, condition, what string) {
	t.Helper()
	lvm, err := run.Look("lvm")
	must(t, err)
	dir := t.TempDir()
	mark := filepath.Join(dir, "not yet")
	script := fmt.Sprintf("#!/bin/sh\nlvm='%s' mark='%s'\nif [ -e \"$mark\" ] && %s; then rm \"$mark\"; %s; fi\nexec \"$lvm\" \"$@\"\n", lvm, mark, condition, what)
	must(t, os.WriteFile(filepath.Join(dir, "lvm"), []byte(script), 0o700))
	must(t, os.WriteFile(mark, nil, 0o600))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// As long as lvm2 is asked how much room there is, which lasts as long as its slowest disk, nobody waits for the lock of the tables: deletions
// in a pool that is full need it.
func TestVolumesAskedWithoutLock(t *testing.T) {
	e := pooltest.NewLVM(t, 128<<20, pool.Spec{DataSize: 64 << 20, BaseSize: 16 << 20})
	ctx := pooltest.Context(t)
	dir := t.TempDir()
	asked, answer := filepath.Join(dir, "asked"), filepath.Join(dir, "answer")
	must(t, unix.Mkfifo(asked, 0o600))
	must(t, unix.Mkfifo(answer, 0o600))
	once(t, `[ "$1" = lvs ]`, fmt.Sprintf(`echo > %s; read x < %s`, asked, answer))

	extended := make(chan error, 1)
	go func() {
		_, err := pool.Extend(ctx, e.Dirs, e.Name, pool.Extension{Data: pool.Extent{Bytes: 4 << 20, More: true}})
		extended <- err
	}()
	_, err := os.ReadFile(asked) // it has begun
	must(t, err)
	locks, err := filepath.Glob(filepath.Join(e.Dirs.Run, "lock", e.Name+"-*"))
	if must(t, err); len(locks) != 1 {
		t.Fatalf("lock files: %v", locks)
	}
	h, err := lockfile.Open(locks[0]).Holder(ctx)
	must(t, err)
	held, err := h.Held(growLock)
	if must(t, err); held {
		t.Error("the lock of the tables is held while lvm2 is asked")
	}
	must(t, h.Close())
	must(t, os.WriteFile(answer, []byte("\n"), 0o600))
	must(t, <-extended)
	if st := state(t, e); *st.DataTotal != 68<<20 {
		t.Errorf("the pool has %d bytes", *st.DataTotal)
	}
}
