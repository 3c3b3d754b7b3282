#!/bin/bash
# Records what dmsetup and the kernel say to each other, one file a command,
# into the folder ioctl beside this script:
#
#	gcc -O1 -shared -fPIC -o /var/tmp/record.so devmapper/testdata/record.c -ldl
#	DMLAYER_VM_RW=$PWD/devmapper/testdata scripts/vm devmapper/testdata/record.sh /var/tmp/record.so
#
# The kernel must have no other dm devices. Each file says in its first lines
# how it was made.
set -eu
so=$1
dir=$(cd "$(dirname "$0")" && pwd)/ioctl
mkdir -p "$dir"
rm -f "$dir"/*.txt

truncate -s 64M /run/meta /run/data
losetup /dev/loop0 /run/meta
losetup /dev/loop1 /run/data

rec() { # NAME COMMAND...
	local to=$dir/$1.txt; shift
	{
		echo "# command: $*"
		echo "# dmsetup $(dmsetup version | sed -n 's/^Library version: *//p'), Linux $(uname -r)"
	} >"$to"
	RECORD_TO=$to LD_PRELOAD=$so "$@" >/dev/null || true
}

export RECORD_VERSION=1
rec version dmsetup version
unset RECORD_VERSION

table=$'0 1024 linear 7:1 8\n1024 1000 zero\n2024 24 error'
{ # a table comes through standard input
	rec create dmsetup create golden --noudevsync --uuid DMLAYER-golden <<<"$table"
}
rec create-exists dmsetup create golden --noudevsync --notable
rec create-readonly dmsetup create goldenro --noudevsync --readonly --table '0 8 zero'
rec info dmsetup info golden
rec info-uuid dmsetup info --uuid DMLAYER-golden
rec info-dev dmsetup info -j 254 -m 0
rec info-missing dmsetup info nobody
rec table dmsetup table golden
rec status dmsetup status golden
rec status-noflush dmsetup status --noflush golden
rec deps dmsetup deps golden
rec reload dmsetup reload golden --table '0 4096 zero'
rec table-inactive dmsetup table --inactive golden
rec clear dmsetup clear golden
rec suspend dmsetup suspend golden --noudevsync
rec resume dmsetup resume golden --noudevsync
rec suspend-flags dmsetup suspend --nolockfs --noflush golden --noudevsync
dmsetup resume golden --noudevsync
rec rename dmsetup rename golden --noudevsync other
rec setuuid dmsetup rename goldenro --noudevsync --setuuid DMLAYER-late
rec ls dmsetup ls
rec targets dmsetup targets
rec target-version dmsetup target-version thin-pool
exec 9</dev/dm-0
rec remove-busy dmsetup remove --noudevsync other
rec remove-deferred dmsetup remove --noudevsync --deferred other
rec message-cancel dmsetup message other 0 @cancel_deferred_remove
exec 9<&-
rec remove dmsetup remove --noudevsync other
dmsetup remove goldenro --noudevsync
rec ls-empty dmsetup ls

dmsetup create pool --noudevsync --table '0 131072 thin-pool 7:0 7:1 128 100 2 no_discard_passdown error_if_no_space'
rec pool-table dmsetup table pool
rec pool-status dmsetup status --noflush pool
rec pool-message dmsetup message pool 0 create_thin 5
rec pool-message-exists dmsetup message pool 0 create_thin 5
dmsetup create thin --noudevsync --table '0 2048 thin 254:0 5'
rec thin-table dmsetup table thin
rec thin-status dmsetup status --noflush thin
rec thin-deps dmsetup deps thin
dmsetup remove thin --noudevsync
dmsetup remove pool --noudevsync
losetup -d /dev/loop0
losetup -d /dev/loop1
chmod a+r "$dir"/*.txt
