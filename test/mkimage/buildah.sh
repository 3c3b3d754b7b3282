#!/bin/bash
# Makes images with buildah, in a mount namespace of a virtual machine.
#
#   buildah.sh INPUTS OUT    INPUTS as mkimage inputs makes them, OUT a writable folder
#
# OUT gets one image, of layers that buildah committed one by one, as buildah.docker.tar, buildah.oci.tar (gzip
# layers), buildah.oci (a layout, gzip) and buildah.zstd.oci (a layout, zstd), and as buildah.docker-format.oci.tar, with
# the manifest of a registry of Docker's.
set -euo pipefail
inputs=$1 out=$2
work=$(mktemp -d)

# On a file system with user.* attributes, which tmpfs of Linux 6.1 has not.
truncate -s 3G "$work/disk"
mkfs.ext4 -q "$work/disk"
mkdir /run/buildah.data
mount -o loop "$work/disk" /run/buildah.data
trap 'umount /run/buildah.data' EXIT
# Where it keeps what no option moves.
mount -t tmpfs cache /var/cache

mkdir "$work/home" "$work/tmp"
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$work/policy.json"
printf '[storage]\ndriver = "vfs"\ngraphroot = "/run/buildah.data"\nrunroot = "/run/buildah.run"\n' >"$work/storage.conf"
: >"$work/registries.conf"
export HOME=$work/home TMPDIR=$work/tmp CONTAINERS_STORAGE_CONF=$work/storage.conf BUILDAH_ISOLATION=chroot
export CONTAINERS_REGISTRIES_CONF=$work/registries.conf

# An image is begun from another, changed in steps, and finished with one more layer.
step() { buildah run --network none "$container" -- sh -c "$1"; }
begin() { container=$(buildah --log-level error from --pull-never "localhost/$1"); }
finish() {
	buildah commit -q --signature-policy "$work/policy.json" "${@:2}" "$container" "$1" >/dev/null
	buildah rm "$container" >/dev/null
}
push() { buildah push -q --signature-policy "$work/policy.json" "$@"; }

container=$(buildah from scratch)
buildah add -q "$container" "$inputs/base.tar" / >/dev/null
buildah config --cmd /bin/sh "$container"
finish base:1
begin base:1
buildah add -q "$container" "$inputs/kinds.tar" / >/dev/null
step 'mkdir -p /d/gone /d/opaque /d/swap && echo 1 >/d/gone/1 && echo 2 >/d/opaque/2 && echo 3 >/d/swap/3'
step 'echo one >/d/one && ln /d/one /d/two && ln -s one /d/three && chmod 4755 /d/two && mkfifo /d/pipe'
finish kinds:1
begin kinds:1
step 'rm -r /d/gone /d/swap && echo file >/d/swap && rm -r /d/opaque && mkdir -m 1770 /d/opaque && echo new >/d/opaque/new'
step 'ln /d/one /d/opaque/one && rm /d/three && mkdir /d/three && chown 12:34 /kinds/setgid && rm /kinds/fifo /kinds/null'
finish less:1
begin less:1
step 'rm /d/swap && mkdir /d/swap && dd if=/dev/zero of=/d/zeros bs=1024 count=1 seek=4095 2>/dev/null && chmod 700 /d'
buildah config --label made=by-hand --env A=b "$container"
finish app:1

push app:1 "docker-archive:$out/buildah.docker.tar:app:1"
push app:1 "oci-archive:$out/buildah.oci.tar:app:1"
push app:1 "oci:$out/buildah.oci:app:1"
push --compression-format zstd app:1 "oci:$out/buildah.zstd.oci:app:1"
push --format v2s2 app:1 "oci-archive:$out/buildah.docker-format.oci.tar:app:1"
