#!/bin/bash
# What Docker's users do, as the tutorials type it, on dmlayer: images, containers, volumes, and daemons that are killed meanwhile.
#
#   flows.sh DIR IMAGE.docker.tar REF [FLOW...]      the functions below by name, without one all of them
#
# See host.sh for how it is started.
. "$(dirname "$0")/host.sh"
archive=$2 image=$3

run() { docker run --rm --network none "$@"; }

# mounted lists what is mounted.
mounted() { dmlayer ls --format '{{.Name}} {{.State}}' | sed -n 's/ mounted$//p'; }

# idle fails where anything is mounted: nothing runs.
idle() { same "" "$(mounted)"; }

# idle_soon waits until nothing is. Docker forgets the volumes of a container that ran when dockerd was killed: dmlayer finds out.
idle_soon() { until [ -z "$(mounted)" ]; do [ -z "$(mounted | grep '^docker-')" ] || fail "mounted: $(mounted)"; done; }

images() {
	docker load -i "$archive" >"$work/loaded"
	has "$image" "$work/loaded"
	same "$image" "$(docker images --format '{{.Repository}}:{{.Tag}}' | head -1)"
	docker history --no-trunc --format '{{.CreatedBy}}: {{.Size}}' "$image" >"$work/history"
	has '^CMD .*: 0B$' "$work/history"
	has '^busybox: [0-9.]*MB$' "$work/history"
	docker tag "$image" app:1
	[ "$(dmlayer ls -q --filter kind=layer | wc -l)" -gt 1 ] || fail "no layers"
	# Nothing of Docker's goes with what dmlayer prunes.
	dmlayer prune >/dev/null
	same hello "$(run app:1 echo hello)"
	docker rmi app:1 >/dev/null
	docker info >"$work/info" 2>&1
	has 'Storage Driver: dmlayer' "$work/info"
	has 'Pool Name: default' "$work/info"
	has 'Data Space Available: [0-9.]*GiB' "$work/info"
	has 'Metadata Space Available: [0-9.]*MiB' "$work/info"
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
	idle
	docker build -q -t built:1 - >/dev/null <<-END
		FROM $image
		RUN echo built >/data/built && rm /data/random
		WORKDIR /data/work
	END
	same built "$(run built:1 cat ../built)"
}

