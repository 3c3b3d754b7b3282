#!/bin/bash
# What Docker's users do with Docker 29, which keeps images in containerd, with dmlayer as containerd's snapshotter and differ.
#
#   flows.sh DIR IMAGE.docker.tar REF [FLOW...]      the functions below by name, without one all of them
#
# See ../docker/host.sh for how it is started. dockerd 29, its client and containerd 2.x are in PATH.
. "$(dirname "$0")/../docker/host.sh"
archive=$2 image=$3
mkdir -p "$DOCKER_CONFIG/cli-plugins"
ln -s "$(command -v docker-buildx)" "$DOCKER_CONFIG/cli-plugins/docker-buildx"
export CONTAINERD_ADDRESS=/run/containerd.sock CONTAINERD_NAMESPACE=moby

# As in docs/containerd.md.
start_containerd() {
	cat >"$work/containerd.toml" <<-END
		version = 2
		disabled_plugins = ["io.containerd.grpc.v1.cri"]
		[proxy_plugins.dmlayer]
		  type = "snapshot"
		  address = "$DMLAYER_RUN/containerd.sock"
		[proxy_plugins.dmlayer-diff]
		  type = "diff"
		  address = "$DMLAYER_RUN/containerd.sock"
		[plugins."io.containerd.service.v1.diff-service"]
		  default = ["dmlayer-diff", "walking"]
	END
	containerd --config "$work/containerd.toml" --root "$work/containerd" --state /run/containerd --address /run/containerd.sock >>"$work/containerd.log" 2>&1 &
	containerd_pid=$!
	until ctr version >/dev/null 2>&1; do
		kill -0 "$containerd_pid" 2>/dev/null || fail "containerd has ended"
	done
}

dmlayer_flags=(--containerd "$DMLAYER_RUN/containerd.sock")
# Containers live on while dockerd does not.
dockerd_flags=(--feature containerd-snapshotter=true --storage-driver dmlayer --live-restore)

run() { docker run --rm --network none "$@"; }

# layers counts what the pool has of images, and disks what it has of containers.
layers() { dmlayer ls -q --filter kind=layer | wc -l; }
disks() { dmlayer ls -q --filter kind=snapshot | wc -l; }

images() {
	docker load -i "$archive" >"$work/loaded"
	has "$image" "$work/loaded"
	docker info >"$work/info" 2>&1
	has 'Storage Driver: dmlayer' "$work/info"
	has 'driver-type: io.containerd.snapshotter.v1' "$work/info"
	docker history "$image" >/dev/null
	docker tag "$image" app:1
	same hello "$(run app:1 echo hello)"
	[ "$(layers)" -gt 3 ] || fail "no layers: $(dmlayer ls)"
	# Nothing of Docker's goes with what dmlayer prunes.
	dmlayer prune >/dev/null
	same hello "$(run app:1 echo hello)"
	docker rmi app:1 >/dev/null
}

containers() {
	docker run --name one --network none "$image" sh -c 'echo one >/data/own; rm /data/link'
	docker run --name two --network none "$image" sh -c 'ls /data/link; echo two >/data/own'
	same 2 "$(disks)"
	same "A /data/own C /data D /data/link" "$(docker diff one | sort | tr '\n' ' ' | sed 's/ $//')"
	same two "$(docker start -a two >/dev/null; docker cp two:/data/own - | tar xO)"
	docker ps -a -s --format '{{.Names}} {{.Size}}' >"$work/ps"
	has '^one [1-9]' "$work/ps"
	docker commit one made:1 >/dev/null
	same one "$(run made:1 cat /data/own)"
	refused 'No such file' run made:1 ls /data/link
	# Of a container that runs: docker pauses it and has its changes told meanwhile.
	docker run -d --name three --network none made:1 sh -c 'echo three >/data/own; mkfifo /data/p; cat /data/p' >/dev/null
	until docker exec three test -p /data/p; do :; done
	same "A /data/p C /data C /data/own" "$(docker diff three | sort | tr '\n' ' ' | sed 's/ $//')"
	docker commit three made:2 >/dev/null
	same three "$(run made:2 cat /data/own)"
	docker rm -f one two three >/dev/null
	same 0 "$(disks)"
	docker build -q -t built:1 - >/dev/null <<-END
		FROM $image
		RUN echo built >/data/built && rm /data/random
		WORKDIR /data/work
	END
	same built "$(run built:1 cat ../built)"
}

# BuildKit mounts snapshots by itself: several stages, copies between them, caches, secrets, a context.
buildkit() {
	mkdir -p "$work/context"
	echo context >"$work/context/file"
	cat >"$work/context/Dockerfile" <<-END
		FROM $image AS one
		RUN echo one >/data/one && rm /data/random
		FROM $image
		COPY --from=one /data/one /data/two
		COPY file /data/
		RUN --mount=type=cache,target=/cache echo cached >>/cache/c && wc -l </cache/c >/data/lines
		RUN --mount=type=bind,from=one,source=/data,target=/one test ! -e /one/random && rm /data/link
	END
	local n
	for n in 1 2; do
		DOCKER_BUILDKIT=1 docker build -q --network none --build-arg n=$n -t kit:$n "$work/context" >/dev/null
	done
	same "one context 1" "$(run kit:2 cat /data/two /data/file /data/lines | xargs)"
	refused 'No such file' run kit:1 ls /data/link
	docker rmi kit:1 kit:2 >/dev/null
	docker builder prune -af >/dev/null
}

