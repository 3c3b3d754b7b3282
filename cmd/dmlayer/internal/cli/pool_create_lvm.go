package cli

import (
	"github.com/spf13/pflag"

	"github.com/dmlayer/dmlayer/pool"
)

// lvmFlags adds the flags of pools on logical volumes.
func (o *poolCreateOptions) lvmFlags(f *pflag.FlagSet) {
	f.StringVar(&o.spec.VG, "vg", "", "keep the pool in logical volumes of this volume `group`, which lvm2 makes")
	f.StringVar(&o.spec.Device, "device", "", "make a volume group on this `disk` or partition, for the pool alone")
	f.StringVar(&o.spec.ThinPool, "thin-pool", "", "with --vg: take the place of this thin `pool` of lvm2, which must be empty")
	f.IntVar(&o.spec.DataPercent, "data-percent", 0, "`percent` of the free extents that the data gets, where it has no size (default 95)")
}

// checkLVM tells whether the flags ask for volumes, and whether that can be.
func (o *poolCreateOptions) checkLVM(f *pflag.FlagSet) (bool, error) {
	switch {
	case o.spec.VG != "" && o.spec.Device != "":
		return false, usagef("--vg and --device: only one of them, a volume group that there is or a disk to make one on")
	case o.spec.ThinPool != "" && o.spec.VG == "":
		return false, usagef("--thin-pool: needs --vg, the volume group that it is in")
	case o.spec.ThinPool != "" && (o.spec.DataSize != 0 || o.spec.MetadataSize != 0 || f.Changed("data-percent")):
		return false, usagef("--thin-pool: its sizes are those of the pool; --data-size, --data-percent and --metadata-size cannot be given")
	case f.Changed("data-percent") && o.spec.VG == "" && o.spec.Device == "":
		return false, usagef("--data-percent: only with --vg or --device")
	case f.Changed("data-percent") && (o.spec.DataPercent < 1 || o.spec.DataPercent > 100):
		return false, usagef("--data-percent %d: must be 1 to 100", o.spec.DataPercent)
	case f.Changed("data-percent") && o.spec.DataSize != 0:
		return false, usagef("--data-percent and --data-size: only one of them")
	case o.spec.VG == "" && o.spec.Device == "":
		return false, nil
	case o.spec.DataDevice != "" || o.spec.MetadataDevice != "":
		return false, usagef("--data-device: not with --vg or --device")
	}
	o.spec.Backing = pool.BackingLVM
	return true, nil
}
