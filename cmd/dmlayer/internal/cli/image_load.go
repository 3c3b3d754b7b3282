package cli

import (
	"context"
	"errors"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
)

func (a *app) newImageLoad() *cobra.Command {
	var platform string
	cmd := &cobra.Command{
		Use:   "load FILE|DIR|-",
		Short: "Load images from an archive",
		Long: `Loads the images of an archive of docker save, of an OCI archive, or of an OCI layout, from a file, a
directory or standard input (-). Layers may be plain, gzip or zstd. Prints each reference loaded, a
line each, as the archive spells it; an image without a reference by its id.

Progress goes to standard error: bars on a terminal, else a line for each layer.

Nothing is kept of an archive that is damaged or not supported. A load that is interrupted, or for which
the space is not enough, lists no image, but keeps the layers that are whole: loading the archive again goes
on from there, and dmlayer prune removes them.`,
		Example: "  dmlayer image load app.tar\n  docker save app:latest | dmlayer image load -",
		Args:    args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			source := args[0]
			if source == "" {
				return usagef("image load: the file's name is empty")
			}
			if source == "-" && isTerminal(a.in) {
				return &usageError{"image load: will not read an archive from a terminal", "name a file, or redirect standard input"}
			}
			if err := image.CheckPlatform(platform); err != nil {
				return err
			}
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				return a.runImageLoad(ctx, s, source, platform)
			})
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveDefault
		},
	}
	cmd.Flags().StringVar(&platform, "platform", "", "`os/arch[/variant]` to take where there are several (default this machine's)")
	return exitCodes(cmd, 3, 4, 5, 6, 7, 8)
}

// loadMemory is from where on the garbage collector works harder while an image is loaded. What a load has in use
// is a fraction of that; only zstd with a window of 128 MiB, the largest that is taken, needs more, about 150 MiB in
// all, which would be 400 without.
const loadMemory = 80 << 20

func (a *app) runImageLoad(ctx context.Context, s *layer.Store, source, platform string) error {
	if a.env("GOMEMLIMIT") == "" {
		defer debug.SetMemoryLimit(debug.SetMemoryLimit(loadMemory))
	}
	progress := a.newLoadProgress()
	// What comes after an interruption is not worth a bar, and what is said of it needs a clean terminal.
	stop := context.AfterFunc(ctx, progress.end)
	defer stop()
	made := 0
	show := func(e image.Event) {
		if e.Stage == image.StageDone && len(e.Warnings) == 0 {
			made++
		}
		progress.show(e)
	}
	var odd []string
	options := image.LoadOptions{Input: a.in, Platform: platform, Progress: show, Odd: func(name string) { odd = append(odd, name) }}
	loaded, err := image.Load(ctx, s, source, options)
	progress.end()
	a.noteOdd(odd)
	if err != nil {
		return goOnHint(ctx, err, made)
	}
	var b strings.Builder
	for _, l := range loaded {
		b.WriteString(l.String() + "\n")
	}
	return a.print(b.String())
}

// mostOdd bounds how many names are noted that an archive gives its images in vain.
const mostOdd = 10

// noteOdd notes names that are no references, and that their images therefore do not have.
func (a *app) noteOdd(names []string) {
	for _, name := range names[:min(len(names), mostOdd)] {
		a.note("warning: %.300q is no image reference: its image is loaded without that name; dmlayer image tag gives it another", name)
	}
	if more := len(names) - mostOdd; more > 0 {
		a.note("warning: %s more are none either", count(more, "name"))
	}
}

// goOnHint adds to what is hinted anyway what became of the layers that a load made before it failed: those of
// an archive that is to blame are gone again, all others stay.
func goOnHint(ctx context.Context, err error, made int) error {
	blame := errors.Is(err, errs.ErrInvalid) || errors.Is(err, errs.ErrDamaged) || errors.Is(err, errs.ErrUnsupported)
	if made == 0 || blame && ctx.Err() == nil && !errors.Is(err, errs.ErrNoSpace) {
		return err
	}
	hint := count(made, "layer") + " stayed: load again to go on from there, or give the space back with dmlayer prune"
	if other := hintOf(err, context.Cause(ctx)); other != "" {
		hint = other + "; " + hint
	}
	return errs.WithHint(err, hint)
}
