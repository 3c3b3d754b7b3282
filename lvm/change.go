package lvm

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/run"
)

// extent is that of the groups that CreateVG makes.
const extent = 4 << 20

// CreateGroup makes a physical volume of a device and a volume group of it. uuid, 32 letters and digits, becomes the physical
// volume's UUID, so that it can be told from others whatever the device is called by then. A device that carries a signature is
// refused by lvm2: it asks, and nobody answers. made is called between the two steps.
func (c *Client) CreateGroup(ctx context.Context, name, device, uuid, tag string, made func() error) error {
	args := []string{"-Zy", "--labelsector", "1", "--pvmetadatacopies", "1", "--dataalignment", "1m", "--uuid", FormatUUID(uuid), "--norestorefile"}
	if _, err := c.command(ctx, "pvcreate", append(args, "--", device)...); err != nil {
		return fmt.Errorf("make a physical volume of %s: %w", device, err)
	}
	if err := made(); err != nil {
		return err
	}
	_, err := c.command(ctx, "vgcreate", "-s", strconv.Itoa(extent)+"b", "--addtag", tag, "--", name, device)
	if err == nil {
		return nil
	}
	what := fmt.Sprintf("make volume group %q on %s", name, device)
	if vg, gerr := c.VGByName(ctx, name); gerr == nil && !vg.HasTag(tag) {
		return fmt.Errorf("%s: %w: %w", what, errs.ErrExists, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// FormatUUID writes 32 letters and digits as lvm2 writes a UUID.
func FormatUUID(s string) string {
	if len(s) != 32 {
		return s
	}
	return strings.Join([]string{s[:6], s[6:10], s[10:14], s[14:18], s[18:22], s[22:26], s[26:]}, "-")
}

// RemoveVG removes a volume group, which must be empty: lvm2 refuses another.
func (c *Client) RemoveVG(ctx context.Context, vg VG) error {
	if _, err := c.command(ctx, "vgremove", "-S", equals("vg_uuid", vg.UUID)); err != nil {
		return fmt.Errorf("remove volume group %q: %w", vg.Name, err)
	}
	return nil
}

// RemovePV takes lvm2's label off a device. One that is in a volume group is refused by lvm2, but for one that is lost.
func (c *Client) RemovePV(ctx context.Context, pv PV) error {
	args := []string{"--", pv.Name}
	if pv.Lost {
		args = append([]string{"-ff", "-y"}, args...)
	}
	if _, err := c.command(ctx, "pvremove", args...); err != nil {
		return fmt.Errorf("remove physical volume %s: %w", pv.Name, err)
	}
	return nil
}

// LVSpec says which volume is made.
type LVSpec struct {
	Name   string
	Size   int64 // bytes, a multiple of the group's extents
	Tags   []string
	Ranges []string // where it is to lie, as LV.Ranges; empty is anywhere
	Keep   bool     // signatures stay
}

// CreateLV makes a linear volume and activates it. Its first 4 KiB are zeroed and signatures wiped, unless they are to stay. A name that is taken is
// ErrExists, a group without that many free extents ErrNoSpace.
func (c *Client) CreateLV(ctx context.Context, vg VG, o LVSpec) error {
	wipe := "-Wy"
	if o.Keep {
		wipe = "-Wn"
	}
	args := []string{"-y", wipe, "-Zy", "-aey", "--type", "linear", "-L", strconv.FormatInt(o.Size, 10) + "b", "-n", o.Name}
	for _, t := range o.Tags {
		args = append(args, "--addtag", t)
	}
	_, err := c.command(ctx, "lvcreate", append(append(args, "--", vg.Name), o.Ranges...)...)
	return c.explainCreate(ctx, vg, o.Name, o.Size, err)
}

// explainCreate finds out why a volume was not made.
func (c *Client) explainCreate(ctx context.Context, vg VG, name string, size int64, err error) error {
	if err == nil {
		return nil
	}
	what := fmt.Sprintf("make volume %s/%s", vg.Name, name)
	if failed := (*run.Error)(nil); !errors.As(err, &failed) || ctx.Err() != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if lvs, lerr := c.LVs(ctx, vg.UUID); lerr == nil {
		for _, lv := range lvs {
			if lv.Name == name {
				return fmt.Errorf("%s: %w: %w", what, errs.ErrExists, err)
			}
		}
	}
	if now, gerr := c.VGByUUID(ctx, vg.UUID); gerr == nil && now.Free < size {
		return c.noSpace(what, now, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (c *Client) noSpace(what string, vg VG, err error) error {
	err = fmt.Errorf("%s: volume group %q has %d bytes free: %w: %w", what, vg.Name, vg.Free, errs.ErrNoSpace, err)
	return errs.WithHint(err, "add a disk to the volume group: vgextend "+vg.Name+" DEVICE")
}

// ThinPoolSpec says which thin pool is made.
type ThinPoolSpec struct {
	Name               string
	Size, MetadataSize int64 // bytes
	ThinPool
	NoSpare bool // no room is kept for a repair of the metadata
}

// CreateThinPool makes a thin pool of lvm2, which does what lvm2 takes for right when it is full. Errors are those of CreateLV.
func (c *Client) CreateThinPool(ctx context.Context, vg VG, o ThinPoolSpec) error {
	yes := map[bool]string{true: "y", false: "n"}
	bytes := func(n int64) string { return strconv.FormatInt(n, 10) + "b" }
	args := []string{
		"-y", "--type", "thin-pool", "-L", bytes(o.Size), "--poolmetadatasize", bytes(o.MetadataSize), "-c", bytes(o.ChunkSize), "-Z", yes[o.Zero],
		"--poolmetadataspare", yes[!o.NoSpare], "-n", o.Name,
	}
	if o.Discards != "" {
		args = append(args, "--discards", o.Discards)
	}
	_, err := c.command(ctx, "lvcreate", append(args, "--", vg.Name)...)
	return c.explainCreate(ctx, vg, o.Name, o.Size, err)
}

// SetWhenFull says what a thin pool does when it is full: "error" or "queue", and not what it does already. lvcreate of 2.03.16 does
// not take it.
func (c *Client) SetWhenFull(ctx context.Context, pool LV, what string) error {
	yes := map[bool]string{true: "y", false: "n"}
	if _, err := c.command(ctx, "lvchange", "-y", "--errorwhenfull", yes[what == "error"], "--", pool.VG+"/"+pool.Name); err != nil {
		return fmt.Errorf("set what thin pool %s/%s does when it is full: %w", pool.VG, pool.Name, err)
	}
	return nil
}

// selectLVs is a selection of volumes by their UUIDs, which nobody else's can have.
func selectLVs(lvs []LV) string {
	var each []string
	for _, lv := range lvs {
		each = append(each, equals("lv_uuid", lv.UUID))
	}
	return strings.Join(each, " || ")
}

func names(lvs []LV) string {
	var each []string
	for _, lv := range lvs {
		each = append(each, lv.VG+"/"+lv.Name)
	}
	return strings.Join(each, ", ")
}

// RemoveLVs removes volumes of one group. One that is in use is ErrBusy.
func (c *Client) RemoveLVs(ctx context.Context, lvs ...LV) error {
	return c.onLVs(ctx, "remove", lvs, "lvremove", "-f", "-y")
}

// Activate makes volumes of one group available to this machine alone.
func (c *Client) Activate(ctx context.Context, lvs ...LV) error {
	return c.onLVs(ctx, "activate", lvs, "lvchange", "-aey", "-K")
}

// Deactivate takes volumes of one group out of use. One that is in use is ErrBusy.
func (c *Client) Deactivate(ctx context.Context, lvs ...LV) error {
	return c.onLVs(ctx, "deactivate", lvs, "lvchange", "-an")
}

// ActivateComponent makes a hidden volume readable, of a volume that is not active, and DeactivateComponent takes it away again.
// lvm2 wants it by its name.
func (c *Client) ActivateComponent(ctx context.Context, lv LV) error {
	return c.component(ctx, lv, "activate", "-ay")
}

// DeactivateComponent undoes ActivateComponent.
func (c *Client) DeactivateComponent(ctx context.Context, lv LV) error {
	return c.component(ctx, lv, "deactivate", "-an")
}

func (c *Client) component(ctx context.Context, lv LV, what, how string) error {
	if _, err := c.command(ctx, "lvchange", "-y", how, "--", lv.VG+"/"+lv.Name); err != nil {
		return fmt.Errorf("%s %s/%s: %w", what, lv.VG, lv.Name, err)
	}
	return nil
}

// Refresh makes the kernel's devices of active volumes of one group what lvm2 says that they are, and resumes them: a command
// that died may have left them otherwise.
func (c *Client) Refresh(ctx context.Context, lvs ...LV) error {
	return c.onLVs(ctx, "refresh", lvs, "lvchange", "--refresh")
}

func (c *Client) onLVs(ctx context.Context, what string, lvs []LV, command string, args ...string) error {
	if len(lvs) == 0 {
		return nil
	}
	_, err := c.command(ctx, command, append(args, "-S", selectLVs(lvs), "--", lvs[0].VG)...)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s %s: %w", what, names(lvs), err)
	if open, oerr := c.open(ctx, lvs); oerr == nil && open {
		return fmt.Errorf("%w: %w", err, errs.ErrBusy)
	}
	return err
}

// open tells whether somebody has one of the volumes open.
func (c *Client) open(ctx context.Context, lvs []LV) (bool, error) {
	rows, err := c.report(ctx, "lvs", "lv", "("+selectLVs(lvs)+") && lv_device_open=1", []string{"lv_name"})
	return len(rows) > 0, err
}

// Extend makes a volume at least that many bytes large, while it is in use or not. A group without that many free extents is
// ErrNoSpace.
func (c *Client) Extend(ctx context.Context, lv LV, size int64) error {
	if size <= lv.Size {
		return nil
	}
	_, err := c.command(ctx, "lvextend", "-L", strconv.FormatInt(size, 10)+"b", "--", lv.VG+"/"+lv.Name)
	if err == nil {
		return nil
	}
	what := fmt.Sprintf("extend volume %s/%s to %d bytes", lv.VG, lv.Name, size)
	if vg, gerr := c.VGByUUID(ctx, lv.VGUUID); gerr == nil && vg.Free < size-lv.Size {
		return c.noSpace(what, vg, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
