package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// facts are what all places say of a pool's thin ids. They are gathered one after the other, so that two that belong
// together may be of different moments: what does not agree is looked at again, under the id's lock.
type facts struct {
	record metadata.Pool
	nodes  map[metadata.ThinID]metadata.Node
	names  map[string]metadata.ThinID
	tombs  map[metadata.ThinID]metadata.Tombstone

	running bool
	pool    devmapper.DevNum

	// What the pool has. Where not all of it could be read, what is missing may be there.
	thins       map[metadata.ThinID]thinmeta.Device
	thinsKnown  bool
	thinsSomeOf bool

	devices map[metadata.ThinID]deviceFacts
	others  []Finding // devices that are none of ours
	mounts  map[devmapper.DevNum][]fsutil.MountInfo
	claims  map[metadata.ThinID][]string
	marks   map[metadata.ThinID]bool
	sides   map[metadata.ThinID]bool
	links   []linkFacts
	strays  []Finding // files in places of ours with names that are not
}

// deviceFacts is what the kernel says of a thin device that is active.
type deviceFacts struct {
	devmapper.Info
	table thinpool.ThinTable
	size  devmapper.Sectors
	bad   error // why there is no table
}

// linkFacts is a link in the folder of links.
type linkFacts struct {
	name string
	id   metadata.ThinID // of the device that it leads to; 0 for none of ours
}

// gather asks all places but the pool's metadata.
func (s *Session) gather(ctx context.Context, running bool) (*facts, error) {
	f := &facts{
		nodes: map[metadata.ThinID]metadata.Node{}, names: map[string]metadata.ThinID{}, tombs: map[metadata.ThinID]metadata.Tombstone{},
		running: running, thins: map[metadata.ThinID]thinmeta.Device{},
		devices: map[metadata.ThinID]deviceFacts{}, mounts: map[devmapper.DevNum][]fsutil.MountInfo{}, claims: map[metadata.ThinID][]string{},
		marks: map[metadata.ThinID]bool{}, sides: map[metadata.ThinID]bool{},
	}
	if running {
		f.pool = s.Device
	}
	for _, ask := range []func(context.Context, *facts) error{
		s.gatherRecords, s.gatherDevices, s.gatherMounts, s.gatherRunDir, s.gatherSides, s.gatherLinks,
	} {
		if err := ask(ctx, f); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (s *Session) gatherRecords(ctx context.Context, f *facts) error {
	return s.Records.View(ctx, func(tx *metadata.Tx) (err error) {
		if f.record, err = tx.Pool(); err != nil {
			return err
		}
		tombs, err := tx.Tombstones()
		if err != nil {
			return err
		}
		for _, t := range tombs {
			f.tombs[t.ID] = t
		}
		return tx.Nodes(func(n metadata.Node) error {
			f.nodes[n.ID], f.names[n.Name] = n, n.ID
			return nil
		})
	})
}

func (s *Session) gatherDevices(_ context.Context, f *facts) error {
	list, err := s.p.dm.List("")
	if err != nil {
		return err
	}
	for _, d := range list {
		id, thin := s.p.ThinID(d.UUID)
		ours := strings.HasPrefix(string(d.UUID), uuidPrefix(s.p.record.UUID))
		suffix := strings.TrimPrefix(string(d.UUID), uuidPrefix(s.p.record.UUID))
		switch {
		case thin && id != labelID:
			err = s.gatherDevice(f, id, d)
		case ours && (thin || suffix == suffixPool || suffix == suffixMetadata || suffix == suffixData):
		case ours:
			f.others = append(f.others, NewFinding(FoundDeviceForeign, "device "+string(d.Name), "its uuid %s is of no kind that dmlayer makes", d.UUID))
		default:
			err = s.gatherForeign(f, d)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Session) gatherDevice(f *facts, id metadata.ThinID, d devmapper.ListEntry) error {
	info, err := s.p.dm.Info(devmapper.ByUUID(d.UUID))
	if errors.Is(err, devmapper.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	t := deviceFacts{Info: info}
	if info.Active {
		if t.table, t.size, err = thinpool.ReadThin(s.p.dm, devmapper.ByUUID(d.UUID)); errors.Is(err, devmapper.ErrNotFound) {
			return nil
		}
		t.bad = err
	}
	f.devices[id] = t
	return nil
}

// gatherForeign looks for thin devices on our pool that somebody else has made. Their devices may go at any time.
func (s *Session) gatherForeign(f *facts, d devmapper.ListEntry) error {
	if !f.running {
		return nil
	}
	t, _, err := thinpool.ReadThin(s.p.dm, devmapper.ByDev(d.Dev))
	if err == nil && t.Pool == f.pool {
		f.others = append(f.others, NewFinding(FoundDeviceForeign, "device "+string(d.Name), "it is thin device %d", t.ID))
	}
	if err != nil && !errors.Is(err, devmapper.ErrNotFound) && !errors.Is(err, thinpool.ErrWrongTarget) && !errors.Is(err, thinpool.ErrInvalid) {
		return err
	}
	return nil
}

func (s *Session) gatherMounts(_ context.Context, f *facts) error {
	mounts, err := fsutil.Mounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		f.mounts[devmapper.DevNum(m.Dev)] = append(f.mounts[devmapper.DevNum(m.Dev)], m)
	}
	return nil
}

// gatherRunDir reads claims and marks.
func (s *Session) gatherRunDir(_ context.Context, f *facts) error {
	if err := s.p.claims(f.claims); err != nil {
		return err
	}
	marked, err := s.Marked()
	for _, id := range marked {
		f.marks[id] = true
	}
	return err
}

// gatherSides reads which nodes have side files.
func (s *Session) gatherSides(ctx context.Context, f *facts) error {
	_, blobs, err := s.prepared(ctx)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(blobs)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read side files: %w", err)
	}
	for _, e := range entries {
		id, err := strconv.ParseUint(e.Name(), 10, 24)
		if err != nil {
			stray := NewFinding(FoundSideOrphan, filepath.Join(blobs, e.Name()), "its name is no thin id: dmlayer has not made it")
			stray.Class = NeedsPerson
			f.strays = append(f.strays, stray)
			continue
		}
		f.sides[metadata.ThinID(id)] = true
	}
	return nil
}

func (s *Session) gatherLinks(_ context.Context, f *facts) error {
	entries, err := os.ReadDir(s.p.files.deviceDir())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read links: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue // one that is being made
		}
		id, foreign, err := s.linked(filepath.Join(s.p.files.deviceDir(), e.Name()))
		if err != nil {
			return err
		}
		if !foreign {
			f.links = append(f.links, linkFacts{e.Name(), id})
		}
	}
	return nil
}

// linked returns the thin id of the device that a link leads to, and whether it is that of another pool of this name.
func (s *Session) linked(path string) (id metadata.ThinID, foreign bool, err error) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0, false, nil
	}
	info, err := s.p.dm.Info(devmapper.ByDev(devmapper.DevNum{Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev)}))
	if errors.Is(err, devmapper.ErrNotFound) || errors.Is(err, devmapper.ErrInvalid) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	id, ours := s.p.ThinID(info.UUID)
	return id, !ours && strings.HasPrefix(string(info.UUID), dmPrefix), nil
}

