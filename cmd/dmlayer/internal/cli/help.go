package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// Keys of a command's annotations.
const (
	exitsKey   = "dmlayer.exits"   // the exit codes beside 0, 1 and 2
	recordsKey = "dmlayer.records" // prints records, so --format takes a template
)

func annotate(cmd *cobra.Command, key, value string) {
	if cmd.Annotations == nil {
		cmd.Annotations = map[string]string{}
	}
	cmd.Annotations[key] = value
}

// exitCodes declares the exit codes that a command may have beside 0, 1, 2 and those of signals.
func exitCodes(cmd *cobra.Command, codes ...int) *cobra.Command {
	words := make([]string, len(codes))
	for i, c := range codes {
		words[i] = strconv.Itoa(c)
	}
	annotate(cmd, exitsKey, strings.Join(words, " "))
	return cmd
}

// records declares that a command prints records in the format that --format asks for.
func records(cmd *cobra.Command) *cobra.Command {
	annotate(cmd, recordsKey, "yes")
	return cmd
}

func printsRecords(cmd *cobra.Command) bool { return cmd.Annotations[recordsKey] != "" }

// printHelp writes the help text of a command: what it does, how it is called, an example, its flags
// and its exit codes.
func (a *app) printHelp(cmd *cobra.Command, _ []string) {
	var b strings.Builder
	text := cmd.Long
	if text == "" {
		text = cmd.Short + "."
	}
	fmt.Fprintf(&b, "%s\n\nUsage:\n", strings.TrimSpace(text))
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "  %s COMMAND\n", cmd.CommandPath())
	} else {
		fmt.Fprintf(&b, "  %s\n", cmd.UseLine())
	}
	if len(cmd.Aliases) > 0 {
		fmt.Fprintf(&b, "\nAlso called:\n  %s\n", strings.Join(cmd.Aliases, ", "))
	}
	if cmd.Example != "" {
		fmt.Fprintf(&b, "\nExample:\n%s\n", strings.TrimRight(cmd.Example, "\n"))
	}
	writeSubcommands(&b, cmd)
	if flags := cmd.LocalFlags(); cmd.HasParent() && flags.HasAvailableFlags() {
		fmt.Fprintf(&b, "\nFlags:\n%s", flags.FlagUsages())
	}
	global := cmd.InheritedFlags()
	if !cmd.HasParent() {
		global = cmd.LocalFlags()
	}
	if global.HasAvailableFlags() {
		fmt.Fprintf(&b, "\nFlags of every command:\n%s", global.FlagUsages())
	}
	writeExits(&b, cmd)
	fmt.Fprint(a.out, b.String())
}

func writeSubcommands(b *strings.Builder, cmd *cobra.Command) {
	if !cmd.HasAvailableSubCommands() {
		return
	}
	width := 0
	for _, sub := range cmd.Commands() {
		width = max(width, len(sub.Name()))
	}
	list := func(title, group string) {
		fmt.Fprintf(b, "\n%s\n", title)
		for _, sub := range cmd.Commands() {
			if sub.GroupID == group && (sub.IsAvailableCommand() || sub.Name() == "help") {
				fmt.Fprintf(b, "  %-*s  %s\n", width, sub.Name(), sub.Short)
			}
		}
	}
	if len(cmd.Groups()) == 0 {
		list("Commands:", "")
	}
	for _, g := range cmd.Groups() {
		list(g.Title, g.ID)
	}
}

func writeExits(b *strings.Builder, cmd *cobra.Command) {
	b.WriteString("\nExit codes:\n    0  done\n    1  failed, or out of the time that --timeout allows\n")
	codes := " 2 " + cmd.Annotations[exitsKey] + " "
	for _, e := range exits {
		if strings.Contains(codes, fmt.Sprintf(" %d ", e.code)) {
			fmt.Fprintf(b, "    %d  %s: %s\n", e.code, e.name, e.meaning)
		}
	}
	b.WriteString("  130  interrupted by SIGINT, and undone (143: SIGTERM, 129: SIGHUP)\n")
}

func (a *app) newHelp() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "help [COMMAND]...",
		Short:   "Help about a command",
		Example: "  dmlayer help snapshot",
		GroupID: groupHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return noSubcommand(cmd.Root(), args)
			}
			found.InitDefaultHelpFlag()
			return found.Help()
		},
	}
	return exitCodes(cmd)
}
