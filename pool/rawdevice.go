package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/lockfile"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// BackingDevice is a pool on two block devices, one for the data and one for the metadata.
const BackingDevice = "device"

// rawDevices is a device backing. Its devices are found by the headers that they begin with, whatever they are called.
type rawDevices struct {
	files  files
	record metadata.Pool
	dm     *devmapper.Client
	wipe   bool // create may wipe what is on the disks
	locked bool // the operation has the lock of all disks
}

func (d *rawDevices) nodes() string { return filepath.Join(d.files.state(d.record.UUID), "nodes") }

// savedDisks is the file with what create overwrites, until the pool is made.
func (f files) savedDisks() string { return filepath.Join(f.dir(), "disks.saved") }

// lockDisks keeps all others of this run directory from taking disks, until unlock.
func (f files) lockDisks(ctx context.Context) (unlock func(), err error) {
	path := filepath.Join(f.dirs.Run, "lock", "disks")
	if err := makeDirs(filepath.Dir(path)); err != nil {
		return nil, err
	}
	h, err := lockfile.Open(path).Holder(ctx)
	if err != nil {
		return nil, err
	}
	if err := h.Lock(ctx, at(0), lockfile.Exclusive); err != nil {
		return nil, errors.Join(fmt.Errorf("wait for others who take disks: %w", err), h.Close())
	}
	return func() { _ = h.Close() }, nil
}

// attach finds the devices and has them open until the tables hold them. Meanwhile nobody else takes any.
func (d *rawDevices) attach(ctx context.Context) (a attached, err error) {
	unlock := func() {}
	if !d.locked {
		if unlock, err = d.files.lockDisks(ctx); err != nil {
			return a, err
		}
	}
	pair, err := d.find(ctx, false)
	if err != nil {
		unlock()
		return a, missing(err, errs.ErrDamaged)
	}
	a = attached{
		data: devmapper.DevNum(pair.data.node.DevNum), metadata: devmapper.DevNum(pair.metadata.node.DevNum),
		metadataPath: pair.metadata.path, dataStart: headerSpace, metadataStart: headerSpace,
		close: func() error {
			defer unlock()
			return pair.Close()
		},
	}
	a.dataName = nameOf(pair.data.node.DevNum, d.record.Backing.DataDevice, pair.data.path)
	a.metadataName = nameOf(pair.metadata.node.DevNum, d.record.Backing.MetadataDevice, pair.metadata.path)
	a.dataSize, a.metadataSize, err = d.sizes(pair)
	if err == nil {
		err = d.files.markPlace(d.record.UUID)
	}
	if err == nil && d.record.State == metadata.PoolReady {
		err = removeFiles(d.files.savedDisks()) // of a create that died once the pool was made
	}
	if err != nil {
		return attached{}, errors.Join(err, a.close())
	}
	return a, nil
}

// sizes returns how much of the devices the pool uses: what the record says, or what the metadata says after it has grown and this record was
// read before.
func (d *rawDevices) sizes(pair rawPair) (data, meta int64, err error) {
	data, meta = d.record.Backing.DataSize, d.record.Backing.MetadataSize
	if d.record.State != metadata.PoolCreating {
		part := part{file: pair.metadata.file, begin: headerSpace, size: pair.metadata.payload()}
		// What cannot be read is told by whoever looks at it next.
		if sb, err := thinmeta.ReadSuperblock(&part); err == nil {
			data = max(data, bytesOf(sb.DataSpace.Blocks, uint64(sb.DataBlockSize)*uint64(devmapper.SectorSize)))
			meta = max(meta, bytesOf(sb.MetadataSpace.Blocks, thinmeta.BlockSize))
		}
	}
	for _, want := range []struct {
		disk rawDisk
		size int64
	}{{pair.data, data}, {pair.metadata, meta}} {
		if have := want.disk.payload(); have < want.size {
			err := fmt.Errorf("the %s device %s has become smaller: it has %d bytes for the pool, which uses %d: %w",
				want.disk.header.Role, want.disk.path, have, want.size, errs.ErrDamaged)
			return 0, 0, errs.WithHint(err, "make it as large as it was; nothing was changed")
		}
	}
	return data, meta, nil
}

// under goes by the mark: what the pool's linear devices lie on was looked at when they were made.
func (d *rawDevices) under(*devmapper.Client) (bool, error) {
	mark, err := os.ReadFile(d.files.placeMark(d.record.UUID))
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	marked, _, _ := strings.Cut(string(mark), " ")
	id, err := placeID(d.files.dir())
	return id == marked, err
}

// detached has nothing to do: what lies on the devices are tables, which are the caller's.
func (d *rawDevices) detached(context.Context) error { return nil }

