package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/pool"
)

type poolImportOptions struct {
	pool.ImportOptions
	force bool
}

func (a *app) newPoolImport() *cobra.Command {
	var o poolImportOptions
	cmd := &cobra.Command{
		Use:   "import DIR|DEVICE...|--vg VG",
		Short: "Take over a pool whose records are lost, or that comes from another machine",
		Long: `Takes over the pool on the files data and metadata in DIR: one whose root directory is gone, whose
records were put back from a copy, or that comes from another root directory or machine. DIR is moved to its
place under the root directory, if it is not there; both must be on one file system. Prints the pool's name.
A pool on two disks (--data-device of create) is imported by either of them, or both, one on the volumes of a
volume group (--vg and --device of create) with --vg.

The records are taken from the record store in DIR, if it is whole, from the copies that dmlayer keeps in
the pool itself, or from a backup, whichever is the newest; --records names a backup that is to be used
instead, and --empty uses none: all thin devices are kept then, without names, and
dmlayer pool check --adopt gives them names. Copies from before a renewal of the pool (dmlayer pool renew)
are of no use: thin ids mean other devices since. What the pool has and the records do not know is kept, and
what they know and the pool does not have stays recorded: both are listed, and nothing is deleted. Where
there is any, import asks first; without a terminal to ask on, it does nothing unless --force is given.`,
		Example: `  dmlayer pool import /var/lib/dmlayer/pools/default
  dmlayer pool import --name old /mnt/disk/pools/default
  dmlayer pool import /dev/sdb /dev/sdc
  dmlayer pool import --vg ssd`,
		Args: args(0, 2),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			given := cmd.Flags().Changed("vg")
			switch {
			case slices.Contains(args, "") || given && o.VG == "":
				return usagef("pool import: the folder, device or volume group has no name")
			case given && len(args) > 0:
				return usagef("pool import: a folder or devices, or a volume group with --vg, and not both")
			case !given && len(args) == 0:
				return usagef("pool import: an argument is missing: a folder, one or two devices, or a volume group with --vg")
			}
			if o.Name, err = a.importName(cmd, o.Name); err != nil {
				return err
			}
			if o.Empty && o.Records != "" {
				return usagef("pool import: --empty and --records exclude each other")
			}
			if err := a.needRoot(cmd); err != nil {
				return err
			}
			if len(args) > 1 || len(args) == 1 && isDevice(args[0]) {
				o.Devices = args
			} else if len(args) == 1 {
				o.Dir = args[0]
			}
			return a.runPoolImport(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Name, "name", "", "`name` of the pool from now on (default: the folder's, or that in the records)")
	f.StringVar(&o.VG, "vg", "", "volume group with the pool's volumes, or `VG`/LV with one of them where it has those of several pools")
	f.StringVar(&o.Records, "records", "", "`file` of a backup of the records (default: the newest copy)")
	f.BoolVar(&o.Empty, "empty", false, "use no records: all thin devices are kept, and have no names")
	f.BoolVarP(&o.force, "force", "f", false, "do not ask, whatever records and pool do not agree on")
	return exitCodes(cmd, 3, 4, 5, 6, 7, 8)
}

// isDevice tells whether a path leads to a device and not to a folder.
func isDevice(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode()&os.ModeDevice != 0
}

// importName returns the name that the user wants, "" for none.
func (a *app) importName(cmd *cobra.Command, name string) (string, error) {
	given := cmd.Flags().Changed("pool")
	if name == "" {
		if given {
			return a.flags.pool, nil
		}
		return "", nil
	}
	if err := pool.ValidateName("pool", name); err != nil {
		return "", err
	}
	if given && a.flags.pool != name {
		return "", usagef("--pool %s and --name %s name different pools", a.flags.pool, name)
	}
	return name, nil
}

func (a *app) runPoolImport(ctx context.Context, o poolImportOptions) error {
	o.Confirm = func(r pool.ImportReport) error {
		a.noteImport(r)
		if !r.Differs() || o.force {
			return nil
		}
		return a.mayImport(r)
	}
	r, err := pool.Import(ctx, a.dirs(), o.ImportOptions)
	if err != nil {
		return err
	}
	if r.NotCopied != nil {
		a.note("its records were not copied: %v; dmlayer pool stop tries again", r.NotCopied)
	}
	return a.println(r.Name)
}

// noteImport says what a pool is imported with, and what is newer than that.
func (a *app) noteImport(r pool.ImportReport) {
	for _, u := range r.Unusable {
		a.note("not used: %s", u)
	}
	a.note("pool %q (%s): %s, as %s has them of %s", r.Name, r.UUID, count(r.Nodes, "node"), r.Source, r.Taken.Local().Format(time.DateTime))
	if r.CopyTransaction != r.PoolTransaction {
		a.note("the pool is newer or older than these records: it is at transaction %#x, they are of %#x", r.PoolTransaction, r.CopyTransaction)
	}
	for _, m := range r.Missing {
		a.note("not in the pool: %s %q (thin device %d), which stays recorded until it is removed", m.Kind, m.Name, m.ID)
	}
	for _, d := range r.Orphans {
		a.note("not in the records: thin device %d with %s, made at transaction %#x, which is kept", d.ID, humanSize(d.Bytes), d.Transaction)
	}
	if r.Hook != "" {
		a.note("not taken over: the hook %s", r.Hook)
	}
	if len(r.MkfsOptions) > 0 {
		a.note("not taken over: the options for mkfs %q", r.MkfsOptions)
	}
	if len(r.MountOptions) > 0 {
		a.note("not taken over: the mount options %q", r.MountOptions)
	}
	if !r.SideFiles {
		a.note("the folder has no side files: the tars of image layers cannot be made again")
	}
}

// mayImport asks whether records and pool may differ. nil is yes.
func (a *app) mayImport(r pool.ImportReport) error {
	differ := fmt.Errorf("records and pool do not agree: %s missing, %s without a record: %w",
		count(len(r.Missing), "node"), count(len(r.Orphans), "thin device"), errs.ErrDamaged)
	if !isTerminal(a.in) {
		return errs.WithHint(differ, "--force imports it as it is. Nothing was changed")
	}
	fmt.Fprintf(a.err, "%s missing, %s without a record. Type the pool's name to import it as it is: ",
		count(len(r.Missing), "node"), count(len(r.Orphans), "thin device"))
	answer, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the answer: %w", err)
	}
	if strings.TrimSpace(answer) != r.Name {
		return fmt.Errorf("not confirmed, nothing was done: %w", differ)
	}
	return nil
}
