// Package thinmeta reads the metadata of a thin pool as it lies on disk, from
// anything that is an [io.ReaderAt]. It needs no privileges and no kernel, and
// trusts nothing that it reads.
//
// On disk the metadata is an array of blocks of 4 KiB in little-endian order,
// each with a checksum and its own number (the kernel's
// drivers/md/persistent-data and drivers/md/dm-thin-metadata.c).
package thinmeta
