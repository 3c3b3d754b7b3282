// Treecmp prints how two directory trees differ. Exit code 0: not at all; 1: they do; 2: a tree could
// not be read.
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/dmlayer/dmlayer/test/treecmp"
)

func main() {
	var ignore, times []string
	var o treecmp.Options
	pflag.StringSliceVar(&ignore, "ignore", nil, "paths that are not compared, with all that is below them")
	pflag.StringSliceVar(&times, "ignore-time", nil, "paths whose modification time is not compared; . is the root")
	pflag.IntVar(&o.Limit, "limit", 100, "how many differences are printed")
	pflag.Usage = func() {
		fmt.Fprintf(os.Stderr, "Usage: treecmp [flags] TREE TREE\n%s", pflag.CommandLine.FlagUsages())
	}
	pflag.Parse()
	if pflag.NArg() != 2 {
		pflag.Usage()
		os.Exit(2)
	}
	o.Ignore, o.IgnoreTimes = listed(ignore), listed(times)
	lines, err := treecmp.Compare(pflag.Arg(0), pflag.Arg(1), o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "treecmp:", err)
		os.Exit(2)
	}
	for _, line := range lines {
		fmt.Println(line)
	}
	if len(lines) > 0 {
		os.Exit(1)
	}
}

// listed returns whether a path is among the given ones, however they are spelt.
func listed(paths []string) func(string) bool {
	set := map[string]bool{}
	for _, p := range paths {
		if p = strings.Trim(p, "/"); p == "" {
			p = "."
		}
		set[p] = true
	}
	return func(rel string) bool { return set[rel] }
}
