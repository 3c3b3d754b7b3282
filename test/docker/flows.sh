#!/bin/bash
# What Docker's users do, as the tutorials type it, on dmlayer: images, containers, volumes, and daemons that are killed meanwhile.
#
#   flows.sh DIR IMAGE.docker.tar REF [FLOW...]      the functions below by name, without one all of them
#
# See host.sh for how it is started.
. "$(dirname "$0")/host.sh"
archive=$2 image=$3

run() { docker run --rm --network none "$@"; }

images() {
	docker load -i "$archive" >"$work/loaded"
	has "$image" "$work/loaded"
	same "$image" "$(docker images --format '{{.Repository}}:{{.Tag}}' | head -1)"
	docker history "$image" >/dev/null
	docker tag "$image" app:1
	[ "$(dmlayer ls -q --filter kind=layer | wc -l)" -gt 1 ] || fail "no layers"
	# Nothing of Docker's goes with what dmlayer prunes.
	dmlayer prune >/dev/null
	same hello "$(run app:1 echo hello)"
	docker rmi app:1 >/dev/null
	docker info >"$work/info" 2>&1
	has 'Storage Driver: dmlayer' "$work/info"
	has 'Data Space Available' "$work/info"
	has 'WARNING.*loopback' "$work/info"
}

containers() {
	docker run --name one --network none "$image" sh -c 'echo one >/data/own; rm /data/link'
	docker run --name two --network none "$image" sh -c 'ls /data/link; echo two >/data/own'
	same "A /data/own C /data D /data/link" "$(docker diff one | sort | tr '\n' ' ' | sed 's/ $//')"
	same two "$(docker start -a two >/dev/null; docker cp two:/data/own - | tar xO)"
	docker ps -a -s --format '{{.Names}} {{.Size}}' >"$work/ps"
	has '^one 4B' "$work/ps"
	docker commit one made:1 >/dev/null
	same one "$(run made:1 cat /data/own)"
	refused 'No such file' run made:1 ls /data/link
	docker rm one two >/dev/null
	docker build -q -t built:1 - >/dev/null <<-END
		FROM $image
		RUN echo built >/data/built && rm /data/random
		WORKDIR /data/work
	END
	same built "$(run built:1 cat ../built)"
}

save() {
	docker save -o "$work/saved.tar" made:1
	docker rmi made:1 >/dev/null
	docker load -i "$work/saved.tar" >/dev/null
	same one "$(run made:1 cat /data/own)"
	docker save made:1 | cmp - "$work/saved.tar"
	docker create --name export made:1 true >/dev/null
	docker export export | tar t >"$work/exported"
	has '^data/own$' "$work/exported"
	docker rm export >/dev/null
}

size() {
	same 19 "$(run --storage-opt size=20G "$image" df -k / | awk 'END {print int($2 / 1048576)}')"
	refused 'below that of parent' run --storage-opt size=100M "$image" true
	refused 'No space left' run --storage-opt size=1100M "$image" dd if=/dev/zero of=/big bs=1M count=1100
}

volumes() {
	docker volume create -d dmlayer -o size=1G data >/dev/null
	run -v data:/v "$image" sh -c 'echo kept >/v/f'
	same kept "$(run -v data:/v "$image" cat /v/f)"
	refused 'Read-only' run -v data:/v:ro "$image" touch /v/g
	# The image's files come along when a volume is new.
	run --volume-driver dmlayer -v copied:/data "$image" test -s /data/random
	same random "$(run -v copied:/v "$image" ls /v | grep random)"
	# Shared by two containers at once.
	docker run -d --name writer --network none -v data:/v "$image" sh -c 'mkfifo /v/p; cat /v/p >/v/got; echo done >/v/p' >/dev/null
	until run -v data:/v "$image" test -p /v/p; do :; done
	same done "$(run -v data:/v "$image" sh -c 'echo through >/v/p; cat /v/p')"
	docker wait writer >/dev/null
	same through "$(run --volumes-from writer "$image" cat /v/got)"
	docker rm writer >/dev/null
	same kept "$(run -v data:/v "$image" cat /v/f)"
	# Anonymous ones go with their container, if told to.
	docker run --name anonymous --network none --volume-driver dmlayer -v /v "$image" sh -c 'echo x >/v/x'
	same 3 "$(docker volume ls -q | wc -l)"
	docker rm -v anonymous >/dev/null
	same "copied data" "$(docker volume ls -q | sort | tr '\n' ' ' | sed 's/ $//')"
	same 1073741824 "$(docker volume inspect -f '{{.Status.size}}' data)"
	docker volume create -d dmlayer -o from=data clone >/dev/null
	same kept "$(run -v clone:/v "$image" cat /v/f)"
	refused 'unknown' docker volume create -d dmlayer -o colour=red bad
	docker create --name user -v clone:/v "$image" >/dev/null
	refused 'in use' docker volume rm clone
	docker rm user >/dev/null
	docker volume rm clone copied >/dev/null
	same data "$(docker volume ls -q)"
}

