package pool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// Loss is what a node loses when damaged metadata is replaced by what could be saved of it.
type Loss struct {
	ID     metadata.ThinID
	Object string // `layer "base"`, "thin device 12"
	Node   string // "" for a thin device that no record names, and for the label
	Gone   bool   // nothing is left of it
	// Unproven says that it keeps what is likely its own, and may be another's: what led to it is lost.
	Unproven bool
	Blocks   uint64 // that it loses, as far as that can be told
	Of       uint64 // that it had; 0: cannot be told
	// Where says which of its blocks are lost or may be, as far as that is known: "blocks 252 to 503".
	Where string
}

// String is "layer "base": 3 of 17 blocks".
func (l Loss) String() string {
	switch {
	case l.Gone && l.Of == 0:
		return fmt.Sprintf("%s: all of it", l.Object)
	case l.Gone:
		return fmt.Sprintf("%s: all of it, %d blocks", l.Object, l.Of)
	case l.Unproven && l.Where == "":
		return l.Object + ": nothing, if what is found is its own, which is likely and cannot be proven"
	}
	said := fmt.Sprintf("%s: %d of %d blocks", l.Object, l.Blocks, l.Of)
	if l.Of == 0 {
		said = l.Object + ": some of it"
	}
	if l.Where != "" {
		said += ", in " + l.Where
	}
	return said
}

// mostRanges is how many ranges are named of those that a node loses.
const mostRanges = 3

// rangesOf names ranges of blocks.
func rangesOf(lost []thinmeta.Range) string {
	var words []string
	for _, r := range lost[:min(len(lost), mostRanges)] {
		switch {
		case r.First == r.Last:
			words = append(words, fmt.Sprint(r.First))
		case r.Last == math.MaxUint64:
			words = append(words, fmt.Sprintf("%d to the end", r.First))
		default:
			words = append(words, fmt.Sprintf("%d to %d", r.First, r.Last))
		}
	}
	if more := len(lost) - len(words); more > 0 {
		words = append(words, fmt.Sprintf("%d more ranges", more))
	}
	if len(words) == 0 {
		return ""
	}
	return "blocks " + strings.Join(words, ", ")
}

// compare says what would be lost: per thin device that the records or the old metadata name.
func (r *repairer) compare(ctx context.Context, repaired *thinmeta.Metadata) error {
	f, err := r.gather(ctx, false)
	if err != nil {
		return err
	}
	after, err := devicesOf(ctx, repaired)
	if err != nil {
		return err
	}
	if len(after) == 0 && len(f.nodes) > 0 {
		return errs.WithHint(fmt.Errorf("the repaired metadata has none of %d nodes: %w", len(f.nodes), errs.ErrDamaged),
			"put a copy of the metadata back that is as new as the records; "+r.metadataName()+" is as it was")
	}
	before, old := map[metadata.ThinID]thinmeta.Device{}, (*thinmeta.Metadata)(nil)
	file, err := os.Open(r.input)
	if err != nil {
		return err
	}
	defer file.Close()
	if old, err = thinmeta.Open(file, thinmeta.Options{}); err != nil {
		r.report.Unreadable = err.Error()
	} else if before, err = devicesOf(ctx, old); err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(union(f.nodes, before))) {
		loss, err := r.lossOf(ctx, id, old, repaired, before, after)
		if err != nil {
			return err
		}
		if id == labelID { // says itself whose it is
			loss.Unproven = false
		}
		if loss.Gone || loss.Blocks > 0 || loss.Where != "" || loss.Unproven {
			named := f.about(id, FoundNodeDamaged, "")
			if loss.Object, loss.Node = named.Object, named.Node; id == labelID {
				loss.Object = "the label of the pool"
			}
			r.report.Losses = append(r.report.Losses, loss)
		}
	}
	for id := range after {
		if _, was := before[id]; !was && old != nil && id != labelID {
			r.report.Appeared = append(r.report.Appeared, id)
		}
	}
	slices.Sort(r.report.Appeared)
	return nil
}

func union(nodes map[metadata.ThinID]metadata.Node, devices map[metadata.ThinID]thinmeta.Device) map[metadata.ThinID]bool {
	all := map[metadata.ThinID]bool{labelID: true}
	for id := range nodes {
		all[id] = true
	}
	for id := range devices {
		all[id] = true
	}
	return all
}

