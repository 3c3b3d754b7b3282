package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/lvm"
	"github.com/dmlayer/dmlayer/metadata"
)

// BackingLVM is a pool on two logical volumes of a volume group.
const BackingLVM = "lvm"

var (
	pointLVMActivated   = fault.New("pool.lvm.activated")
	pointLVMDeactivated = fault.New("pool.lvm.deactivated")
)

// The tags of the volumes, of which the pool's, with its UUID, says whose they are. A volume without it is never touched.
const (
	tagOurs     = "dmlayer"
	tagData     = "dmlayer-data"
	tagMetadata = "dmlayer-metadata"
	tagPool     = "dmlayer-pool-"
)

// volumes is the backing of a pool on logical volumes. They are plain, linear ones: the thin pool on them is ours, and lvm2
// knows nothing of it, so that its programs run only when volumes are made, activated, grown or removed.
type volumes struct {
	p   *Pool
	lvm *lvm.Client
}

func newVolumes(p *Pool) volumes {
	c := lvm.New()
	if p.locks != nil { // else somebody else's disks are only looked at
		c = c.Guarded(lvm.Guard{File: p.locks, Range: at(offsetLVM)})
	}
	return volumes{p, c}
}

// tag is the tag that all volumes of the pool have.
func (v volumes) tag() string { return tagPool + v.p.record.UUID }

// holding are the volumes of the pool as lvm2 tells of them.
type holding struct {
	vg             lvm.VG
	data, metadata []lvm.LV // one each, unless something is wrong
	others         []lvm.LV // of the group
}

// unused is ErrBusy where somebody has made snapshots of the volumes: lvm2 would remove these with them.
func (h holding) unused() error {
	for _, lv := range h.all() {
		for _, o := range h.others {
			if o.Origin == lv.Name {
				err := fmt.Errorf("volume %s/%s is a snapshot of the pool's volume %s: %w", h.vg.Name, o.Name, lv.Name, errs.ErrBusy)
				return errs.WithHint(err, "it is somebody else's: lvremove removes it, and lvconvert --merge is not for a pool that runs")
			}
		}
	}
	return nil
}

func (h holding) all() []lvm.LV { return slices.Concat(h.data, h.metadata) }

func (h holding) active() []lvm.LV { return h.which(true) }
func (h holding) asleep() []lvm.LV { return h.which(false) }

func (h holding) which(active bool) (lvs []lvm.LV) {
	for _, lv := range h.all() {
		if lv.Active == active {
			lvs = append(lvs, lv)
		}
	}
	return lvs
}

// group looks the volume group up, whatever it is called by now. None is ErrNotFound.
func (v volumes) group(ctx context.Context) (lvm.VG, error) {
	if uuid := v.p.record.Backing.LVM.VGUUID; uuid != "" {
		return v.lvm.VGByUUID(ctx, uuid)
	}
	return v.lvm.VGByTag(ctx, v.tag()) // of a create that died
}

// find looks for the volumes by their tags, whatever they are called by now. A group that is not there is ErrNotFound.
func (v volumes) find(ctx context.Context) (h holding, err error) {
	uuid := v.p.record.Backing.LVM.VGUUID
	if uuid == "" {
		if h.vg, err = v.group(ctx); err != nil {
			return h, err
		}
		uuid = h.vg.UUID
	}
	var lvs []lvm.LV
	h.vg, lvs, err = v.lvm.GroupWithLVs(ctx, uuid)
	for _, lv := range lvs {
		switch {
		case !lv.HasTag(v.tag()) || lv.Origin != "": // a snapshot may have the tags of its origin
			h.others = append(h.others, lv)
		case lv.HasTag(tagMetadata):
			h.metadata = append(h.metadata, lv)
		case lv.HasTag(tagData):
			h.data = append(h.data, lv)
		}
	}
	return h, err
}

