package pool

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// FindingClass says what a finding asks for.
type FindingClass string

// The classes, the worst last.
const (
	Harmless     FindingClass = "harmless"
	MendedOnOpen FindingClass = "mended-on-open" // by the next command that uses the pool, or the next use of the node
	NeedsRepair  FindingClass = "needs-repair"   // pool check --repair mends it
	NeedsPerson  FindingClass = "needs-person"
)

// The codes of findings. They stay the same from version to version; docs/recovery.md has them all.
const (
	FoundRecordsUnreadable = "records-unreadable"
	FoundRecordsPages      = "records-pages"
	FoundRecordsRecord     = "records-record"
	FoundRecordsIndex      = "records-index"
	FoundRecordsParent     = "records-parent"
	FoundRecordsDocument   = "records-document"

	FoundPairing       = "pairing"
	FoundPairingBehind = "pairing-behind"
	FoundElsewhere     = "pool-elsewhere"
	FoundPoolSuspended = "pool-suspended"
	FoundNeedsCheck    = "needs-check"
	FoundReadOnly      = "read-only"
	FoundFailed        = "failed"
	FoundOutOfData     = "out-of-data-space"
	FoundStartDied     = "start-unfinished"
	FoundLabel         = "label"
	FoundLabelLost     = "label-lost"

	FoundMetadataUnreadable = "metadata-unreadable"
	FoundMetadataForeign    = "metadata-foreign"
	FoundMetadataDamaged    = "metadata-damaged"
	FoundMetadataLow        = "metadata-low"
	FoundMetadataLeak       = "metadata-leak"
	FoundMetadataStale      = "metadata-stale"
	FoundPrepared           = "metadata-unfinished"
	FoundNodeDamaged        = "node-damaged"

	FoundBackingMissing = "backing-missing"
	FoundBackingSize    = "backing-size"
	FoundBackingTwice   = "backing-twice"
	FoundBackingLeft    = "backing-left"
	FoundSpareMissing   = "spare-missing"

	FoundNodeMissing     = "node-missing"
	FoundNodeLoss        = "node-loss"
	FoundOrphan          = "orphan"
	FoundInFlight        = "in-flight"
	FoundAboveWindow     = "above-window"
	FoundRemoval         = "removal-unfinished"
	FoundChange          = "change-unfinished"
	FoundDeviceSuspended = "device-suspended"
	FoundDeviceUnused    = "device-unused"
	FoundDeviceOrphan    = "device-orphan"
	FoundDeviceSize      = "device-size"
	FoundDeviceWrong     = "device-wrong"
	FoundDeviceForeign   = "device-foreign"
	FoundDeviceLeft      = "device-left"
	FoundLayerWritable   = "layer-writable"
	FoundMountReadOnly   = "mount-read-only"
	FoundClaimOrphan     = "claim-orphan"
	FoundClaimIdle       = "claim-idle"
	FoundLinkOrphan      = "link-orphan"
	FoundSideOrphan      = "side-files-orphan"
	FoundSideMissing     = "side-files-missing"
	FoundImageRecord     = "image-record"
	FoundSnapshotRecord  = "snapshot-record"
)

// findingKind says of a code what it means and what to do.
type findingKind struct {
	class FindingClass
	means string
	do    string
}

const doImport = "move records.db out of the pool's folder, then dmlayer pool import of the folder: it puts the newest copy in its place"

