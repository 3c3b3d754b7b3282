package dmtest

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/dmlayer/dmlayer/devmapper"
)

// Pool is the metadata of a thin pool, which outlives the pool's device. Its
// methods play what happens to a pool in life.
type Pool struct {
	kernel    *Kernel
	dev       *device // the pool's device, the last one that there was
	blockSize uint64

	metadata            // as the pool's target sees it
	committed  metadata // as it is on disk
	failing    bool     // commits fail
	mode       string
	needsCheck bool

	usedMetadata, totalMetadata uint64
	usedData, totalData         uint64
}

type metadata struct {
	transactionID uint64
	time          uint32
	heldRoot      uint64
	thins         map[uint32]uint64 // id -> mapped sectors
}

func (m metadata) clone() metadata {
	m.thins = maps.Clone(m.thins)
	return m
}

// heldRoot is where the metadata snapshot always lies.
const heldRoot = 27

// Pool is the metadata on a device, nil where no pool was ever made on it.
func (k *Kernel) Pool(metadataDev devmapper.DevNum) *Pool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pools[metadataDev]
}

// Format wipes a metadata device: the next pool on it is a new one.
func (k *Kernel) Format(metadataDev devmapper.DevNum) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.pools, metadataDev)
}

// IDs are the thin ids that the pool has, sorted.
func (p *Pool) IDs() []uint32 {
	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	return slices.Sorted(maps.Keys(p.thins))
}

// Time is the number of snapshots ever made.
func (p *Pool) Time() uint32 {
	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	return p.time
}

// FailCommits makes the metadata device fail writes from now on. As in the
// kernel, the message that meets the failure succeeds all the same, what it
// did is lost, and the pool goes read-only with needs_check.
func (p *Pool) FailCommits() {
	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	p.failing = true
}

// Repair makes commits work again and does what an offline check does:
// needs_check is gone when the pool is next activated or resumed.
func (p *Pool) Repair() {
	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	p.failing, p.needsCheck, p.mode = false, false, "rw"
}

// Use sets how many blocks of data (of the pool's size) and metadata (of
// 4 KiB) are used. All data makes the pool go out_of_data_space, all metadata
// ro; fewer bring it back, as growing does. Every change of the mode is an
// event.
func (p *Pool) Use(data, meta uint64) {
	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	p.usedData, p.usedMetadata = data, meta
	p.adjustMode()
}

// SetMetadataSize sets the size of the metadata device in blocks of 4 KiB.
func (p *Pool) SetMetadataSize(blocks uint64) {
	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	p.totalMetadata = blocks
	p.adjustMode()
}

// Fail puts the pool into the mode in which the metadata cannot be read.
func (p *Pool) Fail() {
	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	p.setMode("Fail")
}

// Map sets how much of a thin device is mapped.
func (p *Pool) Map(id uint32, sectors devmapper.Sectors) {
	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	if _, ok := p.thins[id]; ok {
		p.thins[id] = uint64(sectors)
	}
}

func (p *Pool) adjustMode() {
	switch {
	case p.mode == "Fail" || p.needsCheck:
	case p.usedMetadata >= p.totalMetadata:
		p.setMode("ro")
	case p.usedData >= p.totalData && p.totalData > 0:
		p.setMode("out_of_data_space")
	default:
		p.setMode("rw")
	}
}

func (p *Pool) setMode(mode string) {
	if p.mode == mode {
		return
	}
	p.mode = mode
	if p.dev != nil {
		p.dev.eventNr++
		p.kernel.event()
	}
}

func (p *Pool) commit() {
	if p.failing {
		p.metadata = p.committed.clone()
		p.needsCheck = true
		p.setMode("ro")
		return
	}
	p.committed = p.metadata.clone()
}

func (p *Pool) reboot() {
	p.metadata, p.dev = p.committed.clone(), nil
	if p.mode == "Fail" {
		p.mode = "rw"
	}
}

// thinPool is the target.
type thinPool struct {
	*Pool
	line     devmapper.Target
	below    []devmapper.DevNum
	lowWater uint64
	features []string
}

var poolFeatures = []string{"skip_block_zeroing", "ignore_discard", "no_discard_passdown", "read_only", "error_if_no_space"}

