package cli

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/layer"
)

func (a *app) newImageLs() *cobra.Command {
	var filters []string
	var noTrunc bool
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List images",
		Long: `Lists images by their references, an image with several once for each, and one without any by its id.

Filters, which all must fit, except that of references only one must:
  reference=GLOB           the reference, or it without its tag; a star stops at a slash
  dangling=true|false      without any reference, or with one
  label=KEY[=VALUE]        of the image's configuration; label!= for those without
  before=REF, since=REF    created before or after another image
  until=TIME               created before a time, such as 2026-01-31, 2026-01-31T15:00:00, or 24h for a day ago`,
		Example: `  dmlayer image ls
  dmlayer image ls --filter reference='example.com/*/app:*'
  dmlayer image ls -q --filter dangling=true
  dmlayer image ls --format '{{.Ref}} {{size .Size}}'`,
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := parseImageFilters(filters, a.now(), "reference", "dangling", "label", "label!", "before", "since", "until")
			if err != nil {
				return err
			}
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				images, err := image.Select(ctx, s, filter)
				if err != nil {
					return imageHint(err)
				}
				list := make([]imageRecord, len(images))
				for i := range images {
					list[i] = newImageRecord(images[i])
				}
				return printList(a, list, imageRecord.name, a.imageColumns(noTrunc))
			})
		},
	}
	cmd.Flags().StringArrayVar(&filters, "filter", nil, "`key=value`, see above; repeatable")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "print ids whole")
	return records(exitCodes(cmd, 3, 7, 8))
}

func (a *app) imageColumns(whole bool) []column[imageRecord] {
	short := shortID
	if whole {
		short = func(id string) string { return id }
	}
	return []column[imageRecord]{
		{"REF", func(r imageRecord) string { return orDash(r.Ref) }},
		{"ID", func(r imageRecord) string { return short(r.ID) }},
		{"LAYERS", func(r imageRecord) string { return strconv.Itoa(len(r.Layers)) }},
		{"SIZE", func(r imageRecord) string { return humanSize(r.Size) }},
		{"CREATED", func(r imageRecord) string { return a.ageOf(r.Created) }},
	}
}
