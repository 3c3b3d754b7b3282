package main_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/dmlayer/dmlayer/cmd/dmlayer/internal/cli"
	"github.com/dmlayer/dmlayer/internal/testenv"
)

// TestMain is the program itself where it is called by its name: the scripts run a link to the test
// binary.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "dmlayer":
		os.Exit(cli.Run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	case "treecmp":
		os.Exit(compareTrees(os.Args[1:]))
	}
	testenv.Main(m)
}

// TestScripts runs testdata/script/*.txt, each with a root and a run directory of its own. Beside
// the commands of testscript they have:
//
//	disk VARIABLE SIZE SECTOR    makes a disk, and a variable with its path
//	exits CODE COMMAND...   the command, which must exit with CODE
//	archive FILE REF DIR... an archive as of docker save: an image whose layers are the directories
//	cut FILE BYTES          cuts a file off
//	sum FILE..., unchanged  remembers what is in files, and checks that it still is
//	interrupt SIGNAL CODE FILE COMMAND...
//	                        gives the command half of FILE as standard input, then the signal
//	waits CODE COMMAND...   the command, with a standard input that never gives anything
//	terminal CODE COMMAND...
//	                        the command on a terminal; standard output is what is left to be seen there
//	terminal-type CODE TEXT ANSWER COMMAND...
//	                        the same, and ANSWER is typed once TEXT is to be seen
//	terminal-stop CODE TEXT FILE COMMAND...
//	                        the same, with half of FILE as standard input, and ^C once TEXT is to be seen
//	state remember|same     remembers pool, nodes, images, record store and files; compares with them
//	tmpfs DIR SIZE          mounts a small file system
//	vg NAME MIB             makes a volume group on a new disk
//	record BUCKET OLD NEW   replaces a text in a bucket of the record store
func TestScripts(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.Ext4)
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/script",
		Setup:              setup,
		RequireUniqueNames: true,
		Condition: func(cond string) (bool, error) {
			if feature, ok := map[string]testenv.Feature{"xfs": testenv.XFS, "lvm": testenv.LVM}[cond]; ok {
				testenv.Need(t, feature)
				return true, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits":     cmdExits,
			"disk":      cmdDisk,
			"archive":   cmdArchive,
			"cut":       cmdCut,
			"sum":       cmdSum,
			"unchanged": cmdUnchanged,
			"interrupt": cmdInterrupt,
			"waits":     cmdWaits,
			"terminal":  cmdTerminal,
			"state":     cmdState,
			"tmpfs":     cmdTmpfs,
			"vg":        cmdVG,
			"record":    cmdRecord,

			"terminal-type": cmdTerminalType,
			"terminal-stop": cmdTerminalStop,
		},
	})
}

func setup(env *testscript.Env) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	bin := filepath.Join(env.WorkDir, ".bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	program := filepath.Join(bin, "dmlayer")
	if err := os.Symlink(self, program); err != nil {
		return err
	}
	env.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	env.Setenv("DMLAYER_ROOT", filepath.Join(env.WorkDir, "root"))
	env.Setenv("DMLAYER_RUN", filepath.Join(env.WorkDir, "run"))
	env.Values[sumsKey{}] = map[string][sha256.Size]byte{}
	env.Values[stateKey{}] = new(string)
	mounts := new([]string)
	env.Values[mountsKey{}] = mounts
	vgs := new(groups)
	env.Values[groupsKey{}] = vgs
	vars := slices.Clone(env.Vars)
	env.Defer(func() {
		cleanUp(program, vars)
		if err := errors.Join(vgs.remove(), unmountAll(*mounts)); err != nil {
			env.T().Fatal(err)
		}
	})
	return nil
}

