#!/bin/bash
# Makes images with dockerd, in a mount namespace of a virtual machine: what docker save writes is what most
# archives are.
#
#   docker.sh INPUTS OUT     INPUTS as mkimage inputs makes them, OUT a writable folder
#
# OUT gets docker.save.tar (one image, two tags), docker.several.tar (three images that share layers),
# docker.id.tar (an image by its id, without a tag).
set -euo pipefail
inputs=$1 out=$2
work=$(mktemp -d)
export DOCKER_HOST=unix:///run/docker.sock DOCKER_BUILDKIT=0

# dockerd wants to write a key there.
mkdir "$work/etc" "$work/etc.work"
mount -t overlay -o "lowerdir=/etc,upperdir=$work/etc,workdir=$work/etc.work" etc /etc

mount -t cgroup2 cgroup2 /sys/fs/cgroup

# On a file system with user.* attributes, which tmpfs of Linux 6.1 has not.
truncate -s 3G "$work/disk"
mkfs.ext4 -q "$work/disk"
mkdir /run/docker.data
mount -o loop "$work/disk" /run/docker.data

dockerd --host "$DOCKER_HOST" --data-root /run/docker.data --exec-root /run/docker.exec --pidfile /run/docker.pid \
	--storage-driver overlay2 --iptables=false --ip6tables=false --bridge=none --exec-opt native.cgroupdriver=cgroupfs \
	>"$work/log" 2>&1 &
daemon=$!
trap 'kill "$daemon" && wait "$daemon" || true; umount /run/docker.data' EXIT
# Asking takes long enough for a pause.
until docker version >/dev/null 2>&1; do
	kill -0 "$daemon" 2>/dev/null || { tail -n 3 "$work/log" >&2 && exit 1; }
done

docker import --change 'CMD ["/bin/sh"]' "$inputs/base.tar" base:1 >/dev/null
mkdir "$work/context"
cp "$inputs/kinds.tar" "$work/context/"
cat >"$work/context/Dockerfile" <<'END'
FROM base:1
ADD kinds.tar /
RUN mkdir -p /d/gone /d/opaque /d/swap && echo 1 >/d/gone/1 && echo 2 >/d/opaque/2 && echo 3 >/d/swap/3 && \
    echo one >/d/one && ln /d/one /d/two && ln -s one /d/three && chmod 4755 /d/two && mkfifo /d/pipe && mknod /d/device c 1 5
RUN rm -r /d/gone /d/swap && echo file >/d/swap && rm -r /d/opaque && mkdir -m 1770 /d/opaque && echo new >/d/opaque/new
RUN ln /d/one /d/opaque/one && rm /d/three && mkdir /d/three && chown 12:34 /kinds/setgid && rm /kinds/fifo /kinds/null
RUN touch /d/pipe && rm /d/device /d/swap && mkdir /d/swap && dd if=/dev/zero of=/d/zeros bs=1024 count=1 seek=4095 2>/dev/null
COPY --chown=33:33 kinds.tar /copied/kinds.tar
ENV A=b
WORKDIR /d/made
END
docker build -q --network none -t app:1 -t app:latest "$work/context" >/dev/null
docker run --name changed --network none app:1 sh -c 'rm -r /kinds/setgid /copied && mkdir /copied && echo x >/etc/motd && chmod 700 /d'
docker commit --change 'LABEL made=by-hand' changed changed:1 >/dev/null

docker save -o "$out/docker.save.tar" app:1 app:latest
docker save -o "$out/docker.several.tar" base:1 app:1 changed:1
docker save -o "$out/docker.id.tar" "$(docker images -q --no-trunc changed:1)"
