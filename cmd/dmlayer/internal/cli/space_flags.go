package cli

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/dmlayer/dmlayer/pool"
)

// none is what a setting of space is that was switched off, as in pool.Spec.
const none = -1

// percentFlag is a flag that takes a percentage, or none.
type percentFlag struct {
	value *int
	most  int
}

var _ pflag.Value = percentFlag{}

func (f percentFlag) String() string {
	switch {
	case f.value == nil || *f.value == 0:
		return ""
	case *f.value == none:
		return "none"
	}
	return strconv.Itoa(*f.value)
}

func (f percentFlag) Type() string { return "percent" }

func (f percentFlag) Set(s string) error {
	if s == "none" {
		*f.value = none
		return nil
	}
	n, err := strconv.Atoi(strings.TrimSuffix(s, "%"))
	switch {
	case err != nil, n < 0, n > f.most, strings.HasPrefix(s, "+"):
		return usagef("must be 1 to %d percent, or none", f.most)
	case n == 0:
		return usagef("must be 1 to %d percent; to switch it off write none", f.most)
	}
	*f.value = n
	return nil
}

// limitFlag is a size flag that also takes none.
type limitFlag struct{ sizeFlag }

func (f limitFlag) String() string {
	if f.bytes != nil && *f.bytes == none {
		return "none"
	}
	return f.sizeFlag.String()
}

func (f limitFlag) Set(s string) error {
	if s == "none" {
		*f.bytes = none
		return nil
	}
	return f.sizeFlag.Set(s)
}

// The largest percentages: of a part, and of a ratio.
const (
	maxPart  = 99
	maxRatio = 1_000_000
)

// spaceFlags are the flags of how a pool grows and what it refuses.
func spaceFlags(cmd *cobra.Command, s *pool.Space, def func(string) string) {
	f := cmd.Flags()
	f.Var(percentFlag{&s.GrowAt, maxPart}, "grow-at", "how much of data or metadata is in use when serve makes them larger, in `percent`"+def("80"))
	f.Var(percentFlag{&s.GrowBy, maxRatio}, "grow-by", "by how much, in `percent`"+def("20"))
	f.Var(limitFlag{sizeFlag{&s.GrowLimit}}, "grow-limit", "`size` of the data beyond which serve does not go, or none"+def("none"))
	f.StringVar(&s.Hook, "grow-hook", "", "`program` that serve starts when data or metadata are 80, 85, 90, 95 or 100 percent full, and when they have grown or could not")
	f.Var(percentFlag{&s.MinFree, maxPart}, "min-free", "no new nodes with less than this free of data or metadata, in `percent`, or none"+def("10"))
	f.Var(percentFlag{&s.Overcommit, maxRatio}, "overcommit", "how large all snapshots and volumes may be together, in `percent` of the data, or none"+def("none"))
}

// changeSpace writes the flags that were given into settings.
func changeSpace(cmd *cobra.Command, given pool.Space, s *pool.Space) {
	for name, change := range map[string]func(){
		"grow-at":    func() { s.GrowAt = max(given.GrowAt, 0) },
		"grow-by":    func() { s.GrowBy = max(given.GrowBy, 0) },
		"grow-limit": func() { s.GrowLimit = max(given.GrowLimit, 0) },
		"grow-hook":  func() { s.Hook = given.Hook },
		"min-free":   func() { s.MinFree = max(given.MinFree, 0) },
		"overcommit": func() { s.Overcommit = max(given.Overcommit, 0) },
	} {
		if cmd.Flags().Changed(name) {
			change()
		}
	}
}
