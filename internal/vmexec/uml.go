package vmexec

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// umlMachine describes the User-Mode Linux that runs the job of r.
//
// Its files are: 3 the kernel's console, 4 and 5 the job's output, 6 its
// input, 7 the receipts for that (see frame.go). The kernel's
// own messages go to console 0, so that the job's consoles carry nothing but the job.
func umlMachine(r *virtualMachine) (*machine, error) {
	c, runDir := r.cfg, r.dir
	kernel := filepath.Join(c.cache, "uml/usr/bin/linux.uml")
	if _, err := os.Stat(kernel); err != nil {
		return nil, fmt.Errorf("%w; fetch it with scripts/deps", err)
	}
	init, err := copySelf(runDir)
	if err != nil {
		return nil, err
	}
	con1, con3 := "con1=null,fd:4", "con3=null,fd:7"
	switch r.job.Stdin {
	case stdinTTY:
		con1 = "con1=fd:6,fd:4"
	case stdinFramed:
		con3 = "con3=fd:6,fd:7"
	}
	args := []string{
		"linux.uml", "rootfstype=hostfs", "rootflags=/", "ro", "init=" + init, shareVariable + "=" + r.share(),
		fmt.Sprintf("mem=%dM", c.memory>>20), "uml_dir=" + runDir, "umid=uml",
		"con=null", "con0=null,fd:3", con1, "con2=null,fd:5", con3, "console=tty0", "quiet",
		"panic=-1", "random.trust_cpu=on",
	}
	for i := range c.disks {
		disk, err := r.makeDisk(i)
		if err != nil {
			return nil, err
		}
		args = append(args, fmt.Sprintf("ubd%c=%s", 'a'+i, disk))
	}
	env := []string{"TMPDIR=" + memoryDir(c.memory, runDir), "HOME=" + runDir, "PATH=/usr/bin:/bin"}
	// See scripts/uml-ptrace.c: without it UML does not run on processors with AMX.
	env = append(env, "LD_PRELOAD="+filepath.Join(c.cache, "uml/ptrace.so"))
	return &machine{Path: kernel, Args: args, Env: env}, nil
}

// copySelf copies this program for the guest. Its own file may have been replaced by another version
// while this process waited for a core.
func copySelf(dir string) (string, error) {
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "init")
	return path, os.WriteFile(path, data, 0o700)
}

// memoryDir returns where UML puts the file that is its memory: on tmpfs if that is big enough.
func memoryDir(need int64, fallback string) string {
	var fs unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &fs); err == nil && fs.Type == unix.TMPFS_MAGIC && int64(fs.Bavail)*fs.Bsize > need {
		return "/dev/shm"
	}
	return fallback
}

// makeDisk makes the file of disk i: sparse, and gone with the run.
func (r *virtualMachine) makeDisk(i int) (string, error) {
	path := filepath.Join(r.dir, fmt.Sprintf("disk%d", i))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	if err := f.Truncate(r.cfg.disks[i]); err != nil {
		_ = f.Close()
		return "", fmt.Errorf("set the size of a disk: %w", err)
	}
	return path, f.Close()
}
