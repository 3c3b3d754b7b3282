package run

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// systemDirs are searched where PATH lacks them: a user's PATH often does.
var systemDirs = []string{"/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"}

// packages names the Debian package of each tool that dmlayer may start.
var packages = map[string]string{
	"mkfs.ext4":      "e2fsprogs",
	"e2fsck":         "e2fsprogs",
	"tune2fs":        "e2fsprogs",
	"dumpe2fs":       "e2fsprogs",
	"debugfs":        "e2fsprogs",
	"resize2fs":      "e2fsprogs",
	"mkfs.xfs":       "xfsprogs",
	"xfs_repair":     "xfsprogs",
	"xfs_growfs":     "xfsprogs",
	"xfs_admin":      "xfsprogs",
	"xfs_db":         "xfsprogs",
	"thin_check":     "thin-provisioning-tools",
	"thin_repair":    "thin-provisioning-tools",
	"thin_restore":   "thin-provisioning-tools",
	"thin_dump":      "thin-provisioning-tools",
	"thin_delta":     "thin-provisioning-tools",
	"thin_trim":      "thin-provisioning-tools",
	"lvm":            "lvm2",
	"pvcreate":       "lvm2",
	"pvs":            "lvm2",
	"pvremove":       "lvm2",
	"vgcreate":       "lvm2",
	"vgs":            "lvm2",
	"vgremove":       "lvm2",
	"vgextend":       "lvm2",
	"lvcreate":       "lvm2",
	"lvs":            "lvm2",
	"lvremove":       "lvm2",
	"lvextend":       "lvm2",
	"lvchange":       "lvm2",
	"lvrename":       "lvm2",
	"modprobe":       "kmod",
	"blkid":          "util-linux",
	"wipefs":         "util-linux",
	"systemctl":      "systemd",
	"systemd-notify": "systemd",
}

// Look returns the path of a tool: of a bare name as in PATH and then in the system's sbin and bin
// directories, of a path with a slash itself. A tool that is not there is errs.ErrUnsupported with a
// hint that names the package to install, and wraps exec.ErrNotFound.
func Look(tool string) (string, error) {
	path, err := exec.LookPath(tool)
	if err == nil {
		return filepath.Abs(path)
	}
	if !strings.Contains(tool, "/") && !errors.Is(err, exec.ErrDot) {
		for _, dir := range systemDirs {
			if p, err := exec.LookPath(filepath.Join(dir, tool)); err == nil {
				return p, nil
			}
		}
	}
	if pe := (*exec.Error)(nil); errors.As(err, &pe) {
		err = pe.Err // without a second copy of the name
	}
	err = fmt.Errorf("find program %q: %w: %w", tool, errs.ErrUnsupported, err)
	if pkg, ok := packages[base(tool)]; ok {
		return "", errs.WithHint(err, fmt.Sprintf("install the package %s (Debian, Ubuntu: apt install %s)", pkg, pkg))
	}
	return "", errs.WithHint(err, fmt.Sprintf("install the program %s or put its directory into PATH", base(tool)))
}
