package pool

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// DeviceNode returns a path that opens the device: devtmpfs's, or a node of our own where /dev is
// something else, as in a container.
func (p *Pool) DeviceNode(d devmapper.DevNum) (string, error) {
	want := unix.Mkdev(d.Major, d.Minor)
	path := "/dev/dm-" + strconv.FormatUint(uint64(d.Minor), 10)
	if isNode(path, want) {
		return path, nil
	}
	dir := filepath.Join(p.StateDir(), "nodes")
	if err := makeDirs(dir); err != nil {
		return "", err
	}
	path = filepath.Join(dir, strings.Replace(d.String(), ":", "-", 1))
	err := unix.Mknod(path, unix.S_IFBLK|0o600, int(want))
	if err == nil || errors.Is(err, unix.EEXIST) && isNode(path, want) {
		return path, nil
	}
	return "", fmt.Errorf("make device node %s: %w", path, err)
}

// OpenDevice opens a device and returns the path that opened it. One that is not there any more is ENXIO, ENOENT or errs.ErrNotFound.
func (p *Pool) OpenDevice(d devmapper.DevNum, write bool) (f *os.File, path string, err error) {
	path = "/dev/dm-" + strconv.FormatUint(uint64(d.Minor), 10)
	f, err = fsutil.OpenNumber(path, fsutil.DevNum(d), write)
	if err == nil || errors.Is(err, unix.ENXIO) {
		return f, path, err
	}
	if path, err = p.DeviceNode(d); err != nil { // where /dev is something else
		return nil, "", err
	}
	f, err = fsutil.OpenNumber(path, fsutil.DevNum(d), write)
	return f, path, err
}

func isNode(path string, dev uint64) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == dev
}

// ThinID returns the thin id that a dm UUID of this pool's names.
func (p *Pool) ThinID(uuid devmapper.UUID) (metadata.ThinID, bool) {
	rest, ok := strings.CutPrefix(string(uuid), uuidPrefix(p.record.UUID))
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(rest, 10, 24)
	return metadata.ThinID(n), err == nil
}

// Devices lists the pool's active thin devices by id, without the label.
func (p *Pool) Devices() (map[metadata.ThinID]devmapper.ListEntry, error) {
	list, err := p.dm.List(devmapper.UUID(uuidPrefix(p.record.UUID)))
	if err != nil {
		return nil, kernelError(err)
	}
	devices := make(map[metadata.ThinID]devmapper.ListEntry, len(list))
	for _, d := range list {
		if id, ok := p.ThinID(d.UUID); ok && id != labelID {
			devices[id] = d
		}
	}
	return devices, nil
}

// users names whoever uses a node of the pool.
func (s *Session) users(ctx context.Context) ([]string, error) {
	p := s.p
	devices, err := p.Devices()
	if err != nil {
		return nil, err
	}
	by := map[metadata.ThinID][]string{}
	for id, d := range devices {
		info, err := p.dm.Info(devmapper.ByUUID(d.UUID))
		if errors.Is(err, devmapper.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, kernelError(err)
		}
		if info.OpenCount > 0 {
			by[id] = p.Holders(info.Dev)
		}
	}
	if err := p.claims(by); err != nil {
		return nil, err
	}
	return s.named(ctx, by), nil
}

// named puts the nodes' names before who uses them.
func (s *Session) named(ctx context.Context, by map[metadata.ThinID][]string) []string {
	names := map[metadata.ThinID]string{}
	// That somebody uses it counts, also where the records cannot be read.
	_ = s.Records.View(ctx, func(tx *metadata.Tx) error {
		for id := range by {
			if n, err := tx.NodeByID(id); err == nil {
				names[id] = fmt.Sprintf("%s %q", n.Kind, n.Name)
			}
		}
		tombs, err := tx.Tombstones()
		for _, t := range tombs {
			names[t.ID] = fmt.Sprintf("removed node %q", t.Name)
		}
		return err
	})
	var users []string
	for id, who := range by {
		for _, w := range who {
			users = append(users, cmp.Or(names[id], fmt.Sprintf("thin device %d", id))+" is "+w)
		}
	}
	slices.Sort(users)
	return users
}

// Holders says how a device is used, as far as sysfs and the processes tell that this one may look at.
func (p *Pool) Holders(d devmapper.DevNum) []string {
	var who []string
	if mounts, err := fsutil.MountsOf(d.Major, d.Minor); err == nil {
		for _, m := range mounts {
			who = append(who, "mounted on "+m.Dir)
		}
	}
	entries, _ := os.ReadDir(fmt.Sprintf("/sys/dev/block/%s/holders", d))
	for _, e := range entries {
		who = append(who, "held by "+e.Name())
	}
	if len(who) > 0 {
		return who
	}
	users, err := fsutil.UsersOf(d.Major, d.Minor)
	if err != nil {
		p.log.Debug("look for users of a device", "device", d, "error", err)
	}
	for _, u := range users {
		who = append(who, u.String())
	}
	if len(who) == 0 {
		who = append(who, fmt.Sprintf("open (dm-%d) in another process or mount namespace", d.Minor))
	}
	return who
}

// ClaimDir returns the folder of the claims on thin devices: one folder an id, one file a claim.
func (p *Pool) ClaimDir() string { return filepath.Join(p.StateDir(), "claims") }

// claims adds the claims on the pool's nodes.
func (p *Pool) claims(by map[metadata.ThinID][]string) error {
	entries, err := os.ReadDir(p.ClaimDir())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read claims: %w", err)
	}
	for _, e := range entries {
		id, err := strconv.ParseUint(e.Name(), 10, 24)
		if err != nil {
			continue
		}
		held, err := os.ReadDir(filepath.Join(p.ClaimDir(), e.Name()))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("read claims: %w", err)
		}
		for _, c := range held {
			by[metadata.ThinID(id)] = append(by[metadata.ThinID(id)], c.Name())
		}
	}
	return nil
}

func joinUsers(users []string) string {
	const most = 8
	if len(users) > most {
		return strings.Join(users[:most], ", ") + fmt.Sprintf(" and %d more", len(users)-most)
	}
	return strings.Join(users, ", ")
}

// readLiveSuperblock reads block 0 past the page cache, which knows nothing of what the kernel's
// thin pool writes. A read that meets a write in the middle fails its checksum and is repeated.
func (p *Pool) readLiveSuperblock(d devmapper.DevNum) (sb thinmeta.Superblock, err error) {
	path, err := p.DeviceNode(d)
	if err != nil {
		return sb, err
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return sb, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	buf := alignedBlock()
	for range 8 {
		if _, err := unix.Pread(fd, buf, 0); err != nil {
			return sb, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if sb, err = thinmeta.ReadSuperblock(bytes.NewReader(buf)); err == nil {
			return sb, nil
		}
		err = fmt.Errorf("%s: %w", path, err)
	}
	return sb, err
}

// alignedBlock returns 4 KiB at an address that direct I/O takes.
func alignedBlock() []byte {
	const size = 4096
	b := make([]byte, 2*size)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (size - 1)
	return b[skip : skip+size]
}

// CheckSectors is ErrInvalid for the size of a node, in bytes, that does not end with a sector of the pool's disks: the kernel refuses a table
// of such a length.
func (s *Session) CheckSectors(size int64) error {
	const largest = 4096 // what metadata can be on
	if size%largest == 0 {
		return nil
	}
	if unit := fsutil.SectorSize(fsutil.DevNum(s.Device)); size%unit != 0 {
		return fmt.Errorf("size %d: no multiple of %d bytes, which a sector of the pool's disks has: %w", size, unit, errs.ErrInvalid)
	}
	return nil
}
