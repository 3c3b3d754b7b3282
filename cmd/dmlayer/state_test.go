package main_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

type (
	stateKey  struct{}
	mountsKey struct{}
)

// cmdState remembers what there is, or compares with what was remembered.
func cmdState(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: state remember|same")
	}
	now := look(ts)
	was := ts.Value(stateKey{}).(*string)
	switch args[0] {
	case "remember":
		*was = now
	case "same":
		if *was == "" {
			ts.Fatalf("state same: nothing was remembered")
		}
		if now != *was {
			ts.Fatalf("something was changed\nbefore:\n%s\nnow:\n%s", *was, now)
		}
	default:
		ts.Fatalf("state %s: want remember or same", args[0])
	}
}

// hosts are the fields of pool inspect that others on the machine change, the kernel when it writes back, and time.
var hosts = regexp.MustCompile(`(?m)^ *"(hostFree|dataAllocated|dataMax|metadataMax|dataFullIn|metadataFullIn)": .*\n`)

// look tells all that a refused command must not change: what the pool and its nodes and images are, the bytes of
// the record store, and which files there are.
func look(ts *testscript.TestScript) string {
	var b strings.Builder
	for _, args := range []string{"pool inspect", "ls --format json", "image ls --format json"} {
		cmd := command(ts, append([]string{"dmlayer"}, strings.Fields(args)...))
		cmd.Stdout = &b
		ts.Check(cmd.Run())
	}
	text := hosts.ReplaceAllString(b.String(), "")
	b.Reset()
	b.WriteString(text)
	root := ts.Getenv("DMLAYER_ROOT")
	ts.Check(filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fmt.Fprint(&b, path)
		if filepath.Base(path) == "records.db" {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			h := sha256.New()
			if _, err := io.Copy(h, f); err != nil {
				return err
			}
			fmt.Fprintf(&b, " %x", h.Sum(nil))
		}
		fmt.Fprintln(&b)
		return nil
	}))
	return b.String()
}

// cmdTmpfs mounts an empty file system of a size, which is unmounted at the end, after the pools are gone.
func cmdTmpfs(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: tmpfs DIR SIZE")
	}
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	ts.Check(unix.Mount("none", dir, "tmpfs", 0, "size="+args[1]))
	mounts := ts.Value(mountsKey{}).(*[]string)
	*mounts = append(*mounts, dir)
}

func unmountAll(dirs []string) error {
	var all error
	for _, dir := range dirs {
		if err := unix.Unmount(dir, 0); err != nil {
			all = errors.Join(all, fmt.Errorf("unmount %s: %w", dir, err))
		}
	}
	return all
}
