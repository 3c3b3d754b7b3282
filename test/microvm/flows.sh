#!/bin/bash
# What docs/microvm.md says, with QEMU in the place of Firecracker and Kata, as neither runs without /dev/kvm: a virtual machine of its own kernel has the
# block device as its disk, and writes to it.
#
#   flows.sh DIR IMAGE.docker.tar CACHE     CACHE has what scripts/deps qemu fetches
#
# In a mount and process namespace of a virtual machine, which end with the script. DIR is an empty folder; dmlayer, containerd and ctr are in PATH.
set -euo pipefail
work=$1 archive=$2 cache=$3
. "$(dirname "$0")/guest.sh"
export TMPDIR=$work DMLAYER_ROOT=$work/root DMLAYER_RUN=/run/dmlayer CONTAINERD_ADDRESS=/run/containerd.sock CONTAINERD_SNAPSHOTTER=dmlayer
mount -t tmpfs run /run

fail() {
	echo "FAIL: $*" >&2
	exit 1
}

# job FOLDER has the machine that starts on the file system mounted there say what it has, and write.
job() { printf 'cat /data/own /written 2>/dev/null; echo "machine $(uname -r) has $(ls /etc | grep -c .) files in etc"; echo written >/written; sync\n' >"$1/run-me"; }

# runs DEVICE starts a machine on it.
runs() {
	[ -b "$1" ] || fail "$1 is no block device"
	local start=$SECONDS said
	said=$(boot "$cache" "$work/initrd" "$1") || fail "the machine said: $said"
	[[ $said == *"machine 6."*"files in etc"*"exit code 0"* ]] || fail "the machine said: $said"
	echo "ok a machine on $1 $((SECONDS - start))s"
}

# "Without containerd"
alone() {
	dmlayer image load -q "$archive" >/dev/null
	dmlayer snapshot --parent small:latest vm1 >/dev/null
	job "$(dmlayer mount vm1)"
	dmlayer unmount vm1
	local device
	device=$(dmlayer attach vm1)
	[ "$device" = /run/dmlayer/dev/default/vm1 ] || fail "attach said $device"
	runs "$device"
	dmlayer detach vm1
	# The host's kernel mounts what the machine wrote when it is told to.
	if dmlayer mount vm1 >/dev/null 2>"$work/refused"; then fail "mounted without --trust"; fi
	grep -q -- --trust "$work/refused" || fail "mount said $(cat "$work/refused")"
	[ "$(cat "$(dmlayer mount --trust vm1)/written")" = written ] || fail "what the machine wrote is not there"
	dmlayer unmount vm1
	dmlayer reset vm1 >/dev/null
	[ ! -e "$(dmlayer mount vm1)/written" ] || fail "reset left what the machine wrote"
	dmlayer unmount vm1
	dmlayer rm vm1 >/dev/null
}

# "With containerd": what Kata does with the mounts of a container.
with_containerd() {
	dmlayer serve --docker= >>"$work/log" 2>&1 &
	local serve=$! top source
	cat >"$work/containerd.toml" <<-END
		version = 2
		disabled_plugins = ["io.containerd.grpc.v1.cri"]
		[proxy_plugins.dmlayer]
		  type = "snapshot"
		  address = "/run/dmlayer/containerd.sock"
	END
	until [ -S /run/dmlayer/containerd.sock ]; do kill -0 $serve && dmlayer version >/dev/null; done
	containerd --config "$work/containerd.toml" --root "$work/containerd" --state /run/containerd --address /run/containerd.sock >>"$work/log" 2>&1 &
	local containerd=$!
	until ctr version >/dev/null 2>&1; do kill -0 $containerd; done
	ctr images import --local "$archive" >/dev/null
	top=$(ctr snapshots ls | awk 'NR > 1 {parent[$2]; all[$1]} END {for (key in all) if (!(key in parent)) print key}')
	ctr snapshots prepare c1 "$top" >/dev/null
	# The line that mounts it: mount -t ext4 SOURCE TARGET -o ...
	eval "$(ctr snapshots mounts "$work/mnt" c1 | tee "$work/line")"
	job "$work/mnt"
	umount "$work/mnt"
	source=$(awk '{print $4}' "$work/line")
	case $source in /run/dmlayer/dev/default/containerd-*) ;; *) fail "the mount is $(cat "$work/line")" ;; esac
	runs "$source"
	eval "$(cat "$work/line")"
	[ "$(cat "$work/mnt/written")" = written ] || fail "what the machine wrote is not there"
	umount "$work/mnt"
	ctr snapshots rm c1
	ctr images rm --sync "$(ctr images ls -q)" >/dev/null
	kill $containerd && wait $containerd || true
	kill $serve && wait $serve
}

mkdir "$work/mnt"
initramfs "$cache" "$work/tree" "$work/initrd"
dmlayer pool create --data-size 4G --base-size 256M >/dev/null
alone
with_containerd
dmlayer pool destroy --force >/dev/null
echo ok
