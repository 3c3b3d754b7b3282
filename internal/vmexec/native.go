package vmexec

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/dmlayer/dmlayer/internal/vmexec/leak"
)

// nativeMachine is the host itself: the job is run as it is.
func nativeMachine(r *virtualMachine) (*machine, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("DMLAYER_VM=%s runs on this machine's own kernel and needs root", kindNative)
	}
	if err := loadHostModules(r.cfg.modules); err != nil {
		return nil, err
	}
	path, err := lookPath(r.cfg.args[0], r.job.Env)
	if err != nil {
		return nil, err
	}
	work := filepath.Join(r.dir, "work")
	if err := os.Mkdir(work, 0o700); err != nil {
		return nil, err
	}
	env := append(r.job.Env, "TMPDIR="+work)
	if libs := filepath.Join(r.cfg.cache, "tools/usr/lib/x86_64-linux-gnu"); exists(libs) {
		env = append(env, "LD_LIBRARY_PATH="+libs)
	}
	return &machine{Path: path, Args: r.cfg.args, Env: env, WorkDir: r.cfg.dir, Direct: true}, nil
}

// loadHostModules asks for device-mapper. Whether a module of the list is missing the tests will see:
// a host's kernel may have it built in.
func loadHostModules(modules []string) error {
	err := exec.Command("modprobe", append([]string{"-q", "-a"}, modules...)...).Run()
	if exists("/dev/mapper/control") {
		return nil
	}
	if err == nil {
		err = errors.New("no /dev/mapper/control")
	}
	return fmt.Errorf("this machine's kernel has no device-mapper (modprobe: %w); use DMLAYER_VM=%s", err, kindUML)
}

// runNative runs the job on the host's kernel and looks for leaks there.
func (r *virtualMachine) runNative(ctx context.Context) (result, error) {
	before := leak.Kernel()
	err := r.runReaper(ctx)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return result{}, err
	}
	res := result{Done: true}
	if exit != nil {
		res.Code = exit.ExitCode()
	}
	if r.job.CheckLeaks {
		res.Leaks = settledLeaks(before)
	}
	return res, nil
}
