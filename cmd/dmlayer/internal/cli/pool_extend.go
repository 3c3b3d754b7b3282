package cli

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/dmlayer/dmlayer/pool"
)

// extentFlag is a flag that takes a new size, or with a + how much more.
type extentFlag struct{ extent *pool.Extent }

var _ pflag.Value = extentFlag{}

func (f extentFlag) String() string {
	if f.extent == nil || f.extent.Bytes == 0 {
		return ""
	}
	if f.extent.More {
		return "+" + humanSize(f.extent.Bytes)
	}
	return humanSize(f.extent.Bytes)
}

func (f extentFlag) Type() string { return "size" }

func (f extentFlag) Set(s string) error {
	n, more, err := parseGrowth("pool", s)
	if err != nil {
		return err
	}
	*f.extent = pool.Extent{Bytes: n, More: more}
	return nil
}

// parseGrowth reads the new size of a thing, or with a + how much more it is to be.
func parseGrowth(kind, s string) (n int64, more bool, err error) {
	if strings.HasPrefix(s, "-") {
		return 0, false, usagef("size %q: a %s can only grow; 20G is the new size, +20G is that much more", s, kind)
	}
	number, more := strings.CutPrefix(s, "+")
	n, err = parseSize(number)
	return n, more, err
}

func (a *app) newPoolExtend() *cobra.Command {
	var e pool.Extension
	cmd := &cobra.Command{
		Use:   "extend [NAME]",
		Short: "Make a pool larger, while it runs",
		Long: `Makes the data of a pool larger, or its metadata, or both: files grow, volumes take more of their group. SIZE
is the new size, +SIZE is that much more. Without any, the pool takes what its devices have become by somebody else's
hand. A pool cannot be made smaller. Prints what data and metadata have now.`,
		Example: `  dmlayer pool extend --data 200G
  dmlayer pool extend --data +50G --metadata +64M fast`,
		Args:              args(0, 1),
		ValidArgsFunction: a.completePools,
		RunE: a.onPool(func(cmd *cobra.Command, name string) error {
			now, err := pool.Extend(cmd.Context(), a.dirs(), name, e)
			if err != nil {
				return err
			}
			if now.NoSpare {
				a.note("there is no room for the metadata's spare, which a repair needs: free space below the root directory, then dmlayer pool check --repair %s", name)
			}
			return a.printSizes(name, now)
		}),
	}
	cmd.Flags().Var(extentFlag{&e.Data}, "data", "`SIZE` of the data")
	cmd.Flags().Var(extentFlag{&e.Metadata}, "metadata", "`SIZE` of the metadata")
	return records(exitCodes(cmd, 3, 5, 6, 7, 8))
}

func (a *app) printSizes(name string, now pool.Sizes) error {
	return printRecord(a, now, name, false, []field{{"Data", humanSize(now.Data)}, {"Metadata", humanSize(now.Metadata)}})
}
