package pool

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
)

// SpaceStatus is the part of a Status about room: what is promised, what there is, and what happens when it ends. Sizes are
// bytes; nil is "not known now", or that there is no such limit.
type SpaceStatus struct {
	VirtualTotal    int64    `json:"virtualTotal"`    // what snapshots and volumes may come to take
	Overcommit      *float64 `json:"overcommit"`      // that, in percent of the data
	OvercommitLimit *int     `json:"overcommitLimit"` // percent above which no node is made
	MinFree         *int     `json:"minFree"`         // percent of data and of metadata below which no node is made
	TakesNodes      *bool    `json:"takesNodes"`      // whether a node can be made now

	GrowAt    *int   `json:"growAt"`    // percent in use at which data and metadata grow by themselves
	GrowBy    *int   `json:"growBy"`    // percent of their size
	GrowLimit *int64 `json:"growLimit"` // data does not grow beyond
	GrowHook  string `json:"growHook"`
	Served    *bool  `json:"served"` // whether somebody lives who would grow the pool

	// What the data and the metadata could be made to have now, and what is left below them, which nobody has promised
	// to the pool: on the file system of its files, in its volume group.
	DataMax     *int64 `json:"dataMax"`
	MetadataMax *int64 `json:"metadataMax"`
	HostFree    *int64 `json:"hostFree"`
	// DataAllocated is what the data file takes there; null where the data is no file.
	DataAllocated *int64 `json:"dataAllocated"`

	DiscardMode *string `json:"discardMode"` // what the kernel does with discards, whatever was asked for
	WhenFull    *string `json:"whenFull"`    // "error" or "queue": what a write gets that needs a block of a full pool

	// In how many seconds data and metadata are full if they fill as they did lately.
	DataFullIn     *int64 `json:"dataFullIn"`
	MetadataFullIn *int64 `json:"metadataFullIn"`
}

// describeSpace adds what the record says.
func (st *Status) describeSpace(r metadata.Pool, writable int64) {
	some := func(n int) *int {
		if n == 0 {
			return nil
		}
		return &n
	}
	st.VirtualTotal = writable
	st.OvercommitLimit, st.MinFree = some(r.Space.Overcommit), some(r.Space.MinFree)
	if st.GrowAt = some(r.Space.GrowAt); st.GrowAt != nil {
		st.GrowBy = some(r.Space.GrowBy)
	}
	if limit := r.Space.GrowLimit; limit > 0 {
		st.GrowLimit = &limit
	}
	st.GrowHook = r.Space.Hook
}

// lookBelow adds what the backing has left, where it can tell.
func (p *Pool) lookBelow(ctx context.Context, st *Status) {
	if served, err := p.Served(ctx); err == nil {
		st.Served = &served
	}
	if p.record.Backing.Type == BackingLoopback {
		var file unix.Stat_t
		if err := unix.Stat(p.files.data(), &file); err == nil {
			bytes := file.Blocks * 512
			st.DataAllocated = &bytes
		}
	}
	b, err := p.backing()
	if err != nil {
		return
	}
	room, err := b.room(ctx)
	if err != nil {
		p.log.Debug("look how much room the backing has", "error", err)
		return
	}
	st.DataMax, st.MetadataMax, st.HostFree = &room.DataMax, &room.MetadataMax, &room.Free
}

var discardModes = map[thinpool.DiscardMode]string{
	thinpool.DiscardPassdown: "passdown", thinpool.DiscardNoPassdown: "nopassdown", thinpool.DiscardIgnore: "ignore",
}

// measureSpace adds what only a running pool tells.
func (p *Pool) measureSpace(st *Status, r metadata.Pool, k thinpool.PoolStatus) {
	if mode, ok := discardModes[k.Discard]; ok {
		st.DiscardMode = &mode
	}
	whenFull := "queue"
	if k.ErrorIfNoSpace {
		whenFull = "error"
	}
	st.WhenFull = &whenFull
	if *st.DataTotal > 0 {
		percent := float64(st.VirtualTotal) * 100 / float64(*st.DataTotal)
		st.Overcommit = &percent
	}
	takes := k.Commits() && p.Admit(r.Space, k) == nil
	st.TakesNodes = &takes
	now := look{Time: time.Now().UTC(), Data: *st.DataUsed, Metadata: *st.MetadataUsed}
	before := p.looked(now)
	st.DataFullIn = fullIn(before, now, func(l look) int64 { return l.Data }, *st.DataTotal)
	st.MetadataFullIn = fullIn(before, now, func(l look) int64 { return l.Metadata }, *st.MetadataTotal)
}