var findingKinds = map[string]findingKind{
	FoundRecordsUnreadable: {NeedsPerson, "the record store cannot be read", doImport},
	FoundRecordsPages:      {NeedsPerson, "pages of the record store are damaged", doImport},
	FoundRecordsRecord:     {NeedsPerson, "a record cannot be read, or makes no sense", doImport},
	FoundRecordsIndex:      {NeedsRepair, "an index of the record store does not agree with the records", ""},
	FoundRecordsParent:     {NeedsPerson, "a node's parent is not recorded", doImport},
	FoundRecordsDocument:   {NeedsPerson, "an image's record names a layer that is not recorded", doImport},

	FoundPairing:       {NeedsPerson, "the record store and the pool are not of the same time", "put back the other one of the same time, or see what dmlayer pool import says"},
	FoundPairingBehind: {MendedOnOpen, "the pool is one transaction behind its records: a process died in between", ""},
	FoundElsewhere:     {NeedsPerson, "the pool that runs lies on other files than this folder's: one is a copy of the other", "stop that pool and take the copy away"},
	FoundPoolSuspended: {NeedsPerson, "a device of the pool itself is suspended: all that uses the pool hangs", "dmsetup resume, if nobody is changing it right now"},
	FoundNeedsCheck:    {NeedsRepair, "the kernel could not write the pool's metadata once, and writes none before it was checked", ""},
	FoundReadOnly:      {NeedsRepair, "the kernel writes no metadata: it was full, or could not be written", ""},
	FoundFailed:        {NeedsRepair, "the kernel cannot read the pool's metadata, and does no I/O", ""},
	FoundOutOfData:     {Harmless, "the pool has no free block: writes that need one fail", "dmlayer pool extend, dmlayer rm, dmlayer prune, dmlayer trim"},
	FoundStartDied:     {MendedOnOpen, "a process died while it started the pool", ""},
	FoundLabel:         {NeedsPerson, "the label, which says that data and metadata belong together, is missing, damaged or another pool's", "put back the file that was mixed up"},

	FoundLabelLost: {NeedsRepair, "the metadata does not say any more where the label is: a repair makes it again", ""},

	FoundMetadataUnreadable: {NeedsRepair, "the pool's metadata cannot be read as such", ""},
	FoundMetadataForeign:    {NeedsPerson, "the metadata is that of another pool", "put back the pool's own"},
	FoundMetadataDamaged:    {NeedsRepair, "a part of the pool's metadata is damaged: what it says of some blocks is lost", ""},
	FoundMetadataLow:        {NeedsPerson, "there is too little free metadata to look at it while the pool runs", "dmlayer rm or dmlayer prune, or dmlayer pool stop and check again"},
	FoundMetadataLeak:       {Harmless, "blocks are in use for nothing: space is lost, no data", ""},
	FoundMetadataStale:      {Harmless, "a number that nothing depends on is wrong", ""},
	FoundPrepared:           {MendedOnOpen, "the metadata was renewed or repaired, and a process died before it was in its place", ""},
	FoundNodeDamaged:        {NeedsRepair, "a part of the node cannot be read any more, and a repair will lose it", ""},

	FoundBackingMissing: {NeedsPerson, "a file that the pool lies on is not there", "put it back; without it the content is lost"},
	FoundBackingSize:    {NeedsPerson, "a file that the pool lies on is shorter than it was made", "put back the whole file"},
	FoundBackingTwice:   {NeedsPerson, "a file of the pool is attached to two loop devices, which know nothing of each other", "losetup -d of the one that the pool does not use"},
	FoundBackingLeft:    {MendedOnOpen, "a file of the pool is attached to a loop device, and the pool does not run", ""},
	FoundSpareMissing:   {Harmless, "the spare for the metadata is not there: a repair needs that much room", "dmlayer pool check --repair makes it"},

	FoundNodeMissing:     {NeedsPerson, "the node is recorded, and the pool does not have it: what was in it is lost", "dmlayer rm; of an image's layer, dmlayer image rm, and load it again"},
	FoundNodeLoss:        {NeedsPerson, "a repair of the metadata has lost blocks of the node, which read as zeros", "make or load it anew after dmlayer rm or dmlayer image rm; dmlayer mount --trust takes a snapshot or volume as it is"},
	FoundOrphan:          {NeedsPerson, "the pool has a thin device that no record names; nothing deletes it by itself", "dmlayer pool check --repair with --adopt ID=NAME makes it a snapshot of that name, with --delete-orphan ID deletes it"},
	FoundInFlight:        {MendedOnOpen, "a process died while it made a node", ""},
	FoundAboveWindow:     {NeedsPerson, "a record names a thin id that was never handed out: the records are of two times", doImport},
	FoundRemoval:         {MendedOnOpen, "a node was removed, and its thin device is still to be deleted", ""},
	FoundChange:          {MendedOnOpen, "a process died while it activated, suspended or unmounted a node", ""},
	FoundDeviceSuspended: {NeedsRepair, "a node's device is suspended, and nobody is at work on it: whoever uses it hangs", ""},
	FoundDeviceUnused:    {Harmless, "a node is active, and nobody uses it or claims it: it was unmounted by other means than dmlayer unmount", "nothing: the next mount or attach takes the device, dmlayer pool check --repair takes it away"},
	FoundDeviceOrphan:    {NeedsRepair, "a device of the pool is active that belongs to no node", ""},
	FoundDeviceSize:      {MendedOnOpen, "a node's device is smaller than its record says: a growth was cut short, and the next mount finishes it", ""},
	FoundDeviceWrong:     {NeedsPerson, "a node's device is not what the record says: of another size, pool or thin id", "end what uses it, and unmount or detach it"},
	FoundDeviceForeign:   {NeedsPerson, "somebody else has made a device on the pool: two devices of one thin id destroy each other's data", "take it away (dmsetup remove)"},
	FoundDeviceLeft:      {MendedOnOpen, "devices of the pool are there, and it does not run", ""},
	FoundLayerWritable:   {NeedsRepair, "a layer is active for writing, and layers do not change", ""},
	FoundMountReadOnly:   {NeedsPerson, "the kernel stopped writing to a mounted file system after an error", "dmlayer unmount, dmlayer fsck, and mount it again"},
	FoundClaimOrphan:     {NeedsRepair, "a claim on a node that is no more", ""},
	FoundClaimIdle:       {Harmless, "a node is attached and has no device: attach was interrupted", "dmlayer attach again, or dmlayer detach"},
	FoundLinkOrphan:      {NeedsRepair, "a link in the run directory leads to no device of the node", ""},
	FoundSideOrphan:      {NeedsRepair, "side files of a node that is no more", ""},
	FoundSideMissing:     {NeedsPerson, "a layer has lost the side file with which its tar is made again", "load the image again after dmlayer image rm, if its tar is needed"},
	FoundImageRecord:     {NeedsPerson, "an image's record cannot be read, or names what is not there", "dmlayer image rm, and load it again"},
	FoundSnapshotRecord:  {NeedsPerson, "the record of a snapshot of containerd's cannot be read", "remove the container or image of containerd that it is of, or ctr snapshots rm"},
}