func (k *Kernel) newThinPool(d *device, spec devmapper.Target, args []string, readOnly bool) (target, error) {
	if len(args) < 4 || readOnly {
		return nil, syscall.EINVAL
	}
	metaDev, err1 := devmapper.ParseDevNum(args[0])
	dataDev, err2 := devmapper.ParseDevNum(args[1])
	if err1 != nil || err2 != nil {
		return nil, syscall.ENODEV
	}
	blockSize, err1 := strconv.ParseUint(args[2], 10, 32)
	lowWater, err2 := strconv.ParseUint(args[3], 10, 64)
	features, ok := parseFeatures(args[4:])
	if err1 != nil || err2 != nil || !ok || metaDev == dataDev || blockSize < 128 || blockSize > 2097152 || blockSize%128 != 0 {
		return nil, syscall.EINVAL
	}
	p := k.pools[metaDev]
	if p == nil {
		if slices.Contains(features, "read_only") {
			return nil, syscall.EPERM
		}
		p = &Pool{kernel: k, blockSize: blockSize, metadata: metadata{thins: make(map[uint32]uint64)},
			mode: "rw", usedMetadata: 444, totalMetadata: 4096}
		p.committed = p.clone()
		k.pools[metaDev] = p
	}
	if k.poolDevice(p) != nil && p.dev != d {
		return nil, syscall.EBUSY // metadata device already in use by a pool
	}
	if k.poolDevice(p) == nil && p.blockSize != blockSize {
		return nil, syscall.EINVAL // not looked at in a reload
	}
	p.dev = d
	return &thinPool{Pool: p, line: spec, below: []devmapper.DevNum{metaDev, dataDev}, lowWater: lowWater, features: features}, nil
}

// poolDevice is the device that has p in a table, live or staged.
func (k *Kernel) poolDevice(p *Pool) *device {
	for _, d := range k.devices {
		for _, t := range []*table{d.live, d.staged} {
			if t == nil {
				continue
			}
			for _, tg := range t.targets {
				if tp, ok := tg.(*thinPool); ok && tp.Pool == p {
					return d
				}
			}
		}
	}
	return nil
}

func parseFeatures(args []string) ([]string, bool) {
	if len(args) == 0 {
		return nil, true
	}
	n, err := strconv.Atoi(args[0])
	if err != nil || n < 0 || n > 4 || n != len(args)-1 {
		return nil, false
	}
	var features []string
	for _, f := range poolFeatures { // in the order in which they are printed
		if slices.Contains(args[1:], f) {
			features = append(features, f)
		}
	}
	return features, len(features) == n
}

func (t *thinPool) spec() devmapper.Target   { return t.line }
func (t *thinPool) deps() []devmapper.DevNum { return t.below }

func (t *thinPool) table() string {
	s := fmt.Sprintf("%s %s %d %d %d ", t.below[0], t.below[1], t.blockSize, t.lowWater, len(t.features))
	for _, f := range t.features {
		s += f + " "
	}
	return s
}

func (t *thinPool) status() string {
	if t.mode == "Fail" {
		return "Fail"
	}
	held, discard, space, check := "-", "discard_passdown", "queue_if_no_space", "-"
	if t.heldRoot != 0 {
		held = strconv.FormatUint(t.heldRoot, 10)
	}
	switch {
	case slices.Contains(t.features, "ignore_discard"):
		discard = "ignore_discard"
	case slices.Contains(t.features, "no_discard_passdown"):
		discard = "no_discard_passdown"
	}
	if slices.Contains(t.features, "error_if_no_space") {
		space = "error_if_no_space"
	}
	if t.needsCheck {
		check = "needs_check"
	}
	return fmt.Sprintf("%d %d/%d %d/%d %s %s %s %s %s %d ", t.transactionID, t.usedMetadata, t.totalMetadata,
		t.usedData, t.totalData, held, t.mode, discard, space, check, min(1024, t.totalMetadata/4))
}

// resume takes over the length: the pool can grow but not shrink.
func (t *thinPool) resume() error {
	blocks := uint64(t.line.Length) / t.blockSize
	if blocks < t.totalData {
		return syscall.EINVAL
	}
	t.totalData = blocks
	if slices.Contains(t.features, "read_only") {
		t.setMode("ro")
		return nil
	}
	t.adjustMode()
	return nil
}

func (t *thinPool) message(text string) error {
	args := strings.Fields(text)
	if len(args) == 0 {
		return syscall.EINVAL
	}
	if t.mode == "ro" || t.mode == "Fail" {
		return syscall.EOPNOTSUPP
	}
	nums := make([]uint64, 0, 2)
	for _, a := range args[1:] {
		n, err := strconv.ParseUint(a, 10, 64)
		if err != nil {
			return syscall.EINVAL
		}
		nums = append(nums, n)
	}
	err := t.carryOut(args[0], nums)
	if err == nil {
		t.commit()
	}
	return err
}

