package vmexec

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The initial root file system of a QEMU guest holds this program as /init, the modules that lead
// to the host's files, and bootModulesFile, which names the modules in the order of loading.

const bootModulesFile = "modules.boot"

func writeInitrd(path, moduleDir string, modules []string) error {
	order, err := moduleOrder(filepath.Join(moduleDir, "modules.dep"), modules)
	if err != nil {
		return err
	}
	init, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	var a cpioArchive
	a.add("init", 0o100755, init)
	for _, dir := range []string{"dev", "proc", "root"} {
		a.add(dir, 0o040755, nil)
	}
	var names strings.Builder
	for i, module := range order {
		data, err := os.ReadFile(filepath.Join(moduleDir, module))
		if err != nil {
			return fmt.Errorf("read module: %w", err)
		}
		name := fmt.Sprintf("%02d-%s", i, filepath.Base(module))
		a.add(name, 0o100644, data)
		fmt.Fprintln(&names, name)
	}
	a.add(bootModulesFile, 0o100644, []byte(names.String()))
	return os.WriteFile(path, a.end(), 0o600)
}

// moduleOrder reads depmod's list and returns the files of modules and of what they need, the
// needed before the needing. A module that is not listed is part of the kernel.
func moduleOrder(depFile string, modules []string) ([]string, error) {
	data, err := os.ReadFile(depFile)
	if err != nil {
		return nil, fmt.Errorf("read the module dependencies: %w", err)
	}
	byName := map[string][]string{} // file, then all that it needs, nearest first
	for line := range strings.Lines(string(data)) {
		file, needs, _ := strings.Cut(strings.TrimSpace(line), ":")
		byName[moduleName(file)] = append([]string{file}, strings.Fields(needs)...)
	}
	var order []string
	for _, m := range modules {
		files := slices.Clone(byName[moduleName(m)])
		slices.Reverse(files)
		for _, f := range files {
			if !slices.Contains(order, f) {
				order = append(order, f)
			}
		}
	}
	return order, nil
}

func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".")
	return strings.ReplaceAll(name, "-", "_")
}

// cpioArchive collects files in the format "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).
type cpioArchive struct {
	buf   bytes.Buffer
	inode int
}

func (a *cpioArchive) add(name string, mode int, data []byte) {
	a.inode++
	fmt.Fprintf(&a.buf, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	a.pad()
	a.buf.Write(data)
	a.pad()
}

func (a *cpioArchive) pad() {
	for a.buf.Len()%4 != 0 {
		a.buf.WriteByte(0)
	}
}

func (a *cpioArchive) end() []byte {
	a.add("TRAILER!!!", 0, nil)
	return a.buf.Bytes()
}
