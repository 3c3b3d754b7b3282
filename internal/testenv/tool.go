package testenv

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
)

// Tool is a command that runs a program of PATH, or else one that scripts/deps has fetched.
func Tool(ctx context.Context, name string, args ...string) *exec.Cmd {
	path, libraries, err := findTool(name)
	if err != nil {
		path = name // which says so when it is run
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if libraries != "" {
		cmd.Env = append(cmd.Env, "LD_LIBRARY_PATH="+libraries)
	}
	return cmd
}

// findTool also returns where a fetched program's libraries are.
func findTool(name string) (path, libraries string, err error) {
	if path, err = exec.LookPath(name); err == nil {
		return path, "", nil
	}
	dir, cacheErr := CacheDir()
	if cacheErr != nil {
		return "", "", err
	}
	for _, bin := range []string{"tools/usr/sbin", "tools/usr/bin", "systemd/usr/bin"} {
		if path, err = exec.LookPath(filepath.Join(dir, bin, name)); err == nil {
			shared := filepath.Join(dir, bin, "../lib/x86_64-linux-gnu")
			return path, shared + ":" + shared + "/systemd", nil // where systemd has what its programs share
		}
	}
	return "", "", err
}

func needTool(name string) func() error {
	return func() error {
		_, _, err := findTool(name)
		return err
	}
}
