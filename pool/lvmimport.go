package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/lvm"
	"github.com/dmlayer/dmlayer/metadata"
)

// importVolumes takes over a pool that lies on the volumes of a volume group.
func importVolumes(ctx context.Context, dirs Dirs, o ImportOptions) (ImportReport, error) {
	return importMedia(ctx, dirs, o, func() (metadata.Pool, error) { return recordOfVolumes(ctx, o.VG) })
}

// recordOfVolumes finds the volumes of a pool by their tags, and returns what they tell of its record. name is that of a volume group,
// or VG/LV with one of the volumes.
func recordOfVolumes(ctx context.Context, name string) (r metadata.Pool, err error) {
	group, volume, _ := strings.Cut(name, "/")
	if err := lvm.ValidNames(group, volume); err != nil {
		return r, err
	}
	c := lvm.New()
	vg, err := groupToImport(ctx, c, group)
	if err != nil {
		return r, err
	}
	_, lvs, err := c.GroupWithLVs(ctx, vg.UUID)
	if err != nil {
		return r, err
	}
	if r.UUID, err = poolOfVolumes(vg, lvs, volume); err != nil {
		return r, err
	}
	r.Backing = metadata.Backing{Type: BackingLVM, LVM: &metadata.LVM{VG: vg.Name, VGUUID: vg.UUID}}
	l := r.Backing.LVM
	for _, lv := range lvs {
		switch {
		case !lv.HasTag(tagPool + r.UUID):
		case lv.HasTag(tagData) && l.DataUUID == "":
			l.DataLV, l.DataUUID = lv.Name, lv.UUID
		case lv.HasTag(tagMetadata) && l.MetadataUUID == "":
			l.MetadataLV, l.MetadataUUID = lv.Name, lv.UUID
		}
	}
	// Those that are not there, or there twice, are found by whoever opens them.
	if named, ok := strings.CutSuffix(strings.TrimPrefix(l.DataLV, tagOurs+"-"), "-data"); ok && named != r.UUID[:12] && ValidateName("pool", named) == nil {
		r.Name = named
	}
	return r, nil
}

// groupToImport returns the volume group of that name, which must be there once, and this machine's.
func groupToImport(ctx context.Context, c *lvm.Client, name string) (lvm.VG, error) {
	vg, err := c.VGByName(ctx, name)
	if errors.Is(err, errs.ErrNotFound) {
		if host, ferr := c.HostOf(ctx, name); ferr == nil {
			err := fmt.Errorf("volume group %q is of the host with the system id %q, which may be using it: %w", name, host, errs.ErrBusy)
			return vg, errs.WithHint(err, "vgexport it there; where that host is gone for good, vgchange --systemid makes it this one's (lvmsystemid(7))")
		}
		return vg, errs.WithHint(err, "vgs shows the volume groups that there are; where lvm2 has a devices file, lvmdevices --adddev adds a disk to it")
	}
	if err != nil {
		return vg, err
	}
	if vg.Exported {
		err := fmt.Errorf("volume group %q was exported: %w", name, errs.ErrBusy)
		return vg, errs.WithHint(err, "make it this machine's: vgimport "+name)
	}
	return vg, nil
}

// poolOfVolumes returns the UUID of the one pool of which a volume group has volumes, or of the one that has a volume of that name.
func poolOfVolumes(vg lvm.VG, lvs []lvm.LV, volume string) (string, error) {
	pools := map[string][]string{}
	var uuids []string
	for _, lv := range lvs {
		uuid := poolTag(lv)
		if uuid == "" || volume != "" && lv.Name != volume {
			continue
		}
		if pools[uuid] = append(pools[uuid], lv.Name); len(pools[uuid]) == 1 {
			uuids = append(uuids, uuid)
		}
	}
	where := vg.Name
	if volume != "" {
		where += "/" + volume
	}
	switch len(uuids) {
	case 0:
		err := fmt.Errorf("%s has no volume with the tags of a pool: %w", where, errs.ErrNotFound)
		hint := "lvs -o+tags " + vg.Name + " shows the volumes and their tags: " + tagPool + "UUID, and " + tagData + " or " + tagMetadata
		if vg.MissingPVs > 0 {
			hint = fmt.Sprintf("%d of its disks are missing; ", vg.MissingPVs) + hint
		}
		return "", errs.WithHint(err, hint)
	case 1:
		return uuids[0], nil
	}
	slices.Sort(uuids)
	var each []string
	for _, uuid := range uuids {
		each = append(each, strings.Join(pools[uuid], " and "))
	}
	err := fmt.Errorf("volume group %q has the volumes of %d pools: %s: %w", vg.Name, len(uuids), strings.Join(each, "; "), errs.ErrInvalid)
	return "", errs.WithHint(err, "name one of the pool's volumes: --vg "+vg.Name+"/"+pools[uuids[0]][0])
}

// poolTag returns the UUID of the pool whose volume it is, "" for none.
func poolTag(lv lvm.LV) string {
	if !lv.HasTag(tagData) && !lv.HasTag(tagMetadata) {
		return ""
	}
	for _, tag := range lv.Tags {
		if uuid, ok := strings.CutPrefix(tag, tagPool); ok && isUUID(uuid) {
			return uuid
		}
	}
	return ""
}

// volumesAt returns what a record says of its volumes, as they were found at: what was made for the pool goes with it wherever it is, but
// not a volume group that is another one.
func volumesAt(l, at *metadata.LVM) *metadata.LVM {
	if at == nil || l == nil {
		return l
	}
	now := *l
	now.VG, now.VGUUID, now.DataLV, now.DataUUID, now.MetadataLV, now.MetadataUUID = at.VG, at.VGUUID, at.DataLV, at.DataUUID, at.MetadataLV, at.MetadataUUID
	if l.VGUUID != at.VGUUID {
		now.MadeVG, now.Device = false, ""
	}
	return &now
}

// sameVolumes tells whether a record describes the volumes that were found.
func sameVolumes(l, at *metadata.LVM) bool {
	return at == nil || l != nil && l.VGUUID == at.VGUUID && l.DataUUID == at.DataUUID && l.MetadataUUID == at.MetadataUUID
}
