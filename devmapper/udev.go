package devmapper

// UdevFlags tell udev's device-mapper rules what to leave alone. They travel
// in the upper half of the "cookie" that the kernel repeats in the event
// (libdevmapper.h, DM_UDEV_*). The lower half, which would name a semaphore to
// wait on, is always zero: the rules then have nobody to wake.
type UdevFlags uint16

const (
	// UdevDisableDMRules keeps udev from making links in /dev/mapper.
	UdevDisableDMRules UdevFlags = 1 << 0
	// UdevDisableSubsystemRules keeps LVM's, multipath's ... rules off.
	UdevDisableSubsystemRules UdevFlags = 1 << 1
	// UdevDisableDiskRules stops blkid, the links in /dev/disk and the watch
	// on the device.
	UdevDisableDiskRules UdevFlags = 1 << 2
	// UdevDisableOtherRules asks udisks, systemd and others to ignore the
	// device.
	UdevDisableOtherRules UdevFlags = 1 << 3
	// UdevPrimarySource marks the event as one that the owner caused. Without
	// it in the first event, a later synthetic one ("udevadm trigger") makes
	// the rules drop the link again.
	UdevPrimarySource UdevFlags = 1 << 6
)

// DefaultUdevFlags leave a link in /dev/mapper and nothing else: no probing,
// no links by label or uuid, which clones of one file system would fight over.
const DefaultUdevFlags = UdevPrimarySource | UdevDisableSubsystemRules | UdevDisableDiskRules | UdevDisableOtherRules

func (f UdevFlags) cookie() uint32 { return uint32(f) << 16 }
