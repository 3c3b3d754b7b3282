package cli

import (
	"github.com/spf13/pflag"

	"github.com/dmlayer/dmlayer/pool"
)

// deviceFlags adds the flags of pools on two block devices.
func (o *poolCreateOptions) deviceFlags(f *pflag.FlagSet) {
	f.StringVar(&o.spec.DataDevice, "data-device", "", "keep the data on this `disk`, partition or volume, without LVM")
	f.StringVar(&o.spec.MetadataDevice, "metadata-device", "", "the `disk` for the metadata of --data-device")
}

// checkDevices tells whether the flags ask for two devices, and whether that can be.
func (o *poolCreateOptions) checkDevices(f *pflag.FlagSet) (bool, error) {
	switch {
	case o.spec.DataDevice == "" && o.spec.MetadataDevice == "":
		return false, nil
	case o.spec.DataDevice == "" || o.spec.MetadataDevice == "":
		return false, usagef("--data-device and --metadata-device: both are needed")
	case f.Changed("loopback") && o.loopback:
		return false, usagef("--loopback: not with --data-device")
	case o.spec.DataSize != 0 || o.spec.MetadataSize != 0:
		return false, usagef("--data-size and --metadata-size: not with --data-device, the pool uses all of both devices")
	}
	o.spec.Backing = pool.BackingDevice
	return true, nil
}
