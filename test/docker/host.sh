# Sourced by the scripts beside it: a machine with dockerd on dmlayer, in a mount and process namespace of a virtual machine, which end with the script.
# shellcheck shell=bash
#
#   unshare --mount --pid --fork --kill-child --mount-proc SCRIPT DIR
#
# DIR is an empty folder. dmlayer, dockerd and their like are in PATH.
set -euo pipefail
work=$1
export DOCKER_HOST=unix:///run/docker.sock DOCKER_BUILDKIT=0 LC_ALL=C DOCKER_CONFIG=$work/config
export DMLAYER_ROOT=$work/root DMLAYER_RUN=$work/run
mkdir -p "$work"/{etc,etc.work,data,config,tmp}
export TMPDIR=$work/tmp

# dockerd wants to write a key there.
mount -t overlay -o "lowerdir=/etc,upperdir=$work/etc,workdir=$work/etc.work" etc /etc
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs run /run
mkdir -p /run/docker/plugins

fail() {
	echo "FAIL: $*" >&2
	exit 1
}

# finish shows what the daemons said last, when something went wrong.
finish() {
	local code=$?
	[ "$code" = 0 ] || tail -n 25 "$work"/*.log >&2
	exit "$code"
}
trap finish EXIT

start_dmlayer() {
	dmlayer serve --log-level info --containerd= "${dmlayer_flags[@]}" >>"$work/dmlayer.log" 2>&1 &
	dmlayer_pid=$!
	# Asking takes long enough for a pause.
	until curl_plugin Plugin.Activate >/dev/null 2>&1; do
		kill -0 "$dmlayer_pid" 2>/dev/null || fail "dmlayer serve has ended"
		dmlayer version >/dev/null
	done
}
dmlayer_flags=()

# curl_plugin METHOD [JSON] asks the plugin itself.
curl_plugin() {
	local body=${2-}
	printf 'POST /%s HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s' "$1" "${#body}" "$body" | busybox nc -U /run/docker/plugins/dmlayer.sock 2>/dev/null ||
		[ -S /run/docker/plugins/dmlayer.sock ]
}

# containerd is not dockerd's child, as where systemd starts both: containers outlive a dockerd that is killed.
start_containerd() {
	printf 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n' >"$work/containerd.toml"
	containerd --config "$work/containerd.toml" --root "$work/containerd" --state /run/containerd --address /run/containerd.sock >>"$work/containerd.log" 2>&1 &
	containerd_pid=$!
	until ctr --address /run/containerd.sock version >/dev/null 2>&1; do
		kill -0 "$containerd_pid" 2>/dev/null || fail "containerd has ended"
	done
}

start_dockerd() {
	dockerd --containerd /run/containerd.sock --host "$DOCKER_HOST" --data-root "$work/data" --exec-root /run/docker.exec --pidfile /run/docker.pid --experimental \
		--iptables=false --ip6tables=false --bridge=none --exec-opt native.cgroupdriver=cgroupfs "${dockerd_flags[@]}" >>"$work/dockerd.log" 2>&1 &
	dockerd_pid=$!
	# Asking takes long enough for a pause.
	until docker version >/dev/null 2>&1; do
		kill -0 "$dockerd_pid" 2>/dev/null || fail "dockerd has ended"
	done
}
dockerd_flags=(--storage-driver dmlayer)

stop() {
	kill "$1"
	wait "$1" || [ $? -lt 128 ] || return 1
}

# same WANT HAVE fails where they differ.
same() { [ "$1" = "$2" ] || fail "line ${BASH_LINENO[0]}: want '$1', have '$2'"; }

# refused TEXT COMMAND... fails where the command succeeds, or does not say TEXT.
refused() {
	local text=$1 out
	shift
	if out=$("$@" 2>&1); then fail "line ${BASH_LINENO[0]}: $* succeeded: $out"; fi
	[[ $out == *"$text"* ]] || fail "line ${BASH_LINENO[0]}: $* said '$out', not '$text'"
}

# has PATTERN FILE fails where no line of the file matches.
has() { grep -qi -- "$1" "$2" || fail "line ${BASH_LINENO[0]}: no '$1' in: $(cat "$2")"; }

# flow NAME runs the function of that name.
flow() {
	local start=$SECONDS
	"$1"
	echo "ok $1 $((SECONDS - start))s"
}
