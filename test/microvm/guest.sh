#!/bin/bash
# Sourced: a virtual machine without a network and without the host's files, whose only disk is a block device: QEMU, which needs no /dev/kvm.
# shellcheck shell=bash
#
# CACHE is where scripts/deps qemu has put the program, and the kernel with its modules.

# initramfs CACHE DIR OUT makes what the kernel starts with: the modules for a virtio disk with ext4, and a script that has the disk as its root
# and runs /run-me there.
initramfs() {
	local tools=$1/tools version module
	version=$(basename "$1"/qemu/usr/lib/modules/*)
	mkdir -p "$2"/{bin,proc,dev,root,modules}
	cp "$tools/bin/busybox" "$2/bin/busybox"
	for module in virtio_pci virtio_blk ext4; do modprobe -d "$1/qemu" -S "$version" --show-depends $module; done | awk '/^insmod/ && !seen[$2]++ {print $2}' |
		while read -r module; do
			cp "$module" "$2/modules/"
			basename "$module"
		done >"$2/modules/order"
	cat >"$2/init" <<-'END'
		#!/bin/busybox sh
		export PATH=/bin
		/bin/busybox --install -s /bin
		mount -t proc proc /proc
		mount -t devtmpfs dev /dev
		while read -r module; do insmod /modules/$module; done </modules/order
		until [ -b /dev/vda ]; do :; done
		mount -t ext4 /dev/vda /root && chroot /root /bin/sh /run-me
		echo "exit code $?"
		umount /root
		poweroff -f
	END
	chmod +x "$2/init"
	(cd "$2" && find . | "$tools/bin/busybox" cpio -o -H newc) >"$3"
}

# boot CACHE INITRAMFS DEVICE starts the machine on the device and waits for its end.
boot() {
	local usr=$1/tools/usr
	"$usr/bin/qemu-system-x86_64" -L "$usr/share/qemu" -L "$usr/share/seabios" -accel tcg,tb-size=64 -cpu max -smp 1 -m 256M -display none -nodefaults -no-user-config -no-reboot \
		-serial stdio -kernel "$1"/qemu/boot/vmlinuz-* -initrd "$2" -append "console=ttyS0 quiet panic=-1 mitigations=off" \
		-drive "format=raw,if=virtio,cache=none,file=$3" </dev/null
}
