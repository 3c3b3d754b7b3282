package cli

import (
	"cmp"
	"encoding/json"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/image"
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
		Use:   "image COMMAND",
		Short: "Load, list, name and remove images",
		Long: `Images are stacks of layers with a configuration, and references are names for them. Layers that images
share are kept once.`,
		Example: "  dmlayer image load app.tar\n  dmlayer image ls",
		GroupID: groupImages,
		Args:    noSubcommand,
		RunE:    missingSubcommand,
	}
	cmd.AddCommand(
		a.newImageLoad(), a.newImageLs(), a.newImageInspect(), a.newImageTag(), a.newImageRm(), a.newImageHistory(),
		a.newImageTree(), a.newImagePrune(),
	)
	return exitCodes(cmd)
}

// shortID cuts a digest to what a person can tell apart.
func shortID(id string) string {
	const start, digits = len("sha256:"), 12
	if len(id) > start+digits && id[:start] == "sha256:" {
		return id[start : start+digits]
	}
	return id
}

// printable replaces what would move a terminal's cursor: strangers wrote the configurations of images.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
}
