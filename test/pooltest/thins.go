package pooltest

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
)

// thinDump is what thin_dump says of a pool's metadata.
type thinDump struct {
	TransactionID uint64 `xml:"transaction,attr"`
	Devices       []struct {
		ID uint64 `xml:"dev_id,attr"`
	} `xml:"device"`
}

// dumpThins runs thin_check and thin_dump.
func dumpThins(ctx context.Context, file string) (dump thinDump, err error) {
	if st, err := os.Stat(file); err == nil && st.Mode()&os.ModeDevice != 0 {
		return dumpDevice(ctx, file)
	}
	// The tools want direct I/O, which a loop device has whatever the file lies on.
	loop, err := fsutil.Attach(ctx, fsutil.LoopOptions{Path: file, ReadOnly: true})
	if err != nil {
		return dump, err
	}
	defer func() { err = errors.Join(err, loop.Close(), fsutil.Detach(ctx, loop.Number)) }()
	return dumpDevice(ctx, loop.Path)
}

func dumpDevice(ctx context.Context, path string) (dump thinDump, err error) {
	if out, err := exec.CommandContext(ctx, "thin_check", path).CombinedOutput(); err != nil {
		return dump, fmt.Errorf("thin_check: %w\n%s", err, out)
	}
	out, err := exec.CommandContext(ctx, "thin_dump", path).Output()
	if err != nil {
		return dump, fmt.Errorf("thin_dump: %w", err)
	}
	if err := xml.Unmarshal(out, &dump); err != nil {
		return dump, fmt.Errorf("thin_dump: %w", err)
	}
	return dump, nil
}

// checkThins compares the thin devices with the records.
func (r *records) checkThins(ctx context.Context, file string) (err error) {
	dump, err := dumpThins(ctx, file)
	if err != nil {
		return err
	}
	if dump.TransactionID != r.pool.TransactionID || r.pool.Pending {
		return fmt.Errorf("pool has transaction %d, the store %d, pending %v", dump.TransactionID, r.pool.TransactionID, r.pool.Pending)
	}
	var all error
	thins := map[metadata.ThinID]bool{}
	for _, d := range dump.Devices {
		id := metadata.ThinID(d.ID)
		thins[id] = true
		if _, ok := r.nodes[id]; !ok && id != 0 && !r.tombs[id] {
			all = errors.Join(all, fmt.Errorf("thin device %d belongs to no node", id))
		}
	}
	if !thins[0] {
		all = errors.Join(all, errors.New("the label is gone"))
	}
	for id, n := range r.nodes {
		if !thins[id] && !pool.SetAside(n) {
			all = errors.Join(all, fmt.Errorf("node %q has no thin device %d", n.Name, id))
		}
	}
	return all
}
