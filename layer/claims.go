package layer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
)

// A claim is a file in the run directory: somebody's word that he uses a node though nothing may have
// its device open. Claims are made, looked at and dropped under the node's lock, and only unclaimed
// nodes are deactivated.
const (
	claimAttached         = "attached"
	claimAttachedReadOnly = "attached-read-only"
)

var pointClaimed = fault.New("layer.claim.made")

func (o *op) claimDir(id metadata.ThinID) string {
	return filepath.Join(o.s.pool.ClaimDir(), strconv.FormatUint(uint64(id), 10))
}

// claims returns the claims on a node, sorted.
func (o *op) claims(id metadata.ThinID) ([]string, error) {
	entries, err := os.ReadDir(o.claimDir(id))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("claims on thin device %d: %w", id, err)
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	slices.Sort(names)
	return names, nil
}

func (o *op) claim(id metadata.ThinID, name string) error {
	err := unix.Mkdir(o.claimDir(id), 0o700)
	if errors.Is(err, unix.ENOENT) {
		err = os.MkdirAll(o.claimDir(id), 0o700)
	}
	if err == nil || errors.Is(err, unix.EEXIST) {
		err = writeSmall(filepath.Join(o.claimDir(id), name), nil)
	}
	if err != nil {
		return fmt.Errorf("claim thin device %d: %w", id, err)
	}
	return pointClaimed.Hit()
}

// unclaimAll drops all claims on a thin device.
func (o *op) unclaimAll(id metadata.ThinID) error {
	held, err := o.claims(id)
	for _, name := range held {
		err = errors.Join(err, o.unclaim(id, name))
	}
	return err
}

// unclaim drops a claim; one that is not there is no error.
func (o *op) unclaim(id metadata.ThinID, name string) error {
	if err := removeFile(filepath.Join(o.claimDir(id), name)); err != nil {
		return fmt.Errorf("drop claim on thin device %d: %w", id, err)
	}
	_ = unix.Rmdir(o.claimDir(id)) // others' claims keep it
	return nil
}