// readThins reads which thin devices the pool has.
func (f *facts) readThins(ctx context.Context, m *thinmeta.Metadata) error {
	f.thinsKnown = true
	for d, err := range m.Devices(ctx) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			f.thinsSomeOf = true
		}
		if (err == nil || d.ID != 0) && d.ID <= maxThinID {
			f.thins[metadata.ThinID(d.ID)] = d
		}
	}
	return nil
}

// thinMetadata runs fn on the metadata as it is: of a running pool on that of one moment, of a stopped one on its
// backing. The start/stop lock is held.
func (s *Session) thinMetadata(ctx context.Context, running bool, fn func(*thinmeta.Metadata) error) error {
	if running {
		return s.ReadMetadata(ctx, fn)
	}
	path, _, err := s.prepared(ctx)
	if err != nil {
		return err
	}
	media, err := s.openMedia(ctx)
	if err != nil {
		return err
	}
	defer media.Close()
	from := media.metadata
	if path != "" {
		if from, err = openPart(path, 0, false); err != nil {
			return err
		}
		defer from.file.Close()
	}
	m, err := thinmeta.Open(from, thinmeta.Options{})
	if err != nil {
		return fmt.Errorf("%s: %w: %w", from.name, err, errs.ErrDamaged)
	}
	return fn(m)
}

// openMedia opens what the pool lies on.
func (s *Session) openMedia(ctx context.Context) (*media, error) {
	b, err := s.p.backing()
	if err != nil {
		return nil, err
	}
	return b.open(ctx, false)
}