// cleanUp takes away what a script that failed left. What it cannot, testenv.Main complains of.
func cleanUp(program string, vars []string) {
	run := func(args ...string) []string {
		cmd := exec.Command(program, args...)
		cmd.Env = append(slices.Clone(vars), "PATH="+os.Getenv("PATH"))
		out, _ := cmd.Output() // there may be nothing to take away
		return strings.Fields(string(out))
	}
	for _, pool := range run("pool", "ls", "-q") {
		for _, node := range run("ls", "-q", "--pool", pool) {
			for _, dir := range run("inspect", "--pool", pool, "--format", `{{join .Mountpoints "\n"}}`, node) {
				run("unmount", "--pool", pool, dir)
			}
			run("detach", "--pool", pool, node)
		}
		run("pool", "destroy", "--force", pool)
	}
}

func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	checkExit(ts, args[0], ts.Exec(args[1], args[2:]...))
}

func checkExit(ts *testscript.TestScript, want string, err error) {
	code := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(code) != want {
		ts.Fatalf("exit code %d, want %s", code, want)
	}
}

func cmdCut(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: cut FILE BYTES")
	}
	n, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	ts.Check(os.Truncate(ts.MkAbs(args[0]), n))
}

type sumsKey struct{}

func sums(ts *testscript.TestScript) map[string][sha256.Size]byte {
	return ts.Value(sumsKey{}).(map[string][sha256.Size]byte)
}

func cmdSum(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: sum FILE...")
	}
	for _, name := range args {
		path := ts.MkAbs(name)
		sums(ts)[path] = sumOf(ts, path)
	}
}

func cmdUnchanged(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 || len(sums(ts)) == 0 {
		ts.Fatalf("usage: unchanged, after sum")
	}
	for path, was := range sums(ts) {
		if sumOf(ts, path) != was {
			ts.Fatalf("%s was changed", path)
		}
	}
}

func sumOf(ts *testscript.TestScript, path string) (sum [sha256.Size]byte) {
	f, err := os.Open(path)
	ts.Check(err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	ts.Check(err)
	return [sha256.Size]byte(h.Sum(nil))
}

// command is a program of a script that this test keeps a hold of.
func command(ts *testscript.TestScript, args []string) *exec.Cmd {
	path := args[0]
	if path == "dmlayer" {
		path = ts.MkAbs(".bin/dmlayer")
	}
	cmd := exec.Command(path, args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"PATH", "DMLAYER_ROOT", "DMLAYER_RUN", "TMPDIR"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	cmd.Stdout, cmd.Stderr = ts.Stdout(), ts.Stderr()
	return cmd
}

func cmdInterrupt(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]syscall.Signal{"INT": syscall.SIGINT, "TERM": syscall.SIGTERM}
	if neg || len(args) < 4 || signals[args[0]] == 0 {
		ts.Fatalf("usage: interrupt INT|TERM CODE FILE COMMAND...")
	}
	archive, err := os.ReadFile(ts.MkAbs(args[2]))
	ts.Check(err)
	if len(archive) < 1<<20 {
		ts.Fatalf("%s is too small to tell that the command reads it", args[2])
	}
	cmd, in := start(ts, args[3:])
	// A pipe holds 64 KiB: when this much went into it, the command is at work.
	_, writeErr := in.Write(archive[:len(archive)/2])
	ts.Check(errors.Join(writeErr, cmd.Process.Signal(signals[args[0]])))
	err = cmd.Wait()
	ts.Check(in.Close())
	checkExit(ts, args[1], err)
}

func cmdWaits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: waits CODE COMMAND...")
	}
	cmd, in := start(ts, args[1:])
	err := cmd.Wait()
	ts.Check(in.Close())
	checkExit(ts, args[0], err)
}

// start starts a command whose standard input ends only when the returned file is closed.
func start(ts *testscript.TestScript, args []string) (*exec.Cmd, *os.File) {
	out, in, err := os.Pipe()
	ts.Check(err)
	defer out.Close()
	cmd := command(ts, args)
	cmd.Stdin = out
	ts.Check(cmd.Start())
	return cmd, in
}
