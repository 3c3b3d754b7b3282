package dmtest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/dmlayer/dmlayer/devmapper"
)

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
