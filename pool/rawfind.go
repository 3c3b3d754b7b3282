package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
)

// How long the search waits for disks that do not answer: once all that is looked for has been found, and otherwise.
const (
	graceFound   = 3 * time.Second
	graceMissing = 20 * time.Second
)

// seenDisk is a block device of this machine with the header of a pool's device on it.
type seenDisk struct {
	node   fsutil.DiskNode
	path   string // of a device node that opens it
	header diskHeader
}

// search is what looking at the disks of this machine has come to.
type search struct {
	disks  []seenDisk // with a header that is whole
	silent []string   // disks that could not be read, and why
	others []answer   // disks that could be read, and are none of a pool
}

// answer is what a disk begins with.
type answer struct {
	disk  seenDisk
	first []byte // its first two sectors
	err   error
}

// searchDisks reads the header of each block device of this machine. It waits for one that does not answer for a while only, and
// not at all for what is known not to answer. enough tells whether what was found is all that is looked for. nodes is a folder for device
// nodes that /dev does not have.
func searchDisks(ctx context.Context, nodes string, enough func([]seenDisk) bool) (search, error) {
	var s search
	all, err := fsutil.Disks()
	if err != nil {
		return s, err
	}
	answers := make(chan answer, len(all))
	waiting := map[fsutil.DevNum]fsutil.DiskNode{}
	for _, node := range all {
		if strings.HasPrefix(node.DMUUID, dmPrefix) { // what lies on a pool's device, or on a node
			continue
		}
		if node.Mute != "" {
			s.silent = append(s.silent, fmt.Sprintf("%s: %s", node, node.Mute))
			continue
		}
		path, err := nodeFor(nodes, node.DevNum)
		if err != nil {
			return s, err
		}
		waiting[node.DevNum] = node
		go func() {
			// Through the page cache: whoever waits there can be killed.
			a := answer{disk: seenDisk{node: node, path: path}}
			if a.first, a.err = firstSectors(path, node.DevNum); a.err == nil {
				a.disk.header, a.err = parseHeader(a.first)
			}
			answers <- a
		}()
	}
	timer := time.NewTimer(graceMissing)
	defer timer.Stop()
	hurried := false
	for len(waiting) > 0 {
		select {
		case a := <-answers:
			delete(waiting, a.disk.node.DevNum)
			s.add(a)
		case <-ctx.Done():
			return s, ctx.Err()
		case <-timer.C:
			for _, node := range waiting {
				s.silent = append(s.silent, fmt.Sprintf("%s: it does not answer", node))
			}
			waiting = nil
		}
		if !hurried && enough(s.disks) {
			timer.Reset(graceFound)
			hurried = true
		}
	}
	s.drop(all)
	return s, nil
}

func (s *search) add(a answer) {
	switch {
	case a.err == nil:
		s.disks = append(s.disks, a.disk)
	case errors.Is(a.err, errNoHeader):
		s.others = append(s.others, a)
	case errors.Is(a.err, errs.ErrNotFound): // gone meanwhile
	default:
		s.silent = append(s.silent, fmt.Sprintf("%s: %v", a.disk.node, a.err))
	}
}

// drop forgets the disks that belong to one that lies on them, such as the paths of a multipath disk and the halves of a mirror: they
// show what it shows. What a pool has put there does not count.
func (s *search) drop(all []fsutil.DiskNode) {
	foreign := map[string]bool{}
	for _, d := range all {
		foreign[d.Name] = !strings.HasPrefix(d.DMUUID, dmPrefix)
	}
	s.disks = slices.DeleteFunc(s.disks, func(d seenDisk) bool {
		return slices.ContainsFunc(d.node.Holders, func(h string) bool { return foreign[h] })
	})
	slices.SortFunc(s.disks, func(a, b seenDisk) int { return cmp.Compare(a.path, b.path) })
}

// firstSectors reads the first two sectors of a device once it has been seen that the path leads to it.
func firstSectors(path string, n fsutil.DevNum) ([]byte, error) {
	f, err := openNode(path, n, false)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, 2*headerSector)
	if n, err := f.ReadAt(b, 0); n < headerSector {
		return nil, err
	}
	return b, nil
}

