package cli

import (
	"fmt"

	"github.com/dmlayer/dmlayer/pool"
)

const (
	// soon is when doctor warns of a pool that will be full.
	soon = 24 * 3600
	// leastMetadataPercent of metadata are free where nothing need be said: a pool without any cannot even delete.
	leastMetadataPercent = 25
)

// checkPoolSpace is what can be said of a pool's room, each with what to do about it. What is as it should be is not mentioned.
func checkPoolSpace(name string, p pool.Status) []checkRecord {
	var found []checkRecord
	warn := func(what, detail, advice string, args ...any) {
		found = append(found, checkRecord{"pool " + name + ": " + what, checkWarn, detail, fmt.Sprintf(advice, args...)})
	}
	if p.TakesNodes != nil && !*p.TakesNodes && p.State == pool.StateActive {
		warn("new nodes", "refused: "+minFreeOf(p), "make the pool larger (dmlayer pool extend), or remove nodes (dmlayer rm, dmlayer prune)")
	}
	if p.DataFullIn != nil && *p.DataFullIn < soon || p.MetadataFullIn != nil && *p.MetadataFullIn < soon {
		warn("rate", presentRate(p), "make it larger (dmlayer pool extend), or see what fills it: dmlayer ls --sort exclusive")
	}
	if p.MetadataUsed != nil && p.MetadataTotal != nil && (*p.MetadataTotal-*p.MetadataUsed)*100 < *p.MetadataTotal*leastMetadataPercent {
		warn("metadata", used(p.MetadataUsed, p.MetadataTotal)+" used: scattered small writes to snapshots need up to 4 KiB of it each",
			"dmlayer pool extend --metadata SIZE %s", name)
	}
	if p.GrowAt != nil && p.Served != nil && !*p.Served {
		warn("growth", fmt.Sprintf("it is to grow at %d%%, and nobody is there to do it", *p.GrowAt), "run dmlayer serve --pool %s (systemctl enable --now dmlayer)", name)
	}
	if p.GrowAt != nil && p.DataMax != nil && p.DataTotal != nil && *p.DataMax <= *p.DataTotal {
		warn("growth", "there is nothing left to grow into", "make room below the pool, or switch growth off: dmlayer pool set --grow-at none %s", name)
	}
	checkOvercommit(p, warn)
	checkHost(p, warn)
	checkKept(p, warn)
	if p.DiscardMode != nil && *p.DiscardMode != p.Discard {
		warn("discards", fmt.Sprintf("%s, though %s was asked for: the device below takes none, or none as large as a block of the pool",
			*p.DiscardMode, p.Discard), "what is removed is free for the pool, not for what it lies on")
	}
	if p.Backing == pool.BackingLoopback {
		warn("backing", "it lies on files", "for production make pools on a volume group (dmlayer pool create --vg) or on disks (--device)")
	}
	return found
}

func minFreeOf(p pool.Status) string {
	if p.MinFree == nil {
		return "no block is free"
	}
	return fmt.Sprintf("less than %d%% of data or metadata are free", *p.MinFree)
}

// checkOvercommit tells of a pool that is promised to more than it can give: with neither growth nor a ceiling, nothing but luck keeps it
// from being full.
func checkOvercommit(p pool.Status, warn func(what, detail, advice string, args ...any)) {
	if p.Overcommit == nil || *p.Overcommit <= 100 || p.OvercommitLimit != nil {
		return
	}
	if p.DataMax != nil && p.GrowAt != nil && p.Served != nil && *p.Served && *p.DataMax >= p.VirtualTotal {
		return
	}
	warn("over-commitment", fmt.Sprintf("snapshots and volumes could come to take %s, %.0f%% of the data", humanSize(p.VirtualTotal), *p.Overcommit),
		"watch it, let it grow (dmlayer serve), or set a ceiling: dmlayer pool set --overcommit PERCENT %s", p.Name)
}

// Of how much more than is in use a data file may take doctor says nothing: so many bytes, and such a part of what is in use, in percent.
const (
	keptLeast = 64 << 20
	keptPart  = 20
)

// checkKept tells of a data file that takes much more than is in use: nodes that came and went have left it there.
func checkKept(p pool.Status, warn func(what, detail, advice string, args ...any)) {
	if p.DataAllocated == nil || p.DataUsed == nil {
		return
	}
	kept := *p.DataAllocated - *p.DataUsed
	if kept <= max(keptLeast, *p.DataUsed/100*keptPart) {
		return
	}
	warn("kept", fmt.Sprintf("its data file takes %s more than is in use", humanSize(kept)), "dmlayer pool trim %s gives that back; dmlayer serve does by itself", p.Name)
}

// checkHost tells of a host that cannot give what a sparse data file was promised.
func checkHost(p pool.Status, warn func(what, detail, advice string, args ...any)) {
	if p.Backing != pool.BackingLoopback || p.HostFree == nil || p.DataTotal == nil || p.DataUsed == nil {
		return
	}
	promised := *p.DataTotal - *p.DataUsed
	switch {
	case *p.HostFree < leastFree:
		warn("host", humanSize(*p.HostFree)+" free below its files: writers get errors when that is gone, and the pool may need a check", "free space on the file system of the root directory")
	case *p.HostFree < promised:
		warn("host", fmt.Sprintf("its data file may take %s more, and %s are free", humanSize(promised), humanSize(*p.HostFree)),
			"free space on the file system of the root directory, or keep less in the pool")
	}
}
