package cli

import (
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/pool"
)

// globalFlags are the flags that every command takes.
type globalFlags struct {
	root, run, pool string
	backups         string
	format          string
	quiet           bool
	logLevel        string
	timeout         time.Duration
}

func (a *app) newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "dmlayer",
		Short: "Image layers, container disks and VM disks as thin devices",
		Long: `dmlayer keeps container image layers, container and VM disks as thin devices in a
device-mapper thin pool. A layer is immutable; a snapshot is a writable child of a layer, of
another snapshot, or of nothing.`,
		Example: `  dmlayer pool create
  dmlayer image load app.tar
  dmlayer snapshot --parent app:latest web1
  dmlayer mount web1`,
		Version:           buildVersion().Version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		Args:              noSubcommand,
		RunE:              missingSubcommand,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return a.prepare(cmd) },
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(flagError)
	root.SetVersionTemplate("{{.Version}}\n")
	a.addGlobalFlags(root)
	root.AddGroup(
		&cobra.Group{ID: groupPools, Title: "Pools:"},
		&cobra.Group{ID: groupNodes, Title: "Layers and snapshots:"},
		&cobra.Group{ID: groupImages, Title: "Images:"},
		&cobra.Group{ID: groupService, Title: "Service:"},
		&cobra.Group{ID: groupHelp, Title: "Help:"},
	)
	a.addCommands(root)
	root.SetHelpFunc(a.printHelp)
	root.SetHelpCommand(a.newHelp())
	root.InitDefaultHelpCmd()
	exitCodes(root, 3, 4, 5, 6, 7, 8)
	refuseFileNames(root)
	return root
}

// The groups of commands in the help text.
const (
	groupPools   = "pools"
	groupNodes   = "nodes"
	groupImages  = "images"
	groupService = "service"
	groupHelp    = "help"
)

func (a *app) addGlobalFlags(root *cobra.Command) {
	dirs := pool.DefaultDirs()
	f, p := &a.flags, root.PersistentFlags()
	p.StringVar(&f.root, "root", a.envOr("DMLAYER_ROOT", dirs.Root), "`directory` of what lasts [$DMLAYER_ROOT]")
	p.StringVar(&f.run, "run", a.envOr("DMLAYER_RUN", dirs.Run), "`directory` of what a reboot clears [$DMLAYER_RUN]")
	p.StringVar(&f.backups, "backup-dir", a.envOr("DMLAYER_BACKUP_DIR", ""),
		"`directory` of the backups of the records (default backups, below --root) [$DMLAYER_BACKUP_DIR]")
	p.StringVar(&f.pool, "pool", a.envOr("DMLAYER_POOL", "default"), "`name` of the pool to work on [$DMLAYER_POOL]")
	p.StringVar(&f.format, "format", "", "`how` to print: table, json, or a Go template such as '{{.Name}}'; json is for errors too")
	p.BoolVarP(&f.quiet, "quiet", "q", false, "print names only, no notes and no progress")
	p.StringVar(&f.logLevel, "log-level", "error", "`level` of what is logged to standard error: debug, info, warn, error")
	p.DurationVar(&f.timeout, "timeout", 0, "give up and undo after this time, such as 30s (exit 1); 0 is never")
}

func (a *app) envOr(name, value string) string {
	if v := a.env(name); v != "" {
		return v
	}
	return value
}

func (a *app) addCommands(root *cobra.Command) {
	for _, cmd := range []*cobra.Command{
		a.newPool(),
		a.newSnapshot(), a.newMount(), a.newUnmount(), a.newAttach(), a.newDetach(), a.newCommit(),
		a.newReset(), a.newResize(), a.newRename(), a.newLabel(), a.newRm(), a.newPrune(), a.newLs(),
		a.newInspect(), a.newTree(), a.newDiff(), a.newFsck(), a.newTrim(),
		a.newImage(),
		a.newServe(),
		a.newDoctor(), a.newVersion(), a.newCompletion(),
	} {
		root.AddCommand(cmd)
	}
}