// Finding is one thing that is not as it should be.
type Finding struct {
	Code   string       `json:"code"`
	Class  FindingClass `json:"class"`
	Object string       `json:"object"` // for people: `layer "base"`, "thin device 12", a path
	Node   string       `json:"node"`   // name of the node that it is about, "" for none
	ThinID *uint64      `json:"thinId"` // of the thin device that it is about
	Means  string       `json:"means"`
	Detail string       `json:"detail"` // what was seen
	Do     string       `json:"do"`     // "" where the class says it all
	Loses  bool         `json:"loses"`  // mending it deletes data
}

// NewFinding makes a finding of a code that is known.
func NewFinding(code, object, format string, args ...any) Finding {
	k := findingKinds[code]
	return Finding{Code: code, Class: k.class, Object: object, Means: k.means, Do: k.do, Detail: fmt.Sprintf(format, args...)}
}

// same tells whether two looks found the same.
func (f Finding) same(g Finding) bool { return f.Code == g.Code && f.Object == g.Object }

// CheckReport is what Check found.
type CheckReport struct {
	Pool     string    `json:"pool"`
	UUID     string    `json:"uuid"`
	State    string    `json:"state"` // as of Status; "" where it cannot be told
	Nodes    int       `json:"nodes"`
	Thins    int       `json:"thinDevices"`
	Findings []Finding `json:"findings"`
	// Busy is how many objects did not agree and were left alone, because somebody is at work on them.
	Busy int `json:"busy"`
	// Unchecked says what was not looked at, and why.
	Unchecked []string `json:"unchecked"`
}

// Add puts findings in their order: the worst first.
func (r *CheckReport) Add(list ...Finding) {
	r.Findings = append(r.Findings, list...)
	rank := map[FindingClass]int{NeedsPerson: 0, NeedsRepair: 1, MendedOnOpen: 2, Harmless: 3}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(rank[a.Class], rank[b.Class]), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Object, b.Object))
	})
}

// Count is how many findings are of a class.
func (r CheckReport) Count(c FindingClass) (n int) {
	for _, f := range r.Findings {
		if f.Class == c {
			n++
		}
	}
	return n
}

// Has tells whether there is a finding of one of the codes.
func (r CheckReport) Has(codes ...string) bool {
	return slices.ContainsFunc(r.Findings, func(f Finding) bool { return slices.Contains(codes, f.Code) })
}

// MetadataDamaged tells whether the pool's metadata is to be repaired, for which RepairMetadata is there.
func (r CheckReport) MetadataDamaged() bool {
	return r.Has(FoundNeedsCheck, FoundReadOnly, FoundFailed, FoundMetadataUnreadable, FoundMetadataDamaged, FoundLabelLost)
}

// Err is ErrDamaged where something needs a repair or a person.
func (r CheckReport) Err() error {
	repair, person := r.Count(NeedsRepair), r.Count(NeedsPerson)
	if repair+person == 0 {
		return nil
	}
	err := fmt.Errorf("pool %q: %d findings need a repair, %d a person: %w", r.Pool, repair, person, errs.ErrDamaged)
	if repair > 0 {
		return errs.WithHint(err, "dmlayer pool check --repair "+r.Pool)
	}
	return errs.WithHint(err, "see docs/recovery.md for each of them")
}
