// Package devmapper speaks to the Linux device-mapper through the ioctls of
// /dev/mapper/control. It needs neither cgo nor libdevmapper nor the dmsetup
// program, and depends on golang.org/x/sys only.
//
// A [Client] is the open control node. Its methods are the kernel's commands,
// one ioctl each unless the method says otherwise; devices are named by value
// with a [Ref] ([ByName], [ByUUID], [ByDev]), and a table is a list of
// [Target] whose parameters are the target's own text.
//
// The life of a device:
//
//	Create   name, uuid and minor are reserved; there is no table yet
//	Load     a table is staged ("inactive")
//	Resume   the staged table becomes live; I/O runs
//	Suspend  I/O is held back, after what was in flight has finished
//	Remove   the device goes, unless somebody has it open
//
// Load followed by Resume on a running device replaces its table; the kernel
// suspends it for the moment that this takes.
//
// # Errors
//
// Every failure of the kernel is an [*Error] that names the operation and the
// device. [errors.Is] works with the sentinels of this package ([ErrNotFound],
// [ErrBusy], [ErrExists] ...) and with the errno alike. Comparing with ==
// never works, on purpose.
//
// # Versions
//
// Requests carry version 4.0.0, which every kernel with this interface
// accepts; what newer kernels added is used according to the version that the
// kernel answers with, and is [ErrUnsupported] where it is missing.
//
// # Udev
//
// Remove, Rename and Resume make the kernel send an event to udev. The client
// passes flags with it ([UdevFlags]) that keep udev's rules from opening the
// device (a blkid that is still reading makes a removal fail with EBUSY).
// Nobody waits for udev: /dev/dm-N is made by the kernel itself and is there
// when Load returns; symbolic links in /dev/mapper come later or, where udev
// does not run, never.
//
// # Tests without a kernel
//
// A client can be put on any [Transport]; package dmtest has a device-mapper
// in memory and a transport made of a function.
package devmapper
