package pool

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
)

// Where lvm2 has its label and, right behind the sectors for that, the head of its metadata (lib/label/label.h, lib/format_text/layout.h).
const (
	labelSector = 512
	headSector  = 4096
)

var headMagic = []byte(" LVM2 x[5A%r0N*>") // after a checksum

// ourLabel tells whether a sector is lvm2's label of a physical volume with the UUID of the pool.
func (v volumes) ourLabel(b []byte) bool {
	return len(b) >= 64 && string(b[:8]) == "LABELONE" && string(b[24:32]) == "LVM2 001" && string(b[32:64]) == v.p.record.UUID
}

// mayHave tells whether a create, and lvm2 in it, may have left a sector so that was something else before.
func (v volumes) mayHave(offset int64, sector []byte) bool {
	switch {
	case isZero(sector):
		return true
	case offset == labelSector:
		return v.ourLabel(sector)
	case offset == headSector:
		return len(sector) > 4 && bytes.HasPrefix(sector[4:], headMagic)
	}
	return false
}

// findSaved returns the path of the disk that was saved, which lvm2 does not see: the one with the pool's label; else the one that was saved
// during this boot and still is the same to the kernel; else the one that has most of what was saved of it. A disk that has anything else
// by now, where a create has overwritten it, is never taken. Without any it is ErrDamaged: what was saved stays for the day when the disk is back.
func (v volumes) findSaved(ctx context.Context) (string, error) {
	size, place, err := v.savedPlace()
	if err != nil {
		return "", err
	}
	s, err := searchDisks(ctx, v.nodes(), func([]seenDisk) bool { return false })
	if err != nil {
		return "", err
	}
	var labelled, alike []string
	for _, o := range s.others {
		d := o.disk
		if d.node.Size != size || len(d.node.Holders) > 0 {
			continue
		}
		if len(o.first) > labelSector && v.ourLabel(o.first[labelSector:]) {
			labelled = append(labelled, d.path)
			continue
		}
		same, most, err := v.asSaved(ctx, d)
		if err != nil {
			return "", err
		}
		if same && place.holds(d.node.DevNum) {
			return d.path, nil
		}
		if same && most {
			alike = append(alike, d.path)
		}
	}
	switch {
	case len(labelled) == 1:
		return labelled[0], nil
	case len(labelled) == 0 && len(alike) == 1:
		return alike[0], nil
	}
	err = absent("the disk that was %s is not there as the create of pool %q has left it", place.Path, v.p.files.name)
	if several := append(labelled, alike...); len(several) > 0 {
		err = absent("the disk that was %s may be any of %s", place.Path, strings.Join(several, ", "))
	}
	return "", errs.WithHint(err, "attach it, and no copy of it: "+v.p.files.savedDisks()+" has what the create has overwritten. If it is gone for good, or holds something else by now, remove the folder "+
		v.p.files.dir()+" by hand")
}

func (v volumes) nodes() string { return (&rawDevices{files: v.p.files, record: v.p.record}).nodes() }

// asSaved tells whether a disk can be the one that was saved by what is on it, and whether most of that is what was saved.
func (v volumes) asSaved(ctx context.Context, d seenDisk) (same, most bool, err error) {
	f, err := openNode(d.path, d.node.DevNum, false)
	if err != nil {
		return false, false, nil // it has gone, or somebody has it
	}
	defer f.Close()
	if err := fsutil.DropCache(f); err != nil {
		return false, false, nil
	}
	changed := 0
	same, alike, err := isSaved(ctx, v.p.files.savedDisks(), rawDataRole, f, func(offset int64, sector []byte) bool {
		changed++
		return v.mayHave(offset, sector)
	})
	if ctx.Err() != nil {
		return false, false, ctx.Err()
	}
	if err != nil {
		return false, false, err
	}
	return same, alike > changed, nil
}

// savedPlace returns the size of the disk that was saved and where it was.
func (v volumes) savedPlace() (size int64, s savedPlace, err error) {
	path := v.p.files.savedDisks()
	err = eachSaved(path, func(e saveEntry) error {
		switch e.kind {
		case saveSize:
			size = e.Length
		case savePlace:
			if err := json.Unmarshal(e.data, &s); err != nil {
				return fmt.Errorf("%s: %w: %w", path, err, errs.ErrDamaged)
			}
		}
		return nil
	})
	return size, s, err
}

// holds tells whether the number still is that of the disk which had it when it was saved.
func (s savedPlace) holds(n fsutil.DevNum) bool {
	boot, err := bootID()
	return err == nil && string(boot) == s.Boot && n.String() == s.Number && (s.Identity == "" || s.Identity == fsutil.Identity(n))
}
