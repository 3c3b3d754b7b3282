package pool

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
)

// ids returns all thin ids that any place knows of.
func (f *facts) ids() []metadata.ThinID {
	all := map[metadata.ThinID]bool{}
	for _, ids := range []iter.Seq[metadata.ThinID]{
		maps.Keys(f.nodes), maps.Keys(f.tombs), maps.Keys(f.thins), maps.Keys(f.devices), maps.Keys(f.claims), maps.Keys(f.marks), maps.Keys(f.sides),
	} {
		for id := range ids {
			all[id] = true
		}
	}
	for _, l := range f.links {
		all[f.linkID(l)] = true
	}
	delete(all, labelID)
	return slices.Sorted(maps.Keys(all))
}

// compare returns what does not agree about an id.
func (f *facts) compare(id metadata.ThinID) []Finding {
	var list []Finding
	switch _, named := f.nodes[id]; {
	case f.unsettled(id) && (named || f.removed(id)):
		return []Finding{f.about(id, FoundChange, "its mark was left")}
	case named:
		list = f.compareNode(id)
	case f.removed(id):
		list = f.compareRemoved(id)
	default:
		list = f.compareUnnamed(id)
	}
	for _, l := range f.links {
		if f.linkID(l) == id && (f.names[l.name] != id || l.id != id) {
			list = append(list, f.about(id, FoundLinkOrphan, "link %s", l.name))
		}
	}
	return list
}

// unsettled tells whether a mark was left of somebody who died. Whoever looks at a node leaves one too, for as long as he has its
// device open.
func (f *facts) unsettled(id metadata.ThinID) bool {
	d, active := f.devices[id]
	return f.marks[id] && (!active || d.Suspended || !d.Active || d.OpenCount == 0 && len(f.claims[id]) == 0)
}

func (f *facts) removed(id metadata.ThinID) bool {
	_, tomb := f.tombs[id]
	return tomb
}

// compareRemoved is compare for an id with a tombstone, which goes with the next write once nothing else is left.
func (f *facts) compareRemoved(id metadata.ThinID) []Finding {
	left := f.traces(id)
	if left == "" {
		return nil
	}
	return []Finding{f.about(id, FoundRemoval, "%q, removed %s: %s", f.tombs[id].Name, f.tombs[id].Since.UTC().Format(time.DateTime), left)}
}

// linkID is the id under whose lock a link is made and removed.
func (f *facts) linkID(l linkFacts) metadata.ThinID { return cmp.Or(l.id, f.names[l.name]) }

// about makes a finding about an id.
func (f *facts) about(id metadata.ThinID, code, format string, args ...any) Finding {
	n := uint64(id)
	object, name := fmt.Sprintf("thin device %d", id), ""
	if node, ok := f.nodes[id]; ok && node.Kind == metadata.KindTemplate {
		object = fmt.Sprintf("template %s (thin device %d)", node.Name, id)
	} else if ok {
		object, name = fmt.Sprintf("%s %q", node.Kind, node.Name), node.Name
	}
	finding := NewFinding(code, object, format, args...)
	finding.Node, finding.ThinID = name, &n
	return finding
}

func (f *facts) compareNode(id metadata.ThinID) (list []Finding) {
	n := f.nodes[id]
	_, there := f.thins[id]
	switch missing := !there && f.thinsKnown && !f.thinsSomeOf; {
	case SetAside(n): // nobody misses it
	case missing:
		list = append(list, f.missing(n))
	case n.Lost != nil:
		list = append(list, f.about(id, FoundNodeLoss, "%s, in the repair of %s", n.Lost, n.Lost.Since.UTC().Format(time.DateTime)))
	}
	if id >= f.record.HighID {
		list = append(list, f.about(id, FoundAboveWindow, "thin id %d, and ids below %d were handed out", id, f.record.HighID))
	}
	d, active := f.devices[id]
	switch {
	case active && f.running:
		list = append(list, f.compareDevice(id, d)...)
	case !active && len(f.claims[id]) > 0:
		list = append(list, f.about(id, FoundClaimIdle, "it is %s", f.claims[id][0]))
	}
	return list
}

// missing is about a node that the pool does not have. Of a template nothing is lost: another one is made when it is needed.
func (f *facts) missing(n metadata.Node) Finding {
	g := f.about(n.ID, FoundNodeMissing, "the pool has no thin device %d", n.ID)
	if n.Kind == metadata.KindTemplate {
		g.Class, g.Do = NeedsRepair, ""
	}
	return g
}

