#!/bin/bash
# Makes superblock.bin, the first block of a pool's metadata as the kernel
# writes it:
#
#	DMLAYER_VM_RW=$PWD/thinpool/thinmeta/testdata scripts/vm thinpool/thinmeta/testdata/record.sh
set -eu
to=$(cd "$(dirname "$0")" && pwd)/superblock.bin
truncate -s 8M /run/meta
truncate -s 64M /run/data
losetup /dev/loop0 /run/meta
losetup /dev/loop1 /run/data
dmsetup create pool --noudevsync --table '0 131072 thin-pool 7:0 7:1 128 0'
dmsetup message pool 0 create_thin 1
dmsetup message pool 0 create_snap 2 1
dmsetup message pool 0 set_transaction_id 0 42
dmsetup create thin --noudevsync --table '0 2048 thin 254:0 1'
dd if=/dev/zero of=/dev/dm-1 bs=64k count=2 oflag=direct status=none
dmsetup remove thin --noudevsync
dmsetup remove pool --noudevsync
losetup -d /dev/loop0
losetup -d /dev/loop1
head -c 4096 /run/meta >"$to"