func (d *rawDevices) paths(context.Context) (data, meta string, err error) {
	one := func(suffix, last string) (string, error) {
		n, err := d.below(suffix)
		if errors.Is(err, devmapper.ErrNotFound) {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		path, err := fsutil.DevicePath(n)
		return nameOf(n, last, path), err
	}
	if data, err = one(suffixData, d.record.Backing.DataDevice); err != nil {
		return "", "", err
	}
	meta, err = one(suffixMetadata, d.record.Backing.MetadataDevice)
	return data, meta, err
}

// nameOf returns what a device is called: as it was until now, if that still leads to it.
func nameOf(n fsutil.DevNum, last, now string) string {
	if at, err := fsutil.DevNumOf(last); err == nil && at == n {
		return last
	}
	return now
}

func (d *rawDevices) names() (data, meta string) {
	return d.record.Backing.DataDevice, d.record.Backing.MetadataDevice
}

func (d *rawDevices) open(ctx context.Context, write bool) (*media, error) {
	pair, err := d.either(ctx, write)
	if err != nil {
		return nil, missing(err, errs.ErrNotFound)
	}
	data, meta, err := d.sizes(pair)
	if err != nil {
		return nil, errors.Join(err, pair.Close())
	}
	part := func(disk rawDisk, size int64) *part {
		return &part{name: disk.path, file: disk.file, begin: headerSpace, size: size}
	}
	return &media{data: part(pair.data, data), metadata: part(pair.metadata, meta)}, nil
}

// either opens the devices of a pool that runs, or of one that does not.
func (d *rawDevices) either(ctx context.Context, write bool) (p rawPair, err error) {
	meta, err := d.below(suffixMetadata)
	if errors.Is(err, devmapper.ErrNotFound) {
		return d.find(ctx, write)
	}
	if err != nil {
		return p, err
	}
	data, err := d.below(suffixData)
	if err != nil {
		return p, err
	}
	for n, to := range map[fsutil.DevNum]*rawDisk{data: &p.data, meta: &p.metadata} {
		role := rawDataRole
		if to == &p.metadata {
			role = rawMetaRole
		}
		path, err := nodeFor(d.nodes(), n)
		if err == nil {
			*to, err = d.openDisk(seenDisk{path: path, node: fsutil.DiskNode{DevNum: n}, header: diskHeader{Role: role}}, write)
		}
		if err != nil {
			return p, errors.Join(err, p.Close())
		}
	}
	return p, nil
}

func (d *rawDevices) check(ctx context.Context, running bool) (list []Finding, err error) {
	if running {
		for _, suffix := range []string{suffixData, suffixMetadata} {
			if _, err := d.below(suffix); err != nil {
				return nil, err
			}
		}
		return nil, nil
	}
	for _, suffix := range []string{suffixData, suffixMetadata} {
		n, err := d.below(suffix)
		if err == nil {
			list = append(list, NewFinding(FoundBackingLeft, "device "+n.String(), "%s", deviceName(d.record.UUID, suffix)))
		} else if !errors.Is(err, devmapper.ErrNotFound) {
			return nil, err
		}
	}
	s, err := d.search(ctx)
	if err != nil {
		return nil, err
	}
	data, meta := d.names()
	for role, name := range map[string]string{rawDataRole: data, rawMetaRole: meta} {
		_, err := d.one(s, role)
		none := (*missingError)(nil)
		switch {
		case errors.As(err, &none):
			list = append(list, NewFinding(FoundBackingMissing, name, "%v", err))
		case err != nil:
			list = append(list, NewFinding(FoundBackingTwice, name, "%v", err),
				NewFinding(FoundBackingMissing, name, "which of the two is the pool's cannot be told"))
		}
	}
	return list, nil
}

// devices are those of a pool that does not run: all that are there.
func (d *rawDevices) devices(ctx context.Context) (list []devmapper.DevNum, err error) {
	s, err := d.search(ctx)
	if err != nil {
		return nil, err
	}
	for _, role := range []string{rawDataRole, rawMetaRole} {
		for _, disk := range d.seen(s.disks, role) {
			list = append(list, devmapper.DevNum(disk.node.DevNum))
		}
	}
	return list, nil
}

func (d *rawDevices) install(ctx context.Context, path string) error {
	return installCopy(ctx, d, path)
}

// room is what the devices have by now: they grow where they come from.
func (d *rawDevices) room(ctx context.Context) (Room, error) {
	pair, err := d.either(ctx, false)
	if err != nil {
		return Room{}, missing(err, errs.ErrNotFound)
	}
	r := Room{
		DataSize:     pair.data.payload() / d.record.BlockSize * d.record.BlockSize,
		MetadataSize: min(pair.metadata.payload(), int64(thinpool.MaxMetadataSize)),
	}
	r.DataMax, r.MetadataMax = r.DataSize, r.MetadataSize
	return r, pair.Close()
}

// grow only looks whether the devices have become that large.
func (d *rawDevices) grow(ctx context.Context, data, meta int64) error {
	r, err := d.room(ctx)
	if err != nil {
		return err
	}
	dataName, metaName := d.names()
	for _, want := range []struct {
		role, name string
		need, have int64
	}{{rawDataRole, dataName, data, r.DataMax}, {rawMetaRole, metaName, meta, r.MetadataMax}} {
		if want.need > want.have {
			err := fmt.Errorf("the %s device %s has %d bytes for the pool and not %d: %w", want.role, want.name, want.have, want.need, errs.ErrNoSpace)
			return errs.WithHint(err, "make the disk, partition or volume larger first; the pool can use it at once")
		}
	}
	return nil
}

// notePlaces records where the devices were found, for people.
func (s *Session) notePlaces(r *metadata.Pool) {
	if r.Backing.Type == BackingDevice && s.dataName != "" {
		r.Backing.DataDevice, r.Backing.MetadataDevice = s.dataName, s.metadataName
	}
}
