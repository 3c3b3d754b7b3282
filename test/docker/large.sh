#!/bin/bash
# The large image in dockerd on dmlayer: loaded, run, saved and loaded again, and each time its tree compared with what umoci unpacks.
#
#   large.sh DIR IMAGE.docker.tar REF PLAIN.docker.tar
#
# PLAIN is the same image, of which no layer has a sparse file as GNU tar writes them: Docker loads those, but cannot save them, whatever its driver.
#
# See host.sh for how it is started. treecmp is in PATH, and scripts/umoci-unpack -p has been run on the image.
. "$(dirname "$0")/host.sh"
archive=$2 image=$3 plain=$4

# unpack lets umoci unpack, on a file system of the kind that the pool has.
unpack() {
	mkdir "$work/ext4"
	truncate -s 2G "$work/disk"
	mkfs.ext4 -q "$work/disk"
	mount -o loop "$work/disk" "$work/ext4"
	umoci unpack --image "$archive.umoci:image" "$work/ext4/want" >/dev/null
}

# tree compares the image's tree.
tree() {
	local node
	node=$(docker image inspect -f '{{.GraphDriver.Data.Node}}' "$image")
	dmlayer mount "$node" "$work/have" >/dev/null
	treecmp "$work/have" "$work/ext4/want/rootfs" || fail "the tree differs"
	dmlayer unmount "$node" >/dev/null
}

load_archive() {
	docker load -i "$1" >/dev/null
	docker image inspect -f '{{.Id}} {{.RootFS.Layers}}' "$image" >"$work/loaded"
	same "$(docker image inspect -f '{{len .RootFS.Layers}}' "$image")" "$(dmlayer ls -q --filter kind=layer | wc -l)"
	tree
}

load() { load_archive "$archive"; }

run() {
	same hello "$(docker run --rm --network none "$image" sh -c 'echo hello')"
	# With what Docker puts there, such as /etc/hosts.
	[ "$(docker run --rm --network none "$image" sh -c 'find / -xdev | wc -l')" -ge "$(find "$work/ext4/want/rootfs" | wc -l)" ] || fail "few files"
}

# plain loads the image that Docker can save.
plain() {
	refused 'could not verify layer data' docker save -o "$work/saved.tar" "$image"
	docker rmi "$image" >/dev/null
	same "" "$(dmlayer ls -q)"
	load_archive "$plain"
	rm "$plain"
}

# again saves and loads what was saved: the image is the same to the last byte.
again() {
	docker save -o "$work/saved.tar" "$image"
	docker rmi "$image" >/dev/null
	same "" "$(dmlayer ls -q)"
	docker load -i "$work/saved.tar" >/dev/null
	rm "$work/saved.tar"
	same "$(cat "$work/loaded")" "$(docker image inspect -f '{{.Id}} {{.RootFS.Layers}}' "$image")"
	tree
	run
}

# In a function: see flows.sh.
main() {
	dmlayer pool create --data-size 20G >/dev/null
	mkdir "$work/have"
	start_dmlayer
	start_containerd
	start_dockerd
	for f in unpack load run plain again; do flow "$f"; done
	docker rmi "$image" >/dev/null
	stop "$dockerd_pid"
	stop "$containerd_pid"
	stop "$dmlayer_pid"
	same "" "$(dmlayer ls -q)"
	dmlayer pool check
	dmlayer pool destroy --force >/dev/null
	umount "$work/ext4"
	exit
}
main
