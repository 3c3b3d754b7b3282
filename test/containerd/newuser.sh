#!/bin/bash
# Does what docs/containerd.md says, line by line, on a machine that has dmlayer and containerd and nothing else: from nothing to a running container.
#
#   newuser.sh DIR DOCUMENT ARCHIVE     ARCHIVE has docker.io/library/app:latest
#
# In a mount and process namespace of a virtual machine, which end with the script. DIR is an empty folder; dmlayer, containerd and ctr are in PATH.
set -euo pipefail
work=$1 document=$2 archive=$3
mkdir -p "$work"/{etc,etc.work,lib}
export TMPDIR=$work
mount -t overlay -o "lowerdir=/etc,upperdir=$work/etc,workdir=$work/etc.work" etc /etc
mount --bind "$work/lib" /var/lib
mount -t tmpfs run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
cd "$work"
cp "$archive" app.tar

fail() {
	echo "FAIL: $*" >&2
	tail -n 25 "$work"/*.log >&2
	exit 1
}

# block TEXT prints the indented block of the document that has the text.
block() {
	awk -v want="$1" '/^    / || /^$/ {b = b substr($0, 5) "\n"; if (index($0, want)) hit = 1; next} hit {exit} {b = ""} END {if (!hit) exit 1; printf "%s", b}' "$document" ||
		fail "$document has no block with: $1"
}

# until_answers PID NAME COMMAND... repeats what takes long enough for a pause.
until_answers() {
	local pid=$1 name=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		kill -0 "$pid" 2>/dev/null || fail "$name has ended"
	done
}

while read -r line; do
	[ -z "$line" ] || echo "+ $line"
	case $line in
	"dmlayer serve") $line >serve.log 2>&1 & serve=$! ;;
	?*) eval "$line" >/dev/null ;;
	esac
done < <(block "dmlayer serve")
until_answers "$serve" "dmlayer serve" eval 'dmlayer version && [ -S /run/dmlayer/containerd.sock ]'

mkdir -p /etc/containerd
{
	block proxy_plugins.dmlayer
	block unpack_config
} >/etc/containerd/config.toml
containerd >containerd.log 2>&1 &
until_answers $! containerd ctr version

while read -r line; do
	[ -z "$line" ] || echo "+ $line"
	case $line in
	"ctr run "*) said=$(printf 'echo $((6 * 7)) of web1\nexit\n' | script -qec "$line" /dev/null) || fail "$line: $said" ;;
	?*) eval "$line" >/dev/null || fail "$line" ;;
	esac
done < <(block "ctr images import")
[[ $said == *"42 of web1"* ]] || fail "the container said: $said"
said=$(printf 'df -kP /\nexit\n' | script -qec "$(block max-size=)" /dev/null) || fail "a container with a size of its own: $said"
size=$(tr -d '\r' <<<"$said" | awk '$6 == "/" {print $2}')
((size > 15 << 20)) || fail "a container of 20 GiB has $size KiB: $said"
[ "$(CONTAINERD_SNAPSHOTTER=dmlayer ctr run --rm docker.io/library/app:latest web2 echo hello)" = hello ] || fail "CONTAINERD_SNAPSHOTTER"
dmlayer ls | grep -q "^containerd-" || fail "no layers: $(dmlayer ls)"

ctr images rm --sync docker.io/library/app:latest >/dev/null
[ -z "$(dmlayer ls -q)" ] || fail "left after the removal: $(dmlayer ls)"
kill %2 && wait %2 || true
kill "$serve" && wait "$serve"
dmlayer pool destroy --force >/dev/null
echo ok