# As Docker's documentation does it: a helper container with the volumes of another, and a folder of the host.
backup() {
	mkdir "$work/backup"
	docker run -v /dbdata --volume-driver dmlayer --name dbstore --network none "$image" sh -c 'echo rows >/dbdata/db'
	docker run --rm --network none --volumes-from dbstore -v "$work/backup:/backup" "$image" tar cf /backup/backup.tar /dbdata
	docker run -v /dbdata --volume-driver dmlayer --name dbstore2 --network none "$image" true
	docker run --rm --network none --volumes-from dbstore2 -v "$work/backup:/backup" "$image" sh -c 'cd /dbdata && tar xf /backup/backup.tar --strip 1'
	same rows "$(docker run --rm --network none --volumes-from dbstore2 "$image" cat /dbdata/db)"
	docker rm -v dbstore dbstore2 >/dev/null
}

# Docker is killed while a container runs and writes; the next one takes up what was mounted.
kill_dockerd() {
	docker volume create -d dmlayer held >/dev/null
	run -v held:/v "$image" sh -c 'echo kept >/v/f'
	docker run -d --name alive --network none -v held:/v "$image" sh -c 'echo started >/data/s; cat /dev/zero | head -c 1000000000000 >/dev/null' >/dev/null
	kill -9 "$dockerd_pid"
	wait "$dockerd_pid" || true
	start_dockerd
	docker rm -f alive >/dev/null
	same kept "$(run -v held:/v "$image" cat /v/f)"
	docker volume rm held >/dev/null
	# In the middle of a load: what was half done is nowhere, and it can be done again.
	# shellcheck disable=SC2046
	docker rmi -f $(docker images -q) >/dev/null
	docker load -i "$archive" >/dev/null 2>&1 &
	local load=$!
	until dmlayer ls -q --filter kind=layer | grep -q .; do kill -0 "$load" 2>/dev/null || break; done
	kill -9 "$dockerd_pid"
	wait "$dockerd_pid" "$load" || true
	start_dockerd
	docker load -i "$archive" >/dev/null
	same hello "$(run "$image" echo hello)"
}

# dmlayer is killed while a container runs, and between what Docker asks of it.
kill_dmlayer() {
	docker volume create -d dmlayer pipe >/dev/null
	run -v pipe:/v "$image" mkfifo /v/p
	docker run -d --name alive --network none -v pipe:/v "$image" sh -c 'cat /v/p >/data/got' >/dev/null
	kill -9 "$dmlayer_pid"
	wait "$dmlayer_pid" || true
	start_dmlayer
	run -v pipe:/v "$image" sh -c 'echo after >/v/p'
	docker wait alive >/dev/null
	same after "$(docker cp alive:/data/got - | tar xO)"
	docker rm alive >/dev/null
	# Told to end, it leaves mounts alone.
	docker run -d --name alive --network none -v pipe:/v "$image" sh -c 'cat /v/p >/data/got' >/dev/null
	stop "$dmlayer_pid"
	start_dmlayer
	run -v pipe:/v "$image" sh -c 'echo again >/v/p'
	docker wait alive >/dev/null
	same again "$(docker cp alive:/data/got - | tar xO)"
	docker rm alive >/dev/null
	docker volume rm pipe >/dev/null
	# In the middle of a load, which says what to do.
	# shellcheck disable=SC2046
	docker rmi -f $(docker images -q) >/dev/null
	docker load -i "$archive" >"$work/load" 2>&1 &
	local load=$!
	until dmlayer ls -q --filter kind=layer | grep -q .; do kill -0 "$load" 2>/dev/null || break; done
	kill -9 "$dmlayer_pid"
	wait "$dmlayer_pid" || true
	start_dmlayer
	wait "$load" || grep -q 'load or pull' "$work/load" || fail "load: $(cat "$work/load")"
	docker load -i "$archive" >/dev/null
	same hello "$(run "$image" echo hello)"
}

# What is removed is gone, and a restart finds everything else.
remove() {
	stop "$dockerd_pid"
	start_dockerd
	same hello "$(run "$image" echo hello)"
	# shellcheck disable=SC2046
	docker rmi -f $(docker images -q) >/dev/null
	docker volume ls -q | xargs -r docker volume rm >/dev/null
	stop "$dockerd_pid"
	stop "$containerd_pid"
	stop "$dmlayer_pid"
	same "" "$(dmlayer ls -q)"
	dmlayer pool check
}

dmlayer pool create --data-size 20G --base-size 1G >/dev/null
start_dmlayer
start_containerd
start_dockerd
shift 3
[ $# -gt 0 ] || set -- containers save size volumes backup kill_dockerd kill_dmlayer
for f in images "$@" remove; do flow "$f"; done
dmlayer pool destroy --force >/dev/null