// prepare checks the global flags; nothing was touched before.
func (a *app) prepare(cmd *cobra.Command) error {
	if strings.HasPrefix(cmd.Name(), cobra.ShellCompRequestCmd) {
		return nil
	}
	f := &a.flags
	if err := pool.ValidateName("pool", f.pool); err != nil {
		return err
	}
	if f.root == "" || f.run == "" {
		return usagef("--root and --run must name a directory")
	}
	if f.timeout < 0 {
		return usagef("--timeout %s: must not be negative", f.timeout)
	}
	if _, err := parseLevel(f.logLevel); err != nil {
		return err
	}
	format, err := parseFormat(f.format)
	if err != nil {
		return err
	}
	if format.tmpl != nil {
		if !printsRecords(cmd) {
			return usagef("%s--format takes no template: it prints no records", prefix(cmd))
		}
		if f.quiet {
			return usagef("--quiet and a template exclude each other")
		}
	}
	a.format = format
	a.bounded(cmd)
	return nil
}

// poolArg returns the pool that a command with an optional positional pool name works on.
func (a *app) poolArg(cmd *cobra.Command, args []string) (string, error) {
	if len(args) == 0 {
		return a.flags.pool, nil
	}
	if err := pool.ValidateName("pool", args[0]); err != nil {
		return "", err
	}
	if cmd.Flags().Changed("pool") && a.flags.pool != args[0] {
		return "", usagef("--pool %s and the argument %q name different pools", a.flags.pool, args[0])
	}
	return args[0], nil
}

func (a *app) dirs() pool.Dirs {
	return pool.Dirs{Root: a.flags.root, Run: a.flags.run, Backups: a.flags.backups}
}

func parseLevel(s string) (slog.Level, error) {
	var level slog.Level
	switch s {
	case "debug", "info", "warn", "error":
		return level, level.UnmarshalText([]byte(s))
	}
	return 0, usagef("--log-level %q: must be debug, info, warn or error", s)
}

func (a *app) logger() *slog.Logger {
	level, err := parseLevel(a.flags.logLevel)
	if err != nil {
		level = slog.LevelError
	}
	return slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: level}))
}

// note tells the user something on standard error.
func (a *app) note(format string, args ...any) {
	if !a.flags.quiet {
		fmt.Fprintf(a.err, format+"\n", args...)
	}
}

// needRoot is called before anything else by commands that need the kernel.
func (a *app) needRoot(cmd *cobra.Command) error {
	if a.euid() == 0 {
		return nil
	}
	return &rootNeeded{verb(cmd)}
}

// rootNeeded has no class: nothing is missing on this machine but the right to use it.
type rootNeeded struct{ command string }

func (e *rootNeeded) Error() string { return fmt.Sprintf("%s: needs root", e.command) }

func flagError(cmd *cobra.Command, err error) error {
	return &usageError{message: fmt.Sprintf("%s%s", prefix(cmd), err), hint: helpHint(cmd)}
}

// verb is the words of a command, without the program's name.
func verb(cmd *cobra.Command) string {
	return strings.TrimSpace(strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()))
}

// prefix begins a message about a command.
func prefix(cmd *cobra.Command) string {
	if v := verb(cmd); v != "" {
		return v + ": "
	}
	return ""
}

func helpHint(cmd *cobra.Command) string { return fmt.Sprintf("see %s --help", cmd.CommandPath()) }

// noSubcommand refuses arguments of a command that only has subcommands.
func noSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := helpHint(cmd)
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return &usageError{message: fmt.Sprintf("%sunknown command %q", prefix(cmd), args[0]), hint: hint}
}

func missingSubcommand(cmd *cobra.Command, _ []string) error {
	return &usageError{message: prefix(cmd) + "a command is missing", hint: helpHint(cmd)}
}

// args bounds the number of arguments; most < 0 is any number.
func args(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		var problem string
		switch {
		case len(args) < least:
			problem = fmt.Sprintf("an argument is missing: %s", cmd.UseLine())
		case most >= 0 && len(args) > most:
			problem = fmt.Sprintf("unexpected argument %q: %s", args[most], cmd.UseLine())
		default:
			return nil
		}
		return &usageError{message: prefix(cmd) + problem, hint: helpHint(cmd)}
	}
}

// refuseFileNames keeps shells from offering files where names are meant.
func refuseFileNames(cmd *cobra.Command) {
	if cmd.ValidArgsFunction == nil && len(cmd.ValidArgs) == 0 {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	for _, sub := range cmd.Commands() {
		refuseFileNames(sub)
	}
}