// openNode opens a device, which is the one of that number.
func openNode(path string, n fsutil.DevNum, exclusive bool) (*os.File, error) {
	open := fsutil.OpenDevice
	if exclusive {
		open = fsutil.OpenExclusive
	}
	f, err := open(path, exclusive)
	if err != nil {
		return nil, err
	}
	got, err := fsutil.DevNumOfFile(f)
	if err == nil && got != n {
		err = fmt.Errorf("%s is device %s and not %s: %w", path, got, n, errs.ErrNotFound)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// nodeFor returns a path that opens the block device of that number: devtmpfs's, or a node in a folder of our own where /dev is something
// else, as in a container.
func nodeFor(dir string, n fsutil.DevNum) (string, error) {
	want := unix.Mkdev(n.Major, n.Minor)
	if path, err := fsutil.DevicePath(n); err == nil && isNode(path, want) {
		return path, nil
	}
	if err := makeDirs(dir); err != nil {
		return "", err
	}
	path := filepath.Join(dir, strings.Replace(n.String(), ":", "-", 1))
	err := unix.Mknod(path, unix.S_IFBLK|0o600, int(want))
	if err == nil || errors.Is(err, unix.EEXIST) && isNode(path, want) {
		return path, nil
	}
	return "", fmt.Errorf("make device node %s: %w", path, err)
}

// rawDisk is a device of the pool, open.
type rawDisk struct {
	seenDisk
	file *os.File
	size int64 // bytes, of the whole device
}

// payload is how many bytes of data or metadata the device has room for.
func (d rawDisk) payload() int64 { return (d.size - headerSpace) &^ 4095 }

// rawPair are both devices of a pool.
type rawPair struct{ data, metadata rawDisk }

func (p rawPair) Close() error {
	var err error
	for _, d := range []rawDisk{p.data, p.metadata} {
		if d.file != nil {
			err = errors.Join(err, d.file.Close())
		}
	}
	return err
}

// seen returns the disks of this pool with that role.
func (d *rawDevices) seen(disks []seenDisk, role string) []seenDisk {
	var of []seenDisk
	for _, s := range disks {
		if s.header.UUID == d.record.UUID && s.header.Role == role {
			of = append(of, s)
		}
	}
	return of
}

func (d *rawDevices) search(ctx context.Context) (search, error) {
	return searchDisks(ctx, d.nodes(), func(disks []seenDisk) bool {
		return len(d.seen(disks, rawDataRole)) > 0 && len(d.seen(disks, rawMetaRole)) > 0
	})
}

// one returns the pool's disk with that role: missingError where there is none, ErrDamaged where there are several.
func (d *rawDevices) one(s search, role string) (seenDisk, error) {
	of := d.seen(s.disks, role)
	if len(of) > 1 {
		err := fmt.Errorf("the %s device of pool %q is there twice, as %s and %s: %w", role, d.record.Name, of[0].path, of[1].path, errs.ErrDamaged)
		return seenDisk{}, errs.WithHint(err, "one is a copy of the other: take the copy away, or use a multipath device that joins them. Nothing was changed")
	}
	if len(of) == 1 {
		return of[0], nil
	}
	size, last := d.record.Backing.DataSize, d.record.Backing.DataDevice
	if role == rawMetaRole {
		size, last = d.record.Backing.MetadataSize, d.record.Backing.MetadataDevice
	}
	text := fmt.Sprintf("the %s device of pool %q (%d bytes and more, last seen as %s) is missing", role, d.record.Name, size+headerSpace, last)
	if len(s.silent) > 0 {
		text += "; not readable: " + strings.Join(s.silent, ", ")
	}
	return seenDisk{}, &missingError{text}
}

// missing gives a missingError its class and says what to do; other errors stay as they are.
func missing(err, class error) error {
	if none := (*missingError)(nil); errors.As(err, &none) {
		return errs.WithHint(fmt.Errorf("%w: %w", err, class), "attach the disk, under whatever name; without it the pool's content cannot be reached")
	}
	return err
}

// find opens the devices of a pool that does not run, and looks once more at what it has opened.
func (d *rawDevices) find(ctx context.Context, exclusive bool) (p rawPair, err error) {
	s, err := d.search(ctx)
	if err != nil {
		return p, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	var missed error
	for role, to := range map[string]*rawDisk{rawDataRole: &p.data, rawMetaRole: &p.metadata} {
		seen, err := d.one(s, role)
		if err == nil {
			*to, err = d.openDisk(seen, exclusive)
		}
		missed = errors.Join(missed, err)
	}
	return p, missed
}

func (d *rawDevices) openDisk(seen seenDisk, exclusive bool) (disk rawDisk, err error) {
	disk.seenDisk = seen
	if disk.file, err = openNode(seen.path, seen.node.DevNum, exclusive); err != nil {
		return disk, err
	}
	if err := fsutil.DropCache(disk.file); err != nil {
		return disk, err
	}
	h, err := decodeHeader(disk.file)
	if err == nil && (h.UUID != d.record.UUID || h.Role != seen.header.Role) {
		err = fmt.Errorf("%s has become another disk: %w", seen.path, errs.ErrBusy)
	}
	if err != nil {
		return disk, err
	}
	size, err := fsutil.SizeOf(disk.file)
	disk.size = int64(size)
	return disk, err
}

// below returns the device below one of the pool's linear devices; none is ErrNotFound of package devmapper.
func (d *rawDevices) below(suffix string) (fsutil.DevNum, error) {
	deps, err := d.dm.Deps(devmapper.ByUUID(deviceUUID(d.record.UUID, suffix)))
	if err != nil {
		return fsutil.DevNum{}, err
	}
	if len(deps) != 1 {
		return fsutil.DevNum{}, fmt.Errorf("linear device %s of pool %q lies on %d devices: %w", suffix, d.record.Name, len(deps), errs.ErrDamaged)
	}
	return fsutil.DevNum(deps[0]), nil
}
