// Package thinmeta reads the metadata of a thin pool as it lies on disk, from
// anything that is an [io.ReaderAt]: which devices there are, which data blocks
// they have, which of these they share, how two of them differ, and whether
// all of it is in order. It needs no privileges and no kernel, and trusts
// nothing that it reads.
//
// On disk the metadata is an array of blocks of 4 KiB in little-endian order,
// each with a checksum and its own number (the kernel's
// drivers/md/persistent-data and drivers/md/dm-thin-metadata.c); the whole
// format is described in docs/thin-metadata.md.
//
// # Of what
//
// [Open] reads the metadata of a pool that is not active, a copy of it in a
// file, or, with [Options.Root], a metadata snapshot of a pool that is in use:
// reserve one, open the metadata device with O_DIRECT, read, release it
// (thinpool.Pool.WithMetadataSnap).
//
// # Damage
//
// What cannot be read is told as a [*Damage], with the block, the way to it and
// the keys that are hidden with it, in between what can be read: a loop over a
// sequence gets errors and goes on. Only the context's error, [ErrNoDevice] and
// [ErrNoSpaceMap] end a sequence. Trees that loop, or that share so much that a
// walk through them would not end, are damage as well.
//
// # Memory
//
// Sequences need the cache and nothing else. [Metadata.Usage] and
// [Metadata.Check] need memory for what they have seen; see there.
package thinmeta
