// Package thinpool drives the device-mapper's thin provisioning: pools, the
// thin devices in them, and snapshots of these. It prints and parses the
// tables and status lines of the thin-pool and thin targets, sends a pool's
// messages, and activates, resizes and deactivates devices.
//
// A pool is a device that lies on a metadata and a data device; a thin device
// is a number ([ID]) in the metadata until it is activated as a device of its
// own, with a size that the caller remembers: the pool does not store it.
//
// # Is it committed?
//
// A message to a pool can return success although the pool has failed to write
// it down (drivers/md/dm-thin.c, pool_message ignores what commit returns).
// Every method of [Pool] that sends a message therefore looks at the pool's
// status afterwards, and returns [ErrNotCommitted] unless the pool can still
// write its metadata.
//
// # What the kernel does not guard against
//
// One id can be activated by two devices at once, and the two then corrupt
// each other's data; give each id one uuid, which the kernel keeps unique. A
// snapshot of a thin device that is active is consistent only while the device
// is suspended. A pool whose metadata device begins with 4 KiB of zeros is
// formatted when it is activated: package thinmeta tells a blank device from
// one with metadata. A pool's clock has 24 bits and ticks with every snapshot;
// after 2^24 of them the kernel mixes up blocks.
//
// Functions here make calls into the kernel that cannot be interrupted; they
// take as long as the pool takes to commit.
package thinpool