// whole is ErrDamaged where the volumes are not what the record says.
func (v volumes) whole(h holding) error {
	l := v.p.record.Backing.LVM
	for _, part := range []struct {
		lvs        []lvm.LV
		name, uuid string
	}{{h.data, l.DataLV, l.DataUUID}, {h.metadata, l.MetadataLV, l.MetadataUUID}} {
		name := h.vg.Name + "/" + part.name
		switch {
		case len(part.lvs) == 0:
			err := absent("volume %s is missing, or has lost the tag %s", name, v.tag())
			return errs.WithHint(err, "lvs -o+tags "+h.vg.Name+" shows the volumes that there are")
		case len(part.lvs) > 1:
			err := fmt.Errorf("volumes %s and %s both have the tags of pool %q: %w", part.lvs[0].Name, part.lvs[1].Name, v.p.files.name, errs.ErrDamaged)
			return errs.WithHint(err, "take the tags from the one that is none of the pool's (lvchange --deltag)")
		case part.uuid != "" && part.lvs[0].UUID != part.uuid:
			return v.p.mispaired("volume %s is another one than the pool was made on: its UUID is %s, not %s", name, part.lvs[0].UUID, part.uuid)
		case part.lvs[0].Partial:
			err := absent("a physical volume of %s is missing", name)
			return errs.WithHint(err, "attach the disk that is missing; pvs -o+missing shows it")
		}
	}
	return nil
}

// missing turns a volume group that is not there into ErrDamaged: the pool is here, and what it lies on is not.
func (v volumes) missing(err error) error {
	if !errors.Is(err, errs.ErrNotFound) {
		return err
	}
	l := v.p.record.Backing.LVM
	err = absent("volume group %q (%s) is not there", l.VG, l.VGUUID)
	return errs.WithHint(err, "attach its disks; vgs shows the volume groups that lvm2 sees")
}

// dmUUIDs returns the UUIDs of the volumes' devices, which are known once the pool has been made.
func (v volumes) dmUUIDs() (data, meta devmapper.UUID) {
	l := v.p.record.Backing.LVM
	if l.DataUUID == "" || l.MetadataUUID == "" {
		return "", ""
	}
	of := func(uuid string) devmapper.UUID {
		return devmapper.UUID(lvm.LV{VGUUID: l.VGUUID, UUID: uuid}.DMUUID())
	}
	return of(l.DataUUID), of(l.MetadataUUID)
}

// devs returns the numbers of the volumes' devices, the zero value of one that is not active.
func (v volumes) devs() (data, metadata devmapper.DevNum, err error) {
	du, mu := v.dmUUIDs()
	for uuid, to := range map[devmapper.UUID]*devmapper.DevNum{du: &data, mu: &metadata} {
		if uuid == "" {
			continue
		}
		info, err := v.p.dm.Info(devmapper.ByUUID(uuid))
		if errors.Is(err, devmapper.ErrNotFound) {
			continue
		}
		if err != nil {
			return data, metadata, kernelError(err)
		}
		*to = info.Dev
	}
	return data, metadata, nil
}

func (v volumes) attach(ctx context.Context) (a attached, err error) {
	h, err := v.ready(ctx)
	if err != nil {
		return a, err
	}
	if err := pointLVMActivated.Hit(); err != nil {
		return a, err
	}
	var open []*os.File
	a.close = func() error {
		var err error
		for _, f := range open {
			err = errors.Join(err, f.Close())
		}
		return err
	}
	for _, part := range []struct {
		lv   lvm.LV
		dev  *devmapper.DevNum
		size *int64
	}{{h.metadata[0], &a.metadata, &a.metadataSize}, {h.data[0], &a.data, &a.dataSize}} {
		f, err := v.hold(part.lv)
		if err != nil {
			return attached{}, errors.Join(err, a.close())
		}
		open = append(open, f)
		num, err := fsutil.DevNumOfFile(f)
		size, serr := fsutil.SizeOf(f)
		if err := errors.Join(err, serr); err != nil {
			return attached{}, errors.Join(err, a.close())
		}
		*part.dev, *part.size = devmapper.DevNum(num), int64(size)
	}
	a.metadataPath = open[0].Name()
	if err := v.p.files.markPlace(v.p.record.UUID); err != nil {
		return attached{}, errors.Join(err, a.close())
	}
	return a, nil
}