# Docker's pages on commit, history, tag and rmi, in their order: the container runs while it is committed.
commit() {
	local id made
	id=$(docker run -d --network none "$image" sh -c 'echo kept >/data/f; mkfifo /p; cat /p')
	until docker exec "$id" test -p /p; do :; done
	docker commit "$id" user/testimage:version3 >/dev/null
	same user/testimage:version3 "$(docker images --format '{{.Repository}}:{{.Tag}}' user/testimage)"
	made=$(docker commit --message "with a variable" --author "A User <a@example.com>" --change "ENV DEBUG=true" "$id" user/testimage:version3)
	has 'DEBUG=true' <(docker inspect -f '{{.Config.Env}}' "$made")
	has 'with a variable' <(docker history --format '{{.Comment}}' user/testimage:version3)
	same "A User <a@example.com>" "$(docker inspect -f '{{.Author}}' user/testimage:version3)"
	docker commit --change='CMD ["cat", "/data/f"]' -c "EXPOSE 80" "$id" user/testimage:version4 >/dev/null
	same kept "$(run user/testimage:version4)"
	same true "$(docker inspect -f '{{.State.Running}}' "$id")"
	docker rm -f "$id" >/dev/null
	# As many layers as the image had, and one.
	same "$(($(docker inspect -f '{{len .RootFS.Layers}}' "$image") + 1))" "$(docker inspect -f '{{len .RootFS.Layers}}' user/testimage:version4)"
	docker tag "$made" fedora/httpd:version1.0
	docker tag user/testimage:version3 registry.example:5000/fedora/httpd:version1.0
	same "$made" "$(docker inspect -f '{{.Id}}' fedora/httpd:version1.0)"
	refused 'must be forced' docker rmi "$made"
	docker rmi user/testimage:version3 >"$work/removed"
	has '^Untagged: user/testimage:version3' "$work/removed"
	# shellcheck disable=SC2016 # for the shell in the container
	same true "$(run fedora/httpd:version1.0 sh -c 'echo $DEBUG')"
	docker rmi -f "$made" >"$work/removed"
	has '^Untagged: registry.example:5000/fedora/httpd:version1.0' "$work/removed"
	has "^Deleted: $made" "$work/removed"
	docker rmi user/testimage:version4 >"$work/removed"
	has '^Deleted: sha256:' "$work/removed"
	# Of the first one, which has lost its name, nothing is left either.
	docker image prune -f >/dev/null
	same "$(docker inspect -f '{{len .RootFS.Layers}}' "$image")" "$(dmlayer ls -q --filter kind=layer | wc -l)"
	idle
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
	# As the page on docker save and docker load has it.
	docker save made:1 | gzip >"$work/made_latest.tar.gz"
	docker save --output "$work/two.tar" made:1 "$image"
	docker rmi made:1 "$image" >/dev/null
	docker load <"$work/made_latest.tar.gz" >/dev/null
	same one "$(run made:1 cat /data/own)"
	docker load --input "$work/two.tar" >"$work/loaded"
	has "Loaded image: $image" "$work/loaded"
	same hello "$(run "$image" echo hello)"
	idle
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

# Docker's page on volumes, in its order.
tutorial() {
	docker volume create --driver dmlayer my-vol >/dev/null
	docker volume ls >"$work/ls"
	has 'dmlayer *my-vol' "$work/ls"
	same "dmlayer my-vol local" "$(docker volume inspect -f '{{.Driver}} {{.Name}} {{.Scope}}' my-vol)"
	docker volume rm my-vol >/dev/null
	docker run -d --name devtest --network none --mount source=myvol2,target=/app,volume-driver=dmlayer "$image" sh -c 'echo app >/app/f; mkfifo /p; cat /p' >/dev/null
	same "volume myvol2 dmlayer /app true" "$(docker inspect -f '{{range .Mounts}}{{.Type}} {{.Name}} {{.Driver}} {{.Destination}} {{.RW}}{{end}}' devtest)"
	docker container stop -t 1 devtest >/dev/null
	docker container rm devtest >/dev/null
	same app "$(run -v myvol2:/app "$image" cat /app/f)"
	docker volume rm myvol2 >/dev/null
	# Populated by a container, used by another, and read-only.
	docker run --name=nginxtest --network none --mount source=nginx-vol,destination=/data,volume-driver=dmlayer "$image" true
	docker run --name=other --network none --mount source=nginx-vol,destination=/html "$image" test -s /html/random
	refused 'Read-only' run --mount source=nginx-vol,destination=/html,readonly "$image" touch /html/new
	refused 'Read-only' run -v nginx-vol:/html:ro "$image" touch /html/new
	docker container rm nginxtest other >/dev/null
	docker volume rm nginx-vol >/dev/null
	# Options of the driver; a volume that is not there is made.
	run --mount 'type=volume,source=sized,target=/v,volume-driver=dmlayer,volume-opt=size=2G' "$image" true
	same 2147483648 "$(docker volume inspect -f '{{.Status.size}}' sized)"
	refused 'unknown' run --mount 'type=volume,source=odd,target=/v,volume-driver=dmlayer,volume-opt=colour=red' "$image" true
	# Anonymous ones go with --rm, named ones stay.
	run --volume-driver dmlayer -v /foo -v awesome:/bar "$image" sh -c 'echo x >/foo/x; echo y >/bar/y'
	same "awesome sized" "$(docker volume ls -q -f driver=dmlayer | grep -vx data | sort | tr '\n' ' ' | sed 's/ $//')"
	docker volume rm awesome sized >/dev/null
	# Docker prunes volumes of its own driver only.
	docker volume create -d dmlayer unused >/dev/null
	same 'Total reclaimed space: 0B' "$(docker volume prune -f)"
	docker volume rm unused >/dev/null
	idle
}

# As Docker's documentation does it: a helper container with the volumes of another, and a folder of the host.
backup() {
	mkdir "$work/backup"
	cd "$work/backup"
	docker run -v /dbdata --volume-driver dmlayer --name dbstore --network none "$image" sh -c 'echo rows >/dbdata/db'
	docker run --rm --network none --volumes-from dbstore -v "$(pwd):/backup" "$image" tar cf /backup/backup.tar /dbdata
	docker run -v /dbdata --volume-driver dmlayer --name dbstore2 --network none "$image" true
	docker run --rm --network none --volumes-from dbstore2 -v "$(pwd):/backup" "$image" sh -c 'cd /dbdata && tar xf /backup/backup.tar --strip 1'
	same rows "$(docker run --rm --network none --volumes-from dbstore2 "$image" cat /dbdata/db)"
	docker rm -v dbstore dbstore2 >/dev/null
	cd /
	idle
}

# User ids that dockerd maps are refused, and its log says how to go on.
userns() {
	stop "$dockerd_pid"
	chmod o+x "$work" "${work%/*}" # else dockerd does not come to ask
	echo 'dockremap:x:5000:5000::/:/bin/false' >>/etc/passwd
	echo 'dockremap:x:5000:' >>/etc/group
	echo 'dockremap:100000:65536' | tee -a /etc/subuid >>/etc/subgid
	if (
		dockerd_flags+=(--userns-remap dockremap)
		start_dockerd
	) 2>/dev/null; then fail "dockerd maps user ids"; fi
	has 'start dockerd without --userns-remap' "$work/dockerd.log"
	start_dockerd
	# So is an option of the devicemapper driver that has another name now.
	stop "$dockerd_pid"
	if (
		dockerd_flags+=(--storage-opt dm.thinpooldev=/dev/mapper/pool)
		start_dockerd
	) 2>/dev/null; then fail "dockerd takes dm.thinpooldev"; fi
	has 'dmlayer pool create --vg VG --thin-pool POOL' "$work/dockerd.log"
	# Options of it that are understood.
	dockerd_flags+=(--storage-opt dm.basesize=2G --storage-opt dm.fs=ext4 --storage-opt dm.use_deferred_removal=true)
	start_dockerd
	docker info >"$work/info" 2>&1
	has 'Base Device Size: 2GiB' "$work/info"
	has 'Backing Filesystem: ext4' "$work/info"
	same 1 "$(run "$image" df -k / | awk 'END {print int($2 / 1048576)}')"
	stop "$dockerd_pid"
	dockerd_flags=(--storage-driver dmlayer)
	start_dockerd
	idle
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
	idle_soon
	same kept "$(run -v held:/v "$image" cat /v/f)"
	idle
	# With --live-restore the container runs on, and the next dockerd ends what was mounted for it.
	stop "$dockerd_pid"
	dockerd_flags+=(--live-restore)
	start_dockerd
	docker run -d --name alive --network none -v held:/v "$image" sh -c 'mkfifo /v/p; cat /v/p >/data/got' >/dev/null
	kill -9 "$dockerd_pid"
	wait "$dockerd_pid" || true
	start_dockerd
	same true "$(docker inspect -f '{{.State.Running}}' alive)"
	same held "$(mounted | sed /^docker-/d)"
	# Another container comes and goes, and takes nothing from it.
	same kept "$(run -v held:/v "$image" cat /v/f)"
	same held "$(mounted | sed /^docker-/d)"
	until docker exec alive test -p /v/p; do :; done
	# The container ends as soon as this is written, and may take the shell that wrote it along.
	docker exec alive sh -c 'echo restored >/v/p' || [ $? = 137 ]
	docker wait alive >/dev/null
	same restored "$(docker cp alive:/data/got - | tar xO)"
	idle_soon
	docker rm alive >/dev/null
	stop "$dockerd_pid"
	dockerd_flags=(--storage-driver dmlayer)
	start_dockerd
	docker volume rm held >/dev/null
	idle
	# In the middle of a load: what was half done is nowhere, and it can be done again.
	# shellcheck disable=SC2046
	docker rmi -f $(docker images -q) >/dev/null
	docker load -i "$archive" >/dev/null 2>&1 &
	local load=$!
	until [ -n "$(dmlayer ls -q --filter kind=layer)" ]; do kill -0 "$load" 2>/dev/null || break; done
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
	idle
	# While a container starts: it runs or is refused, and can be removed.
	docker run --name starting --network none "$image" true >/dev/null 2>&1 &
	local starting=$!
	until [ -n "$(dmlayer ls -q --filter kind=snapshot)" ]; do kill -0 "$starting" 2>/dev/null || break; done
	kill -9 "$dmlayer_pid"
	wait "$dmlayer_pid" || true
	start_dmlayer
	wait "$starting" || true
	docker rm -f starting >/dev/null 2>&1 || true
	idle
	# In the middle of a load, which says what to do, unless Docker gives up before it asks the next one.
	# shellcheck disable=SC2046
	docker rmi -f $(docker images -q) >/dev/null
	docker load -i "$archive" >"$work/load" 2>&1 &
	local load=$!
	until [ -n "$(dmlayer ls -q --filter kind=layer)" ]; do kill -0 "$load" 2>/dev/null || break; done
	kill -9 "$dmlayer_pid"
	wait "$dmlayer_pid" || true
	start_dmlayer
	wait "$load" || grep -q 'load or pull\|dmlayer.sock' "$work/load" || fail "load: $(cat "$work/load")"
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

# In a function, so that bash has read all of it before the first step: the file may be edited meanwhile.
main() {
	dmlayer pool create --data-size 20G --base-size 1G >/dev/null
	start_dmlayer
	start_containerd
	start_dockerd
	[ $# -gt 0 ] || set -- commit containers save size volumes tutorial backup userns kill_dockerd kill_dmlayer
	for f in images "$@" remove; do flow "$f"; done
	dmlayer pool destroy --force >/dev/null
	exit
}
main "${@:4}"
