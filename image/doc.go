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
// against their digests, and the sizes of layers against their manifests, before the first layer is made.
// Each layer is then read once: what is read, hashed and decompressed ahead is what is unpacked, and its
// node is recorded only after the digest of its bytes in the archive, where that spells one, and its diff
// id were right. A layer that is there already is not read at all. An image is recorded, with its
// references, in one transaction after all layers of the archive exist: whatever List shows is whole.
//
// A load of an archive that is damaged, invalid or not supported removes the layers it made and nobody
// else uses. One that is killed, cancelled, or ended by something else than its archive leaves the layers
// that are whole: the next load of the archive goes on from there, and `prune` removes them.
//
// A stream is unpacked while it comes in, as far as its order allows: where index.json or manifest.json
// and the configs come before the layers. The rest waits in a file without a name.
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