// ready makes the volumes active. What it returns tells which were not.
func (v volumes) ready(ctx context.Context) (holding, error) {
	h, err := v.settled(ctx)
	if err != nil {
		return h, err
	}
	if v.p.record.State == metadata.PoolReady {
		if err := v.p.files.forgetDisk(); err != nil { // of a create that died once the pool was made
			return h, err
		}
	}
	return h, v.lvm.Activate(ctx, h.asleep()...)
}

// settled finds the volumes, and makes the devices of those that are active what lvm2 says that they are. A command of lvm2 that
// works on them holds a lock that keeps the look at them waiting: what is found to be different has been left so by one that died.
func (v volumes) settled(ctx context.Context) (holding, error) {
	h, err := v.find(ctx)
	if err != nil {
		return h, v.missing(err)
	}
	if err := v.whole(h); err != nil {
		return h, err
	}
	var odd []lvm.LV
	for _, lv := range h.active() {
		if lv.Suspended || v.stale(lv) {
			odd = append(odd, lv)
		}
	}
	return h, v.lvm.Refresh(ctx, odd...)
}

// stale tells whether a volume's device has another size than the volume: a command died that was about to make it larger.
func (v volumes) stale(lv lvm.LV) bool {
	size := v.kernelSize(devmapper.UUID(lv.DMUUID()))
	return size >= 0 && size != lv.Size
}

// hold opens the device of a volume, so that it stays what it is.
func (v volumes) hold(lv lvm.LV) (*os.File, error) {
	name := lv.VG + "/" + lv.Name
	info, err := v.p.dm.Info(devmapper.ByUUID(devmapper.UUID(lv.DMUUID())))
	if errors.Is(err, devmapper.ErrNotFound) {
		err := fmt.Errorf("lvm2 did not activate volume %s: %w", name, errs.ErrUnsupported)
		return nil, errs.WithHint(err, "see activation/volume_list in the configuration of lvm2")
	}
	if err != nil {
		return nil, kernelError(err)
	}
	path, err := v.p.DeviceNode(info.Dev)
	if err != nil {
		return nil, err
	}
	f, err := fsutil.OpenDevice(path, false)
	if err != nil {
		return nil, err
	}
	// Minors are reused: what was opened has to be what was asked for.
	num, err := fsutil.DevNumOfFile(f)
	if err == nil {
		var now devmapper.Info
		if now, err = v.p.dm.Info(devmapper.ByDev(devmapper.DevNum(num))); err == nil && string(now.UUID) != lv.DMUUID() {
			err = fmt.Errorf("volume %s was deactivated meanwhile: %w", name, errs.ErrBusy)
		}
	}
	if err != nil {
		return nil, errors.Join(kernelError(err), f.Close())
	}
	return f, nil
}

func (v volumes) detached(ctx context.Context) error {
	data, metadata, err := v.devs()
	if err != nil || data == (devmapper.DevNum{}) && metadata == (devmapper.DevNum{}) {
		return err
	}
	h, err := v.find(ctx)
	if err != nil {
		return v.missing(err)
	}
	if err := v.lvm.Deactivate(ctx, h.active()...); err != nil {
		return err
	}
	return pointLVMDeactivated.Hit()
}

// under compares the devices below the running pool with the volumes of the record.
func (v volumes) under(dm *devmapper.Client) (bool, error) {
	data, metadata := v.dmUUIDs()
	for above, uuid := range map[string]devmapper.UUID{suffixPool: data, suffixMetadata: metadata} {
		if uuid == "" { // it is being made, and nobody can have copied it
			continue
		}
		info, err := dm.Info(devmapper.ByUUID(uuid))
		if errors.Is(err, devmapper.ErrNotFound) {
			continue
		}
		if err != nil {
			return false, err
		}
		deps, err := dm.Deps(devmapper.ByUUID(deviceUUID(v.p.record.UUID, above)))
		if err != nil {
			return false, err
		}
		if !slices.Contains(deps, info.Dev) {
			return false, nil
		}
	}
	return true, nil
}
