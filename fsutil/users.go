package fsutil

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The ways in which a process uses a block device.
const (
	UsesMount  = "mount"  // its mount namespace has the file system mounted
	UsesFile   = "file"   // it has a file of the file system open, or works in it
	UsesDevice = "device" // it has the device itself open
)

// User is a process that uses a block device.
type User struct {
	PID     int
	Command string // its name, of up to 15 bytes
	How     string // UsesMount, UsesFile or UsesDevice
	Path    string // where it is mounted, seen from the process, or what it has open
}

func (u User) String() string {
	how := "open in"
	switch u.How {
	case UsesMount:
		how = "mounted on " + u.Path + " for"
	case UsesFile:
		how = "kept open (" + u.Path + ") by"
	}
	return fmt.Sprintf("%s process %d (%s)", how, u.PID, u.Command)
}

// UsersOf looks through the processes for users of a block device or of the file system on it, this process and its mount namespace
// left out. Of each other mount namespace where it is mounted there is one process, the oldest. Only where there is none, or where
// mounts explain too little, are the open files of all processes looked through. Processes that may not be looked at, or that end
// meanwhile, are passed over.
func UsersOf(major, minor uint32) ([]User, error) {
	processes, err := processIDs()
	if err != nil {
		return nil, err
	}
	dev := DevNum{major, minor}
	users := mountedFor(processes, dev)
	if len(users) > 0 {
		return append(users, openIn(processes, dev, UsesDevice)...), nil
	}
	return openIn(processes, dev, ""), nil
}

// OpenersOf is UsersOf of those who have files open, whatever else explains the use: they are who keeps a file system from being
// unmounted.
func OpenersOf(major, minor uint32) ([]User, error) {
	processes, err := processIDs()
	if err != nil {
		return nil, err
	}
	return openIn(processes, DevNum{major, minor}, UsesFile), nil
}

// processIDs are those of other processes, ascending.
func processIDs() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fail("list", "/proc", errors.Unwrap(err))
	}
	var ids []int
	for _, e := range entries {
		if id, err := strconv.Atoi(e.Name()); err == nil && id != os.Getpid() {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// mountedFor returns one process of each other mount namespace that has the device mounted.
func mountedFor(processes []int, dev DevNum) (users []User) {
	_ = eachNamespace(processes, func(id int, mounts []MountInfo) {
		if i := slices.IndexFunc(mounts, func(m MountInfo) bool { return m.Dev == dev }); i >= 0 {
			users = append(users, User{PID: id, Command: commandOf(processDir(id)), How: UsesMount, Path: mounts[i].Dir})
		}
	})
	return users
}

// MountedBesides returns who has the file system of a block device mounted besides the mount on a directory of this process's namespace: of each
// namespace one process, with PID 0 for this one. What other namespaces, which share this one's root, have on the same directory does not count: that is a copy of the mount.
func MountedBesides(major, minor uint32, dir string) ([]User, error) {
	own, err := Mounts()
	if err != nil {
		return nil, err
	}
	processes, err := processIDs()
	if err != nil {
		return nil, err
	}
	dev, root := DevNum{major, minor}, rootOf(own)
	var users []User
	look := func(id int, mounts []MountInfo) {
		copies := rootOf(mounts) == root
		i := slices.IndexFunc(mounts, func(m MountInfo) bool { return m.Dev == dev && !(copies && m.Dir == dir) })
		if i >= 0 {
			users = append(users, User{PID: id, Command: commandOf(processDir(id)), How: UsesMount, Path: mounts[i].Dir})
		}
	}
	look(0, own)
	return users, eachNamespace(processes, look)
}

// rootOf returns what is mounted on the root directory.
func rootOf(mounts []MountInfo) (dev DevNum) {
	for _, m := range mounts {
		if m.Dir == "/" {
			dev = m.Dev
		}
	}
	return dev
}

func processDir(id int) string { return filepath.Join("/proc", strconv.Itoa(id)) }

// eachNamespace calls fn with one process of each other mount namespace, and what is mounted there.
func eachNamespace(processes []int, fn func(id int, mounts []MountInfo)) error {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return fail("look at the namespace of", "/proc/self", errors.Unwrap(err))
	}
	seen := map[string]bool{own: true}
	for _, id := range processes {
		dir := processDir(id)
		ns, err := os.Readlink(filepath.Join(dir, "ns/mnt"))
		if err != nil || seen[ns] {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, "mountinfo"))
		if err != nil {
			continue // another process of the same namespace may do
		}
		seen[ns] = true
		mounts, err := ParseMountInfo(bytes.NewReader(b))
		if err != nil {
			continue
		}
		fn(id, mounts)
	}
	return nil
}

// openIn returns the processes that have the device open, or a file of the file system on it; only those of one way, unless it is "".
func openIn(processes []int, dev DevNum, only string) (users []User) {
	for _, id := range processes {
		dir := filepath.Join("/proc", strconv.Itoa(id))
		links := []string{filepath.Join(dir, "cwd"), filepath.Join(dir, "root"), filepath.Join(dir, "exe")}
		for _, sub := range []string{"fd", "map_files"} {
			entries, _ := os.ReadDir(filepath.Join(dir, sub))
			for _, e := range entries {
				links = append(links, filepath.Join(dir, sub, e.Name()))
			}
		}
		for _, link := range links {
			how := usedBy(link, dev)
			if how == "" || only != "" && how != only {
				continue
			}
			path, _ := os.Readlink(link)
			users = append(users, User{PID: id, Command: commandOf(dir), How: how, Path: path})
			break
		}
	}
	return users
}

// usedBy tells how what a link of /proc leads to has to do with a device.
func usedBy(link string, dev DevNum) string {
	var st unix.Stat_t
	if err := unix.Stat(link, &st); err != nil {
		return ""
	}
	is := func(d uint64) bool { return unix.Major(d) == dev.Major && unix.Minor(d) == dev.Minor }
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFBLK && is(uint64(st.Rdev)):
		return UsesDevice
	case is(uint64(st.Dev)):
		return UsesFile
	}
	return ""
}

func commandOf(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, "comm"))
	if errors.Is(err, fs.ErrNotExist) {
		return "?"
	}
	return strings.TrimSpace(string(b))
}
