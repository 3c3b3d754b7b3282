package fsutil

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// MountOptions says how to mount.
type MountOptions struct {
	Type     Type
	ReadOnly bool
	// MountReadOnly refuses writes through a detached mount while its file system may be writable: it finds the
	// superblock of a device that is mounted for writing, and replays a journal.
	MountReadOnly bool
	// Extra options as in fstab(5): generic ones (ro, nosuid, nodev, noexec, noatime, ...) and those of the
	// file system. An element may hold several, separated by commas.
	Extra []string
}

// generic are the options that mount(2) takes as flags, and what the new mount API calls them.
var generic = map[string]struct {
	set, clear uintptr // of mount(2)
	attr       int     // of fsmount(2); 0 where it is an option of the superblock
	attrClear  int
}{
	"defaults":      {},
	"ro":            {set: unix.MS_RDONLY, attr: unix.MOUNT_ATTR_RDONLY},
	"rw":            {clear: unix.MS_RDONLY, attrClear: unix.MOUNT_ATTR_RDONLY},
	"nosuid":        {set: unix.MS_NOSUID, attr: unix.MOUNT_ATTR_NOSUID},
	"suid":          {clear: unix.MS_NOSUID, attrClear: unix.MOUNT_ATTR_NOSUID},
	"nodev":         {set: unix.MS_NODEV, attr: unix.MOUNT_ATTR_NODEV},
	"dev":           {clear: unix.MS_NODEV, attrClear: unix.MOUNT_ATTR_NODEV},
	"noexec":        {set: unix.MS_NOEXEC, attr: unix.MOUNT_ATTR_NOEXEC},
	"exec":          {clear: unix.MS_NOEXEC, attrClear: unix.MOUNT_ATTR_NOEXEC},
	"nosymfollow":   {set: unix.MS_NOSYMFOLLOW, attr: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"symfollow":     {clear: unix.MS_NOSYMFOLLOW, attrClear: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"noatime":       {set: unix.MS_NOATIME, clear: unix.MS_RELATIME | unix.MS_STRICTATIME, attr: unix.MOUNT_ATTR_NOATIME, attrClear: unix.MOUNT_ATTR__ATIME},
	"atime":         {clear: unix.MS_NOATIME, attrClear: unix.MOUNT_ATTR_NOATIME},
	"relatime":      {set: unix.MS_RELATIME, clear: unix.MS_NOATIME | unix.MS_STRICTATIME, attrClear: unix.MOUNT_ATTR__ATIME},
	"norelatime":    {clear: unix.MS_RELATIME},
	"strictatime":   {set: unix.MS_STRICTATIME, clear: unix.MS_NOATIME | unix.MS_RELATIME, attr: unix.MOUNT_ATTR_STRICTATIME, attrClear: unix.MOUNT_ATTR__ATIME},
	"nostrictatime": {clear: unix.MS_STRICTATIME, attrClear: unix.MOUNT_ATTR_STRICTATIME},
	"nodiratime":    {set: unix.MS_NODIRATIME, attr: unix.MOUNT_ATTR_NODIRATIME},
	"diratime":      {clear: unix.MS_NODIRATIME, attrClear: unix.MOUNT_ATTR_NODIRATIME},
	"sync":          {set: unix.MS_SYNCHRONOUS},
	"async":         {clear: unix.MS_SYNCHRONOUS},
	"dirsync":       {set: unix.MS_DIRSYNC},
	"lazytime":      {set: unix.MS_LAZYTIME},
	"nolazytime":    {clear: unix.MS_LAZYTIME},
	"silent":        {set: unix.MS_SILENT},
	"loud":          {clear: unix.MS_SILENT},
}

// superblock options of mount(2)'s flags that the new mount API takes by name.
var superFlags = []string{"sync", "dirsync", "lazytime", "silent"}

// ParsedOptions are mount options, split as the kernel wants them.
type ParsedOptions struct {
	Flags uintptr  // MS_* of mount(2)
	Data  []string // options of the file system
	attrs int      // MOUNT_ATTR_* of fsmount(2)
}

// ReadOnly says whether they mount read-only.
func (p ParsedOptions) ReadOnly() bool { return p.Flags&unix.MS_RDONLY != 0 }

// ParseOptions splits options as in fstab(5) into the generic ones, which become flags, and those of
// the file system. Of contradictory ones the last wins. Options that would make something else of a mount (bind, move,
// remount, propagation) or that are for mount(8) alone (loop, user) are errs.ErrInvalid.
func ParseOptions(options ...string) (ParsedOptions, error) {
	var p ParsedOptions
	for _, list := range options {
		for _, o := range splitOptions(list) {
			if err := p.add(o); err != nil {
				return ParsedOptions{}, err
			}
		}
	}
	return p, nil
}

var refused = []string{
	"bind", "rbind", "move", "remount", "shared", "rshared", "private", "rprivate", "slave", "rslave",
	"unbindable", "runbindable", "loop", "user", "users", "owner", "group",
}

func (p *ParsedOptions) add(o string) error {
	if strings.ContainsRune(o, 0) {
		return fmt.Errorf("mount option %q: %w", o, errs.ErrInvalid)
	}
	if slices.Contains(refused, o) {
		return fmt.Errorf("mount option %q is not for a file system of its own: %w", o, errs.ErrInvalid)
	}
	g, ok := generic[o]
	if !ok {
		p.Data = append(p.Data, o)
		return nil
	}
	p.Flags = p.Flags&^g.clear | g.set
	p.attrs = p.attrs&^g.attrClear | g.attr
	return nil
}

// splitOptions splits at commas outside double quotes (SELinux contexts have commas).
func splitOptions(list string) []string {
	var out []string
	quoted, start := false, 0
	for i := 0; i <= len(list); i++ {
		switch {
		case i < len(list) && list[i] == '"':
			quoted = !quoted
		case i == len(list) || list[i] == ',' && !quoted:
			if o := strings.TrimSpace(list[start:i]); o != "" {
				out = append(out, o)
			}
			start = i + 1
		}
	}
	return out
}

// parsed returns the caller's options after those that the type always gets.
func (o MountOptions) parsed() (ParsedOptions, error) {
	if err := o.Type.Valid(); err != nil {
		return ParsedOptions{}, err
	}
	p, err := ParseOptions(o.Extra...)
	if err != nil {
		return ParsedOptions{}, err
	}
	if o.ReadOnly {
		p.Flags |= unix.MS_RDONLY
		p.attrs |= unix.MOUNT_ATTR_RDONLY
	}
	if o.MountReadOnly {
		p.attrs |= unix.MOUNT_ATTR_RDONLY
	}
	p.Data = append(o.always(p.Data), o.without(p.Data)...)
	return p, nil
}

// CheckOptions is errs.ErrInvalid for options that a file system is not mounted with: discard of ext4. When the kernel could not write its
// journal, as on a full pool, it discards all the same what the failed transaction freed (ext4_process_freed_data), which the next
// mount shows again, of zeros. xfs discards only what its log has.
func CheckOptions(t Type, options ...string) error {
	p, err := ParseOptions(options...)
	if err != nil {
		return err
	}
	if t == Ext4 && slices.Contains(p.Data, "discard") {
		return errs.WithHint(fmt.Errorf("mount option \"discard\": ext4 discards with it also what it failed to delete: %w", errs.ErrInvalid),
			"leave it out; dmlayer trim NAME or dmlayer pool trim do it safely")
	}
	return nil
}

// without takes out what CheckOptions refuses, which older records may have.
func (o MountOptions) without(given []string) []string {
	return slices.DeleteFunc(given, func(option string) bool { return o.Type == Ext4 && option == "discard" })
}

// always returns what the type is mounted with in any case, unless the given options say otherwise.
func (o MountOptions) always(given []string) []string {
	var always []string
	switch o.Type {
	case Ext4:
		if !hasOption(given, "errors") {
			always = append(always, "errors=remount-ro")
		}
		// A lazily initialized inode table (a foreign image, a mkfs without prezeroed blocks) would be written
		// out by every snapshot for itself, in the background.
		if !hasOption(given, "init_itable") && !hasOption(given, "noinit_itable") {
			always = append(always, "noinit_itable")
		}
	case XFS:
		// Every snapshot has its origin's UUID.
		if !hasOption(given, "nouuid") {
			always = append(always, "nouuid")
		}
	}
	return always
}

func hasOption(options []string, name string) bool {
	return slices.ContainsFunc(options, func(o string) bool {
		key, _, _ := strings.Cut(o, "=")
		return key == name
	})
}

// OptionsFor returns the options that Mount would mount with, for somebody who mounts himself: "ro", the caller's, and those that the type always gets.
func OptionsFor(o MountOptions) []string {
	var options []string
	if o.ReadOnly {
		options = append(options, "ro")
	}
	for _, list := range o.Extra {
		options = append(options, splitOptions(list)...)
	}
	options = o.without(options)
	return append(options, o.always(options)...)
}
