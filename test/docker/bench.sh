#!/bin/bash
# Dockerds side by side, on dmlayer, on Docker's own devicemapper driver, on overlay2 and on two drivers that do nothing (null) and only what the kernel has to do
# (bare), measured in turn by test/bench.
#
#   bench.sh DIR BENCH IMAGE.docker.tar REF [FLAG...]      flags of `bench docker`
#
# See host.sh for how it is started. All of them are on one ext4 file system on a disk in memory, and the two pools on files there.
. "$(dirname "$0")/host.sh"
bench=$2 archive=$3 image=$4
shift 4

mkdir "$work/ext4"
truncate -s 60G "$work/disk"
mkfs.ext4 -q "$work/disk"
mount -o loop "$work/disk" "$work/ext4"
export DMLAYER_ROOT=$work/ext4/dmlayer DM_DISABLE_UDEV=1

# thin_pool makes a pool of the size and the blocks that dmlayer's has, for the devicemapper driver.
thin_pool() {
	local data meta
	truncate -s 20G "$work/ext4/data"
	fallocate -l 64M "$work/ext4/meta"
	data=$(losetup --find --show --direct-io=on "$work/ext4/data")
	meta=$(losetup --find --show --direct-io=on "$work/ext4/meta")
	loops=("$data" "$meta")
	dmsetup create bench --table "0 $(blockdev --getsz "$data") thin-pool $meta $data 128 32768 1 skip_block_zeroing"
}

# dockerd_on DRIVER OPTION... starts one, and adds it to list.
list=()
pids=()
dockerd_on() {
	local driver=$1
	shift
	dockerd --containerd /run/containerd.sock --containerd-namespace "$driver" --containerd-plugins-namespace "plugins.$driver" --host "unix:///run/$driver.sock" \
		--data-root "$work/ext4/$driver" --exec-root "/run/$driver.exec" --pidfile "/run/$driver.pid" --experimental --storage-driver "$driver" \
		--iptables=false --ip6tables=false --bridge=none --exec-opt native.cgroupdriver=cgroupfs "$@" >>"$work/$driver.log" 2>&1 &
	pids+=($!)
	until docker -H "unix:///run/$driver.sock" version >/dev/null 2>&1; do
		kill -0 "${pids[-1]}" 2>/dev/null || fail "dockerd on $driver has ended"
	done
	list+=("$driver=/run/$driver.sock")
}

dmlayer pool create --data-size 20G >/dev/null
start_dmlayer
start_containerd
thin_pool
dockerd_on dmlayer
dockerd_on devicemapper --storage-opt dm.thinpooldev=/dev/mapper/bench --storage-opt dm.fs=ext4 --storage-opt dm.override_udev_sync_check=true
dockerd_on overlay2
mkdir -p "$work/ext4/folders/null"
"$bench" bare -sockets /run/docker/plugins -dir "$work/ext4/folders" &
bare_pid=$!
until [ -S /run/docker/plugins/null.sock ] && [ -S /run/docker/plugins/bare.sock ]; do dmlayer version >/dev/null; done # which takes long enough for a pause
dockerd_on null
dockerd_on bare
plugins=$(printf ',%s=/run/docker/plugins/%s.sock' dmlayer dmlayer bare bare null null)
"$bench" docker -archive "$archive" -image "$image" -plugins "${plugins#,}" "$@" "${list[@]}"
for pid in "${pids[@]}" "$containerd_pid" "$bare_pid" "$dmlayer_pid"; do stop "$pid"; done
dmlayer pool destroy --force >/dev/null
# What the devicemapper driver leaves, its base device among it.
dmsetup ls --target thin | awk '{print $1}' | xargs -r -n 1 dmsetup remove
dmsetup remove bench
losetup --detach "${loops[@]}"
umount "$work/ext4"