// devicesOf returns the thin devices of which anything can be read.
func devicesOf(ctx context.Context, m *thinmeta.Metadata) (map[metadata.ThinID]thinmeta.Device, error) {
	f := facts{thins: map[metadata.ThinID]thinmeta.Device{}}
	err := f.readThins(ctx, m)
	return f.thins, err
}

// lossOf says what a thin device loses. A repair of our own moves nothing, and has counted: thousands of snapshots need not be
// compared block by block.
func (r *repairer) lossOf(ctx context.Context, id metadata.ThinID, old, repaired *thinmeta.Metadata, before, after map[metadata.ThinID]thinmeta.Device) (Loss, error) {
	d, ours := r.devices[id]
	if !ours || d.Gone {
		return lossOf(ctx, id, old, repaired, before, after)
	}
	return lossIn(id, d), nil
}

// lossIn is the loss of a device that is still there. What the pool had counted may be wrong itself: it proves nothing whole, as there was something in each
// range that is lost.
func lossIn(id metadata.ThinID, d thinmeta.RepairedDevice) Loss {
	loss := Loss{ID: id, Where: rangesOf(d.Lost), Unproven: d.Unproven}
	if known := d.Had >= d.Mapped+uint64(len(d.Lost)); known && !d.Remade {
		loss.Of = d.Had
		if len(d.Lost) > 0 {
			loss.Blocks = d.Had - d.Mapped
		}
	}
	return loss
}

// lossOf compares what a thin device had with what is left of it. What the old metadata says of itself without being
// able to show it counts.
func lossOf(ctx context.Context, id metadata.ThinID, old, repaired *thinmeta.Metadata, before, after map[metadata.ThinID]thinmeta.Device) (Loss, error) {
	loss := Loss{ID: id}
	was, had := before[id]
	_, has := after[id]
	var oldRuns, newRuns []thinmeta.Mapping
	var lost []thinmeta.Range
	var err error
	if had {
		if oldRuns, lost, err = readableRuns(ctx, old, id); err != nil {
			return loss, err
		}
		loss.Of = max(was.MappedBlocks, length(oldRuns))
	}
	if loss.Gone = !has; loss.Gone {
		loss.Blocks = loss.Of
		return loss, nil
	}
	if newRuns, _, err = readableRuns(ctx, repaired, id); err != nil {
		return loss, err
	}
	if kept := length(newRuns) - different(oldRuns, newRuns); loss.Of > kept {
		loss.Blocks = loss.Of - kept
	} else if len(lost) > 0 { // the count that says nothing of them is wrong
		loss.Of, loss.Where = 0, rangesOf(lost)
	}
	return loss, nil
}

// readableRuns returns what can be read of a device's mappings, and the ranges in which something cannot.
func readableRuns(ctx context.Context, m *thinmeta.Metadata, id metadata.ThinID) (runs []thinmeta.Mapping, lost []thinmeta.Range, err error) {
	for run, err := range m.Mappings(ctx, uint64(id)) {
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		if d := (*thinmeta.Damage)(nil); errors.As(err, &d) {
			lost = append(lost, thinmeta.Range{First: d.First, Last: d.Last})
		} else if err == nil {
			runs = append(runs, run)
		}
	}
	return runs, lost, nil
}

func length(runs []thinmeta.Mapping) (n uint64) {
	for _, r := range runs {
		n += r.Length
	}
	return n
}

// different is how many blocks of the new runs, which are in order as the old ones are, lie elsewhere on the data device than
// the old ones say.
func different(old, new []thinmeta.Mapping) (n uint64) {
	for _, r := range new {
		i, _ := slices.BinarySearchFunc(old, r.Begin, func(o thinmeta.Mapping, at uint64) int {
			if o.End() <= at {
				return -1
			}
			return 1
		})
		for ; i < len(old) && old[i].Begin < r.End(); i++ {
			o := old[i]
			from, to := max(o.Begin, r.Begin), min(o.End(), r.End())
			if o.Data-o.Begin != r.Data-r.Begin {
				n += to - from
			}
		}
	}
	return n
}
