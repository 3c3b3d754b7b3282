package cli

import (
	"fmt"
	"time"

	"github.com/dmlayer/dmlayer/pool"
)

// spaceFields are the lines of pool status about room.
func spaceFields(p pool.Status) []field {
	fields := []field{
		{"Could be written", couldBeWritten(p)},
		{"New nodes", newNodes(p)},
		{"Growth", growthOf(p)},
		{"Below the pool", belowPool(p)},
		{"Discards", discardsOf(p)},
		{"When full", whenFull(p)},
	}
	if p.DataFullIn != nil || p.MetadataFullIn != nil {
		fields = append(fields, field{"At the present rate", presentRate(p)})
	}
	return fields
}

// couldBeWritten says what snapshots and volumes could come to take.
func couldBeWritten(p pool.Status) string {
	text := humanSize(p.VirtualTotal)
	if p.Overcommit != nil {
		text += fmt.Sprintf(", %.0f%% of the data", *p.Overcommit)
	}
	if p.OvercommitLimit != nil {
		text += fmt.Sprintf("; the ceiling is %d%%", *p.OvercommitLimit)
	}
	return text
}

func newNodes(p pool.Status) string {
	text := "as long as there is a free block"
	if p.MinFree != nil {
		text = fmt.Sprintf("as long as %d%% of data and metadata are free", *p.MinFree)
	}
	if p.TakesNodes != nil && !*p.TakesNodes {
		text = "none now: " + text
	}
	return text
}

func growthOf(p pool.Status) string {
	if p.GrowAt == nil {
		return "not by itself"
	}
	text := fmt.Sprintf("at %d%%", *p.GrowAt)
	if p.GrowBy != nil {
		text += fmt.Sprintf(", by %d%%", *p.GrowBy)
	}
	if p.GrowLimit != nil {
		text += ", up to " + humanSize(*p.GrowLimit)
	}
	if p.Served != nil && !*p.Served {
		text += ", while dmlayer serve runs, which it does not"
	}
	return text
}

func belowPool(p pool.Status) string {
	if p.HostFree == nil {
		return "not known"
	}
	text := humanSize(*p.HostFree) + " free"
	if p.DataAllocated != nil {
		text += "; the data file takes " + humanSize(*p.DataAllocated)
	}
	if p.DataMax != nil && p.MetadataMax != nil {
		text += fmt.Sprintf("; data could have %s, metadata %s", humanSize(*p.DataMax), humanSize(*p.MetadataMax))
	}
	return text
}

func discardsOf(p pool.Status) string {
	if p.DiscardMode == nil {
		return p.Discard
	}
	if *p.DiscardMode != p.Discard {
		return fmt.Sprintf("%s, and not %s as was asked for: the device below cannot", *p.DiscardMode, p.Discard)
	}
	return *p.DiscardMode
}

func whenFull(p pool.Status) string {
	switch {
	case p.WhenFull == nil:
		return "not known while the pool is not active"
	case *p.WhenFull == "queue":
		return "writers wait, as the pool is about to grow"
	}
	return "writers get errors"
}

func presentRate(p pool.Status) string {
	part := func(seconds *int64) string {
		if seconds == nil {
			return "not in sight"
		}
		return "in " + roughly(*seconds)
	}
	return "data is full " + part(p.DataFullIn) + ", metadata " + part(p.MetadataFullIn)
}

// roughly says a time as exactly as such a guess is.
func roughly(seconds int64) string {
	d := time.Duration(seconds) * time.Second
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%d seconds", seconds)
	case d < 2*time.Hour:
		return fmt.Sprintf("%d minutes", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d hours", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}