func (t *thinPool) carryOut(verb string, args []uint64) error {
	if want, ok := map[string]int{"create_thin": 1, "create_snap": 2, "delete": 1, "set_transaction_id": 2,
		"reserve_metadata_snap": 0, "release_metadata_snap": 0}[verb]; !ok || want != len(args) {
		return syscall.EINVAL
	}
	switch verb {
	case "set_transaction_id":
		if args[0] != t.transactionID {
			return syscall.EINVAL
		}
		t.transactionID = args[1]
		return nil
	case "reserve_metadata_snap":
		if t.heldRoot != 0 {
			return syscall.EBUSY
		}
		t.heldRoot = heldRoot
		return nil
	case "release_metadata_snap":
		if t.heldRoot == 0 {
			return syscall.EINVAL
		}
		t.heldRoot = 0
		return nil
	}
	for _, id := range args {
		if id > 1<<24-1 {
			return syscall.EINVAL
		}
	}
	return t.changeThin(verb, uint32(args[0]), args[1:])
}

func (t *thinPool) changeThin(verb string, id uint32, origin []uint64) error {
	_, exists := t.thins[id]
	switch verb {
	case "create_thin":
		if exists {
			return syscall.EEXIST
		}
		t.thins[id] = 0
	case "create_snap":
		if exists {
			return syscall.EEXIST
		}
		mapped, ok := t.thins[uint32(origin[0])]
		if !ok {
			return errNoData
		}
		t.thins[id] = mapped
		t.time++
	case "delete":
		if !exists {
			return errNoData
		}
		if t.kernel.thinInUse(t.dev, id) {
			return syscall.EBUSY
		}
		delete(t.thins, id)
	}
	return nil
}

// errNoData is Linux's ENODATA, which not every system has.
const errNoData = syscall.Errno(61)

// thin is the target.
type thin struct {
	*Pool
	line devmapper.Target
	pool devmapper.DevNum
	id   uint32
	// origin is the external origin, if any.
	origin []devmapper.DevNum
}

func (k *Kernel) newThin(d *device, spec devmapper.Target, args []string) (target, error) {
	if len(args) != 2 && len(args) != 3 {
		return nil, syscall.EINVAL
	}
	poolDev, err := devmapper.ParseDevNum(args[0])
	if err != nil {
		return nil, syscall.ENODEV
	}
	id, err := strconv.ParseUint(args[1], 10, 32)
	if err != nil || id > 1<<24-1 {
		return nil, syscall.EINVAL
	}
	t := &thin{line: spec, pool: poolDev, id: uint32(id)}
	if len(args) == 3 {
		origin, err := devmapper.ParseDevNum(args[2])
		if err != nil {
			return nil, syscall.ENODEV
		}
		t.origin = []devmapper.DevNum{origin}
	}
	holder := k.find(Request{Dev: poolDev})
	if holder == nil {
		return nil, syscall.ENODEV
	}
	if holder == d || holder.live == nil {
		return nil, syscall.EINVAL
	}
	tp, ok := holder.live.targets[0].(*thinPool)
	if !ok {
		return nil, syscall.EINVAL
	}
	t.Pool = tp.Pool
	if t.mode == "Fail" {
		return nil, syscall.EINVAL
	}
	if _, ok := t.thins[t.id]; !ok {
		return nil, errNoData
	}
	return t, nil
}

// thinInUse reports whether a table, live or staged, has the id.
func (k *Kernel) thinInUse(pool *device, id uint32) bool {
	for _, d := range k.devices {
		for _, t := range []*table{d.live, d.staged} {
			if t == nil {
				continue
			}
			for _, tg := range t.targets {
				if th, ok := tg.(*thin); ok && th.Pool.dev == pool && th.id == id {
					return true
				}
			}
		}
	}
	return false
}

func (t *thin) spec() devmapper.Target   { return t.line }
func (t *thin) deps() []devmapper.DevNum { return append([]devmapper.DevNum{t.pool}, t.origin...) }
func (t *thin) resume() error            { return nil }
func (t *thin) message(string) error     { return syscall.EINVAL }

func (t *thin) table() string {
	s := fmt.Sprintf("%s %d", t.pool, t.id)
	for _, o := range t.origin {
		s += " " + o.String()
	}
	return s
}

func (t *thin) status() string {
	if t.mode == "Fail" {
		return "Fail"
	}
	mapped := t.thins[t.id]
	if mapped == 0 {
		return "0 -"
	}
	return fmt.Sprintf("%d %d", mapped, mapped-1)
}