// compareDevice compares an active device with its node.
func (f *facts) compareDevice(id metadata.ThinID, d deviceFacts) (list []Finding) {
	n := f.nodes[id]
	if d.Suspended || !d.Active {
		return []Finding{f.about(id, FoundDeviceSuspended, "%s", d.Name)}
	}
	want := thinpool.ThinTable{Pool: f.pool, ID: thinpool.ID(id)}
	size := devmapper.SectorsOf(uint64(n.Size))
	switch {
	case d.bad != nil:
		list = append(list, f.about(id, FoundDeviceWrong, "%s: %v", d.Name, d.bad))
	case d.table.Pool != want.Pool || d.table.ID != want.ID || d.table.Origin != nil:
		list = append(list, f.about(id, FoundDeviceWrong, "%s has the table %q, and should have %q", d.Name, d.table, want))
	case d.size > size:
		list = append(list, f.about(id, FoundDeviceWrong, "%s has %d bytes, and should have %d", d.Name, d.size.Bytes(), n.Size))
	case d.size < size && !d.ReadOnly:
		list = append(list, f.about(id, FoundDeviceSize, "%s has %d bytes of %d", d.Name, d.size.Bytes(), n.Size))
	}
	if n.Kind == metadata.KindLayer && !d.ReadOnly {
		list = append(list, f.about(id, FoundLayerWritable, "%s%s", d.Name, f.usedBy(d)))
	}
	if d.OpenCount == 0 && len(f.claims[id]) == 0 && !d.DeferredRemove {
		list = append(list, f.about(id, FoundDeviceUnused, "%s", d.Name))
	}
	return append(list, f.compareMounts(id, d)...)
}

func (f *facts) compareMounts(id metadata.ThinID, d deviceFacts) []Finding {
	if d.ReadOnly {
		return nil
	}
	for _, m := range f.mounts[d.Dev] {
		if fsutil.StoppedByErrors(m) {
			return []Finding{f.about(id, FoundMountReadOnly, "mounted on %s", m.Dir)}
		}
	}
	return nil
}

// compareUnnamed is compare for an id that no record names.
func (f *facts) compareUnnamed(id metadata.ThinID) (list []Finding) {
	_, thin := f.thins[id]
	d, active := f.devices[id]
	if inWindow := id >= f.record.LowID && id < f.record.HighID; inWindow && (thin || active || f.sides[id]) {
		return []Finding{f.about(id, FoundInFlight, "%s", f.traces(id))}
	}
	if f.unsettled(id) {
		return []Finding{f.about(id, FoundChange, "its mark was left")}
	}
	if thin {
		list = append(list, f.about(id, FoundOrphan, "%d blocks of %d bytes, made at transaction %#x", f.thins[id].MappedBlocks, f.record.BlockSize, f.thins[id].TransactionID))
		list[0].Loses = true
	}
	if active && f.running {
		list = append(list, f.about(id, FoundDeviceOrphan, "%s%s", d.Name, f.usedBy(d)))
	}
	if len(f.claims[id]) > 0 {
		list = append(list, f.about(id, FoundClaimOrphan, "%s", f.claims[id][0]))
	}
	if f.sides[id] {
		side := f.about(id, FoundSideOrphan, "folder %d", id)
		side.Loses = true
		list = append(list, side)
	}
	return list
}

// traces says what there is of an id that no node has, "" for nothing.
func (f *facts) traces(id metadata.ThinID) string {
	text := ""
	add := func(what string) {
		if text != "" {
			text += ", "
		}
		text += what
	}
	if _, ok := f.thins[id]; ok {
		add("in the pool")
	}
	if _, ok := f.devices[id]; ok {
		add("active")
	}
	if f.sides[id] {
		add("side files")
	}
	return text
}

// usedBy says who uses a device, for behind its name.
func (f *facts) usedBy(d deviceFacts) string {
	if mounts := f.mounts[d.Dev]; len(mounts) > 0 {
		return ", mounted on " + mounts[0].Dir
	}
	if d.OpenCount > 0 {
		return ", open"
	}
	return ""
}

// lost are links and files of no thin id at all, under whose lock they could be looked at.
func (f *facts) lost() []Finding {
	list := slices.Concat(f.others, f.strays)
	for _, l := range f.links {
		if f.linkID(l) == 0 {
			dangling := NewFinding(FoundLinkOrphan, "link "+l.name, "it leads nowhere, and no node has its name")
			dangling.Class = Harmless
			list = append(list, dangling)
		}
	}
	if !f.running && len(f.devices) > 0 {
		list = append(list, NewFinding(FoundDeviceLeft, fmt.Sprintf("%d thin devices", len(f.devices)), "the pool itself is not active"))
	}
	return list
}
