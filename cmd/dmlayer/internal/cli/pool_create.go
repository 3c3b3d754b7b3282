package cli

import (
	"cmp"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/dmlayer/dmlayer/internal/run"
	"github.com/dmlayer/dmlayer/pool"
)

// The block sizes that dm-thin takes: between these, in steps of the least.
const (
	minBlockSize = 64 << 10
	maxBlockSize = 1 << 30
)

type poolCreateOptions struct {
	loopback bool
	spec     pool.Spec
}

func (a *app) newPoolCreate() *cobra.Command {
	var o poolCreateOptions
	cmd := &cobra.Command{
		Use:   "create [NAME]",
		Short: "Create a pool",
		Long: `Creates a pool. NAME is that of --pool where it is not given. Prints the pool's name.

A pool lies on loopback, unless something else is asked for: on a sparse data file and a fully allocated metadata
file under the root directory. With --vg it lies on two logical volumes of a volume group (direct-lvm), with --device
on a disk of its own, on which lvm2 makes a volume group. With --data-device and --metadata-device it lies on two disks,
partitions or volumes without LVM, which are found again under any name. A disk that anybody uses is refused, and one that
carries anything too, unless --force is given, which wipes it. A create that fails leaves disks and volume groups as they were.`,
		Example: `  dmlayer pool create
  dmlayer pool create --data-size 200G --fs xfs --base-size 20G fast
  dmlayer pool create --vg ssd --data-percent 80
  dmlayer pool create --device /dev/nvme1n1
  dmlayer pool create --data-device /dev/sdb --metadata-device /dev/nvme0n1p4 big`,
		Args: args(0, 1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if o.spec.Name, err = a.poolArg(cmd, args); err != nil {
				return err
			}
			if err := o.check(cmd.Flags()); err != nil {
				return err
			}
			if err := a.needRoot(cmd); err != nil {
				return err
			}
			// The first node needs it; a pool that cannot have one is better not made.
			if _, err := run.Look("mkfs." + cmp.Or(o.spec.FS, "ext4")); err != nil {
				return err
			}
			if err := pool.Create(cmd.Context(), a.dirs(), o.spec); err != nil {
				return err
			}
			return a.println(o.spec.Name)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.loopback, "loopback", true, "keep the pool in files under the root directory")
	o.lvmFlags(f)
	o.deviceFlags(f)
	f.BoolVar(&o.spec.Force, "force", false, "wipe what is on the disk")
	f.Var(sizeFlag{&o.spec.DataSize}, "data-size", "size of the data; of a file, which is sparse (default 100G)")
	f.Var(autoSizeFlag{sizeFlag{&o.spec.MetadataSize}}, "metadata-size", "size of the metadata, or auto: from the data size")
	f.Var(sizeFlag{&o.spec.BlockSize}, "block-size", "unit of allocation and sharing, 64K to 1G (default 64K)")
	f.Var(choiceFlag{&o.spec.FS, []string{"ext4", "xfs"}}, "fs", "file system of new nodes (default ext4)")
	f.Var(sizeFlag{&o.spec.BaseSize}, "base-size", "size of a node when none is asked for (default 10G)")
	f.StringArrayVar(&o.spec.MkfsOptions, "mkfs-option", nil, "a `word` for mkfs; repeatable")
	f.StringArrayVar(&o.spec.MountOptions, "mount-option", nil, "a mount `option` of every node; repeatable")
	f.Var(choiceFlag{&o.spec.Discard, []string{"passdown", "nopassdown", "ignore"}}, "discard",
		"what to do with blocks that nodes give back (default passdown; nopassdown where the pool lies on disks)")
	f.BoolVar(&o.spec.NoZero, "no-zero", false, "do not zero new blocks: whoever gets a raw device can read what others deleted")
	f.BoolVar(&o.spec.ForbidDevices, "forbid-devices", false, "refuse archives with device nodes in their layers")
	spaceFlags(cmd, &o.spec.Space, func(value string) string { return " (default " + value + ")" })
	return exitCodes(cmd, 3, 4, 5, 6, 7, 8)
}

func (o *poolCreateOptions) check(f *pflag.FlagSet) error {
	if err := o.checkBacking(f); err != nil {
		return err
	}
	if b := o.spec.BlockSize; b != 0 && (b < minBlockSize || b > maxBlockSize || b%minBlockSize != 0) {
		return usagef("--block-size %s: must be 64K to 1G, a multiple of 64K", humanSize(b))
	}
	for _, word := range append(o.spec.MkfsOptions, o.spec.MountOptions...) {
		if word == "" {
			return usagef("--mkfs-option and --mount-option: must not be empty")
		}
	}
	return nil
}

// checkBacking finds out what the pool is to lie on.
func (o *poolCreateOptions) checkBacking(f *pflag.FlagSet) error {
	if onLVM, err := o.checkLVM(f); onLVM || err != nil {
		if err == nil && f.Changed("loopback") && o.loopback {
			err = usagef("--loopback: not with --vg or --device")
		}
		return err
	}
	if onDevices, err := o.checkDevices(f); onDevices || err != nil {
		return err
	}
	if !o.loopback {
		return usagef("--loopback=false: a pool needs something to lie on")
	}
	if o.spec.Force {
		return usagef("--force: files are never wiped; it is for --device and --data-device")
	}
	o.spec.Backing = pool.BackingLoopback
	return nil
}
