package cli

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/layer"
)

// stepRecord is a step of an image's history. Its fields are the CLI's promise.
type stepRecord struct {
	Layer     string     `json:"layer"` // "" for a step that left none, or not known which
	Created   *time.Time `json:"created"`
	CreatedBy string     `json:"createdBy"`
	Author    string     `json:"author"`
	Comment   string     `json:"comment"`
	Size      *int64     `json:"size"` // null where the layer is not known
	Empty     bool       `json:"empty"`
}

func newStepRecord(s image.Step) stepRecord {
	r := stepRecord{Layer: s.Layer, CreatedBy: s.CreatedBy, Author: s.Author, Comment: s.Comment, Empty: s.Empty}
	if !s.Created.IsZero() {
		r.Created = &s.Created
	}
	if s.Layer != "" || s.Empty {
		r.Size = &s.Size
	}
	return r
}

func (a *app) newImageHistory() *cobra.Command {
	var noTrunc bool
	cmd := &cobra.Command{
		Use:   "history REF",
		Short: "Show how an image was made",
		Long: `Shows the steps in which an image was made, as its configuration tells them, the newest first, each with
the layer that it left. Where the configuration tells another number of layers than there are, the layers come
first, and then the steps.`,
		Example:           "  dmlayer image history app:latest\n  dmlayer image history --no-trunc --format '{{.CreatedBy}}' app:latest",
		Args:              args(1, 1),
		ValidArgsFunction: a.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkRef(args[0]); err != nil {
				return err
			}
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				steps, err := image.History(ctx, s, args[0])
				if err != nil {
					return imageHint(err)
				}
				return a.printHistory(args[0], steps, noTrunc)
			})
		},
	}
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "print names and commands whole")
	return records(exitCodes(cmd, 3, 7, 8))
}

func (a *app) printHistory(ref string, steps []image.Step, whole bool) error {
	list := make([]stepRecord, len(steps))
	fits := true
	for i, s := range steps {
		list[i] = newStepRecord(s)
		fits = fits && (s.Layer != "" || s.Empty)
	}
	if !fits {
		a.note("%s: its configuration tells of another number of layers than it has: which step left which is not known", ref)
	}
	if a.flags.quiet {
		list = slices.DeleteFunc(list, func(r stepRecord) bool { return r.Layer == "" })
	}
	return printList(a, list, func(r stepRecord) string { return r.Layer }, a.stepColumns(whole))
}

func (a *app) stepColumns(whole bool) []column[stepRecord] {
	name, text := shortName, func(s string) string { return ellipsis(printable(s), 50) }
	if whole {
		name, text = func(s string) string { return s }, printable
	}
	return []column[stepRecord]{
		{"LAYER", func(r stepRecord) string { return orDash(name(r.Layer)) }},
		{"CREATED", func(r stepRecord) string { return a.ageOf(r.Created) }},
		{"CREATED BY", func(r stepRecord) string { return orDash(text(r.CreatedBy)) }},
		{"SIZE", func(r stepRecord) string { return humanSizeOr(r.Size, "-") }},
		{"COMMENT", func(r stepRecord) string { return orDash(text(r.Comment)) }},
	}
}

// ellipsis cuts a text to a number of characters.
func ellipsis(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}
