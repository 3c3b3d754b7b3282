// Package image brings container images into a pool and takes them out of it again.
//
// Load reads what docker save, podman save, skopeo, buildkit, crane and their like write: an archive
// with a manifest.json (of Docker 1.10 and later), an OCI layout as a directory or as a tar archive,
// plain or compressed as a whole with gzip or zstd, from a file or from a stream; layers may be plain,
// gzip or zstd. Each layer becomes an immutable layer node named "sha256-<chain id>", made once for all
// images that share it. What is needed to write each layer tar again, byte by byte, is kept with it
// from the first load on; see RebuildLayer.
//
// Nothing in an archive is believed. Manifests, configs and indexes are read up to a bound and checked
// against their digests; then the digests of all layers of all images in the archive are compared
// before the first layer is made; and each layer's diff id is compared once more while it is unpacked,
// before it is recorded. Where a digest of the compressed bytes is not spelled in the archive, the diff
// id is what is compared beforehand. An image is recorded, with its references, in one transaction
// after all layers of the archive exist: whatever List shows is whole. A load that fails or is
// cancelled removes the layers it made and nobody else uses; one that is killed leaves layers that
// `prune` or the next load of the image finds.
//
// # Errors
//
// An archive that is no image, is cut off, lacks a file that it names, spells a digest wrong or is
// otherwise malformed is ErrDamaged. A file that is not there is ErrNotFound. What is well-formed but
// cannot be used (an artifact that is no image, another operating system, an unknown media type or
// compression, no manifest for the platform) is ErrUnsupported. A reference or platform that the caller
// spelled wrong is ErrInvalid. A full pool, file system or spool directory is ErrNoSpace.
//
// All functions may be called from any number of goroutines and processes at once.
package image
