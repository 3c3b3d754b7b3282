package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/layer"
)

// imageRecord is an image as image ls prints it. Its fields are the CLI's promise.
type imageRecord struct {
	Ref     string     `json:"ref"`
	ID      string     `json:"id"`
	Layers  []string   `json:"layers"`
	Size    int64      `json:"size"`
	Created *time.Time `json:"created"`
}

func newImageRecord(i image.Image) imageRecord {
	r := imageRecord{Ref: i.Ref, ID: i.ID, Layers: make([]string, len(i.Layers)), Size: i.Size}
	for k, l := range i.Layers {
		r.Layers[k] = l.Name
	}
	if !i.Created.IsZero() {
		created := i.Created.UTC()
		r.Created = &created
	}
	return r
}

// name is what to call the image: an image without a reference has its id.
func (r imageRecord) name() string { return cmp.Or(r.Ref, r.ID) }

// imageDetails is an image as image inspect prints it: the record of ls and what does not fit a line.
type imageDetails struct {
	imageRecord
	Refs     []string        `json:"refs"`
	Platform string          `json:"platform"`
	Loaded   time.Time       `json:"loaded"`
	Config   json.RawMessage `json:"config"`
}

func newImageDetails(i image.Image) imageDetails {
	d := imageDetails{imageRecord: newImageRecord(i), Refs: i.Refs, Platform: i.Platform, Loaded: i.Loaded.UTC(), Config: i.Config}
	if d.Refs == nil {
		d.Refs = []string{}
	}
	return d
}

func (a *app) newImage() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "image COMMAND",
		Short:   "Load, list and remove images",
		Long:    "Images are names for stacks of layers. Layers that images share are kept once.",
		Example: "  dmlayer image load app.tar\n  dmlayer image ls",
		GroupID: groupImages,
		Args:    noSubcommand,
		RunE:    missingSubcommand,
	}
	cmd.AddCommand(a.newImageLoad(), a.newImageLs(), a.newImageInspect(), a.newImageRm())
	return exitCodes(cmd)
}

func (a *app) newImageLs() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List images",
		Long:    "Lists images by their references.",
		Example: "  dmlayer image ls\n  dmlayer image ls --format '{{.Ref}} {{size .Size}}'",
		Args:    args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				images, err := image.List(ctx, s)
				if err != nil {
					return err
				}
				list := make([]imageRecord, len(images))
				for i := range images {
					list[i] = newImageRecord(images[i])
				}
				return printList(a, list, imageRecord.name, a.imageColumns())
			})
		},
	}
	return records(exitCodes(cmd, 3, 7, 8))
}

func (a *app) imageColumns() []column[imageRecord] {
	return []column[imageRecord]{
		{"REF", func(r imageRecord) string { return orDash(r.Ref) }},
		{"ID", func(r imageRecord) string { return shortID(r.ID) }},
		{"LAYERS", func(r imageRecord) string { return strconv.Itoa(len(r.Layers)) }},
		{"SIZE", func(r imageRecord) string { return humanSize(r.Size) }},
		{"CREATED", func(r imageRecord) string { return a.ageOf(r.Created) }},
	}
}

func (a *app) newImageInspect() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "inspect REF",
		Short:   "Show an image as JSON",
		Long:    "Shows one image as one JSON object: what image ls --format json prints of it, and its configuration.",
		Example: "  dmlayer image inspect app:latest\n  dmlayer image inspect --format '{{json .Config}}' app:latest",
		Args:    args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkRef(args[0]); err != nil {
				return err
			}
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				i, err := image.Get(ctx, s, args[0])
				if err != nil {
					return imageHint(err)
				}
				d := newImageDetails(i)
				return printRecord(a, d, d.name(), true, []field{
					{"Reference", orDash(d.Ref)},
					{"ID", d.ID},
					{"References", orDash(strings.Join(d.Refs, ", "))},
					{"Platform", orDash(d.Platform)},
					{"Size", humanSize(d.Size)},
					{"Created", a.ageOf(d.Created)},
					{"Loaded", a.age(d.Loaded)},
					{"Layers", orDash(strings.Join(d.Layers, ", "))},
				})
			})
		},
	}
	return records(exitCodes(cmd, 3, 7, 8))
}

// shortID cuts a digest to what a person can tell apart.
func shortID(id string) string {
	const start, digits = len("sha256:"), 12
	if len(id) > start+digits && id[:start] == "sha256:" {
		return id[start : start+digits]
	}
	return id
}

func (a *app) newImageRm() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "rm REF...",
		Aliases: []string{"remove"},
		Short:   "Remove images",
		Long: `Removes references of images and the layers that nothing uses any more; layers that a snapshot
descends from stay. Prints each reference that is gone.`,
		Example: "  dmlayer image rm app:latest",
		Args:    args(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, ref := range args {
				if err := checkRef(ref); err != nil {
					return err
				}
			}
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				return forEach(ctx, args, func(ref string) error {
					removed, err := image.Remove(ctx, s, ref)
					for _, r := range removed {
						if err := a.println(cmp.Or(r.Ref, r.ID)); err != nil {
							return err
						}
					}
					return imageHint(err)
				})
			})
		},
	}
	return exitCodes(cmd, 3, 5, 7, 8)
}
