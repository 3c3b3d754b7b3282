package cli

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/pool"
)

func (a *app) newPoolSet() *cobra.Command {
	var given pool.Space
	cmd := &cobra.Command{
		Use:   "set [NAME]",
		Short: "Change how a pool grows and what it refuses",
		Long: `Changes settings of a pool that pool create has given it; what is not named stays as it is. They count from the
next growth, the next new node. A serve that runs takes them at once. Without any flag it changes nothing. Prints the
settings.`,
		Example: `  dmlayer pool set --grow-at 70 --grow-limit 500G
  dmlayer pool set --grow-at none fast`,
		Args:              args(0, 1),
		ValidArgsFunction: a.completePools,
		RunE: a.onPool(func(cmd *cobra.Command, name string) error {
			s, err := pool.SetSpace(cmd.Context(), a.dirs(), name, func(s *pool.Space) { changeSpace(cmd, given, s) })
			if err != nil {
				return err
			}
			return a.printSpace(name, s)
		}),
	}
	spaceFlags(cmd, &given, func(string) string { return "" })
	return records(exitCodes(cmd, 3, 5, 6, 7, 8))
}

// settings are pool.Space for people and scripts; what is switched off is null.
type settings struct {
	GrowAt     *int   `json:"growAt"`
	GrowBy     *int   `json:"growBy"`
	GrowLimit  *int64 `json:"growLimit"`
	GrowHook   string `json:"growHook"`
	MinFree    *int   `json:"minFree"`
	Overcommit *int   `json:"overcommit"`
}

func settingsOf(s pool.Space) settings {
	return settings{orNull(s.GrowAt), orNull(s.GrowBy), orNull(s.GrowLimit), s.Hook, orNull(s.MinFree), orNull(s.Overcommit)}
}

func orNull[T int | int64](n T) *T {
	if n == 0 {
		return nil
	}
	return &n
}

func (a *app) printSpace(name string, s pool.Space) error {
	part := func(n int) string {
		if n == 0 {
			return "none"
		}
		return strconv.Itoa(n) + "%"
	}
	limit, hook := "none", s.Hook
	if s.GrowLimit > 0 {
		limit = humanSize(s.GrowLimit)
	}
	if hook == "" {
		hook = "none"
	}
	return printRecord(a, settingsOf(s), name, false, []field{
		{"Grow at", part(s.GrowAt)}, {"Grow by", part(s.GrowBy)}, {"Grow limit", limit}, {"Grow hook", hook},
		{"Min free", part(s.MinFree)}, {"Overcommit", part(s.Overcommit)},
	})
}