save() {
	docker save -o "$work/saved.tar" made:1
	docker rmi made:1 >/dev/null
	docker load -i "$work/saved.tar" >/dev/null
	same one "$(run made:1 cat /data/own)"
	docker create --name export made:1 true >/dev/null
	docker export export | tar t >"$work/exported"
	has '^data/own$' "$work/exported"
	docker rm export >/dev/null
}

# Docker 29 does not tell containerd --storage-opt size: what a container may hold is what the image's layers have, the pool's base size.
size() {
	same 1 "$(run --storage-opt size=20G "$image" df -kP / | awk 'END {print int($2 / 700000)}')"
	refused 'No space left' run "$image" dd if=/dev/zero of=/big bs=1M count=1100
}

volumes() {
	docker volume create -d dmlayer -o size=1G data >/dev/null
	run -v data:/v "$image" sh -c 'echo kept >/v/f'
	same kept "$(run -v data:/v "$image" cat /v/f)"
	# The image's files come along when a volume is new.
	run --volume-driver dmlayer -v copied:/data "$image" test -s /data/random
	docker volume rm data copied >/dev/null
}

# A container runs on while each daemon in turn, and then all of them, end and come back; and so when they are killed.
restart() {
	# Also told by a file, as users do.
	mkdir -p /etc/docker
	echo '{ "features": { "containerd-snapshotter": true }, "storage-driver": "dmlayer", "live-restore": true }' >/etc/docker/daemon.json
	dockerd_flags=()
	docker run -d --name alive --network none "$image" sh -c 'while :; do sleep 1000; done' >/dev/null
	local n=0 how note=
	for how in TERM KILL; do
		note=$note${note:+ }$((++n))
		docker exec alive sh -c "echo $n >>/data/note"
		end $how dockerd && start_dockerd
		end $how dmlayer && start_dmlayer
		same "$note" "$(docker exec alive cat /data/note | xargs)"
		end $how containerd && start_containerd
		until docker exec alive true 2>/dev/null; do # dockerd looks for it again now and then
			kill -0 "$dockerd_pid" 2>/dev/null || fail "dockerd has ended"
		done
		same "$note" "$(docker exec alive cat /data/note | xargs)"
		end $how dockerd && end $how containerd && end $how dmlayer
		start_dmlayer && start_containerd && start_dockerd
		same "$note" "$(docker exec alive cat /data/note | xargs)"
	done
	docker diff alive >"$work/diff"
	has '^A /data/note$' "$work/diff"
	docker rm -f alive >/dev/null
	same 0 "$(disks)"
}

# end SIGNAL DAEMON ends it and waits for it.
end() {
	local pid=$2_pid
	kill -s "$1" "${!pid}"
	wait "${!pid}" || true
}

# In the middle of a load one of them dies; it can be done again.
kills() {
	local daemon load
	for daemon in dmlayer containerd dockerd; do
		# shellcheck disable=SC2046
		docker rmi -f $(docker images -q) >/dev/null
		docker load -i "$archive" >"$work/load" 2>&1 &
		load=$!
		until [ "$(layers)" -gt 0 ]; do kill -0 "$load" 2>/dev/null || break; done
		end KILL $daemon
		start_$daemon
		wait "$load" || true
		until docker images >/dev/null 2>&1; do # dockerd looks for a containerd that went now and then
			kill -0 "$dockerd_pid" 2>/dev/null || fail "dockerd has ended"
		done
		docker load -i "$archive" >/dev/null
		same hello "$(run "$image" echo hello)"
	done
}

# What is removed is gone.
remove() {
	# shellcheck disable=SC2046
	docker rmi -f $(docker images -q | sort -u) >/dev/null
	docker volume ls -q | xargs -r docker volume rm >/dev/null
	same "" "$(docker images -q)"
	end TERM dockerd
	# What a killed load has begun containerd keeps for as long as its lease says.
	same "" "$(ctr images ls -q)"
	ctr leases ls -q | xargs -r ctr leases rm --sync >/dev/null
	same "" "$(dmlayer ls -q)"
	end TERM containerd
	end TERM dmlayer
	dmlayer pool check
}

dmlayer pool create --data-size 20G --base-size 1G >/dev/null
start_dmlayer
start_containerd
start_dockerd
shift 3
[ $# -gt 0 ] || set -- containers buildkit save size volumes restart kills
for f in images "$@" remove; do flow "$f"; done
dmlayer pool destroy --force >/dev/null
