package vmexec

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// qemuBootModules lead to the root file system and the consoles. What they depend on is added.
var qemuBootModules = []string{"virtio_pci", "virtio_console", "virtio_blk", "9pnet_virtio", "9p"}

// Tags of the folders that QEMU hands to the guest over 9p.
const (
	tagRoot  = "vmexec_root"
	tagShare = "vmexec_share"
)

// qemuMachine describes an emulated machine with several processors. It takes no hardware support:
// ten to twenty times slower than UML, but two threads really run at once.
func qemuMachine(r *virtualMachine) (*machine, error) {
	c := r.cfg
	kernel, err := theOnly(filepath.Join(c.cache, "qemu/boot/vmlinuz-*"))
	if err != nil {
		return nil, fmt.Errorf("%w; fetch it with scripts/deps qemu", err)
	}
	version := strings.TrimPrefix(filepath.Base(kernel), "vmlinuz-")
	initrd := filepath.Join(r.dir, "initrd")
	if err := writeInitrd(initrd, filepath.Join(r.job.ModuleTree, "lib/modules", version), qemuBootModules); err != nil {
		return nil, err
	}
	usr := filepath.Join(c.cache, "tools/usr")
	folder := func(id, path, tag, more string) []string {
		return []string{
			"-fsdev", fmt.Sprintf("local,id=%s,path=%s,security_model=none,multidevs=remap%s", id, path, more),
			"-device", fmt.Sprintf("virtio-9p-pci,fsdev=%s,mount_tag=%s", id, tag),
		}
	}
	console := func(id, backend string) []string {
		return []string{"-chardev", backend + ",id=" + id, "-device", "virtconsole,chardev=" + id}
	}
	args := []string{
		"qemu-system-x86_64", "-L", usr + "/share/qemu", "-L", usr + "/share/seabios",
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", fmt.Sprint(c.cpus), "-m", fmt.Sprintf("%dM", c.memory>>20),
		"-display", "none", "-nodefaults", "-no-user-config", "-no-reboot",
		"-chardev", "file,id=log,path=/proc/self/fd/3,append=on", "-serial", "chardev:log",
		"-kernel", kernel, "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off",
		"-device", "virtio-serial-pci,max_ports=8", "-device", "virtio-rng-pci",
	}
	args = append(args, folder("root", "/", tagRoot, ",readonly=on")...)
	args = append(args, folder("share", r.share(), tagShare, "")...)
	for i, dir := range c.rw {
		args = append(args, folder(fmt.Sprintf("rw%d", i), dir, writableTag(i), "")...)
	}
	out, in := "file,path=/proc/self/fd/4", "file,path=/proc/self/fd/7"
	switch r.job.Stdin {
	case stdinTTY:
		out, err = duplexPipe(r.dir, 6, 4)
	case stdinFramed:
		in, err = duplexPipe(r.dir, 6, 7)
	}
	if err != nil {
		return nil, err
	}
	args = append(args, console("out", out)...)
	args = append(args, console("err", "file,path=/proc/self/fd/5")...)
	args = append(args, console("in", in)...)
	for i := range c.disks {
		disk, err := r.makeDisk(i)
		if err != nil {
			return nil, err
		}
		args = append(args, "-drive", "format=raw,if=virtio,discard=unmap,file="+disk)
	}
	env := []string{"LD_LIBRARY_PATH=" + usr + "/lib/x86_64-linux-gnu", "TMPDIR=" + r.dir, "PATH=/usr/bin:/bin", "HOME=" + r.dir}
	return &machine{Path: usr + "/bin/qemu-system-x86_64", Args: args, Env: env}, nil
}

// duplexPipe makes a console's other side out of two open files: QEMU adds .in and .out to the path.
func duplexPipe(dir string, in, out int) (string, error) {
	path := filepath.Join(dir, "console")
	for suffix, fd := range map[string]int{".in": in, ".out": out} {
		if err := os.Symlink(fmt.Sprintf("/proc/self/fd/%d", fd), path+suffix); err != nil {
			return "", err
		}
	}
	return "pipe,path=" + path, nil
}

func writableTag(i int) string { return fmt.Sprintf("vmexec_rw%d", i) }

func theOnly(pattern string) (string, error) {
	found, err := filepath.Glob(pattern)
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", fmt.Errorf("want one file %s, got %d: %w", pattern, len(found), os.ErrNotExist)
	}
	return found[0], nil
}
