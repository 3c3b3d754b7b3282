package layer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
)

var (
	pointRemoveTombstone = fault.New("layer.remove.tombstone")
	pointRemoveLater     = fault.New("layer.remove.later")
	pointRemoveDeleted   = fault.New("layer.remove.deleted")
)

// RemoveOptions say what is waited for.
type RemoveOptions struct {
	// NoWait leaves everything but the tombstone to Reap, of whichever process, or to the next Open.
	NoWait bool
	// Progress, unless nil, is told how many of the bytes that only the node has were given back to the backing.
	Progress func(done, total int64)
}

// Removal is what became of a removed node.
type Removal struct {
	// Gone says that the node is removed, also where an error says that not all was done that belongs to it.
	Gone bool
	// Left says that its blocks are still in the pool: somebody has to finish, or the users have to end.
	Left bool
	// Users are those, in other mount namespaces, who have the node's file system open.
	Users []fsutil.User
}

// Remove deletes a node, as RemoveNode does without options.
func (s *Store) Remove(ctx context.Context, name string) error {
	_, err := s.RemoveNode(ctx, name, RemoveOptions{})
	return err
}

// RemoveNode deletes a node. The tombstone is the commit point: from then on, and also after a crash, the node is gone. A parent of living nodes, a node that a document holds, or one
// in use is ErrBusy, and names who. One that is in use only in mount namespaces of others, who have copies of a mount that is not
// here any more, is removed all the same: the kernel takes its device away after its last user, and Reap or the next Open the rest.
//
// Where ctx ends in the middle of giving the node's blocks back, the error is its cause, the node is gone, and the rest is left
// to Reap or the next Open.
func (s *Store) RemoveNode(ctx context.Context, name string, options RemoveOptions) (Removal, error) {
	var r Removal
	var id metadata.ThinID
	t := tally{tell: options.Progress}
	if options.Progress != nil {
		options.Progress = t.show
	}
	err := s.withNode(ctx, s.beginDelete, name, func(o *op, n metadata.Node) (err error) {
		id = n.ID
		r, err = o.removeLocked(ctx, n, options)
		return err
	})
	if err == nil && r.Left && !options.NoWait && len(r.Users) == 0 {
		r.Left, err = s.finish(ctx, id, &t)
	}
	return r, opError("remove", name, err)
}

// removeLocked removes a node whose lock is held, and gives back as much as a Reap does at once.
func (o *op) removeLocked(ctx context.Context, n metadata.Node, options RemoveOptions) (Removal, error) {
	users, err := o.quiesceHere(n)
	if err != nil {
		return Removal{}, err
	}
	// What goes by the name goes while the name is still ours.
	if err := o.removeLink(n.Name); err != nil {
		return Removal{}, err
	}
	_ = unix.Rmdir(filepath.Join(o.s.pool.MountDir(), n.Name)) // of a mount that died
	err = o.updateTogether(ctx, func(tx *metadata.Tx) error {
		if err := unused(tx, n); err != nil {
			return err
		}
		return bury(tx, n)
	})
	if err != nil {
		return Removal{}, err
	}
	o.s.hints.drop(n.Name)
	r := Removal{Gone: true, Left: true, Users: users}
	if err := pointRemoveTombstone.Hit(); err != nil {
		return r, err
	}
	if len(users) > 0 {
		if err := o.removeLater(n.ID); err != nil {
			return r, err
		}
		return r, pointRemoveLater.Hit()
	}
	if options.NoWait {
		return r, nil
	}
	budget := int64(reapDiscards)
	end, err := o.deleteNode(ctx, n, pool.DiscardOptions{Budget: &budget, Progress: options.Progress})
	if err == nil {
		err = pointRemoveDeleted.Hit()
	}
	r.Left = end != deletedGone || err != nil
	return r, err
}

// quiesceHere is quiesce, but for those who have the node's file system open in other mount namespaces, whom it returns: a copy of a
// mount that is not here any more. They do not stand in the way of a removal.
func (o *op) quiesceHere(n metadata.Node) ([]fsutil.User, error) {
	busy := o.quiesce(n)
	if !errors.Is(busy, errs.ErrBusy) {
		return nil, busy
	}
	if claims, err := o.claims(n.ID); err != nil || len(claims) > 0 {
		return nil, errors.Join(err, busy)
	}
	info, err := o.dm().Info(o.ref(n.ID))
	if err != nil {
		return nil, notFoundIsNil(err) // gone in between
	}
	return elsewhere(info, busy)
}

// elsewhere returns who has a file system open elsewhere, if nobody uses it here and nobody has the device itself; else busy.
func elsewhere(info devmapper.Info, busy error) ([]fsutil.User, error) {
	mounts, err := fsutil.MountsOf(info.Dev.Major, info.Dev.Minor)
	if err != nil || len(mounts) > 0 {
		return nil, errors.Join(err, busy)
	}
	if held, err := os.ReadDir(fmt.Sprintf("/sys/dev/block/%s/holders", info.Dev)); err != nil || len(held) > 0 {
		return nil, busy
	}
	users, err := fsutil.UsersOf(info.Dev.Major, info.Dev.Minor)
	if err != nil || len(users) == 0 || slices.ContainsFunc(users, func(u fsutil.User) bool { return u.How == fsutil.UsesDevice }) {
		return nil, busy // also where nobody can be told
	}
	return users, nil
}

// unused is ErrBusy while the records say that something needs the node.
func unused(tx *metadata.Tx, n metadata.Node) error {
	var users []string
	children, err := tx.Children(n.Key)
	if err != nil {
		return err
	}
	for _, c := range children {
		users = append(users, fmt.Sprintf("%s %q", c.Kind, c.Name))
	}
	users = append(users, tx.DocumentsOf(n.Key)...)
	if len(users) == 0 {
		return nil
	}
	return errs.WithHint(fmt.Errorf("%s %q is needed by %s: %w", n.Kind, n.Name, some(users), errs.ErrBusy), "remove those first")
}

// some names users in an error, of many the first.
func some(users []string) string {
	const most = 5
	who := strings.Join(users[:min(most, len(users))], ", ")
	if len(users) > most {
		who += fmt.Sprintf(" and %d more", len(users)-most)
	}
	return who
}

// bury replaces a node's record by a tombstone of its thin device.
func bury(tx *metadata.Tx, n metadata.Node) error {
	if err := tx.DeleteNode(n.Key); err != nil {
		return err
	}
	return tx.PutTombstone(metadata.Tombstone{ID: n.ID, Name: n.Name, Since: time.Now().UTC()})
}

// AttrKeeper is the attribute that names who keeps a node and removes it himself, a program outside that Prune cannot ask.
const AttrKeeper = "keeper"

// Prune removes the layers that nothing uses, and then those that only they used, and returns their
// names in the order of removal. Templates that nothing starts from go with them, unnamed; a layer that has a
// keeper stays. A dry run only says what would go.
func (s *Store) Prune(ctx context.Context, dryRun bool) ([]string, error) {
	removed := []string{}
	candidates, err := s.prunable(ctx)
	if err != nil {
		return removed, err
	}
	for _, n := range candidates {
		if dryRun {
			if n.Kind != metadata.KindTemplate {
				removed = append(removed, n.Name)
			}
			continue
		}
		ok, err := s.pruneOne(ctx, n)
		if err != nil {
			return removed, opError("prune", n.Name, err)
		}
		if ok && n.Kind != metadata.KindTemplate {
			removed = append(removed, n.Name)
		}
	}
	return removed, nil
}

// prunable returns the layers and templates that nothing needs, children before parents.
func (s *Store) prunable(ctx context.Context) ([]metadata.Node, error) {
	o, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer o.Exit()
	var nodes []metadata.Node
	keep := map[metadata.Key]bool{}
	base := templateName(s.pool.Record(), s.pool.Record().BaseSize)
	err = o.view(ctx, func(tx *metadata.Tx) error {
		return tx.Nodes(func(n metadata.Node) error {
			nodes = append(nodes, n)
			free := n.Kind == metadata.KindLayer || n.Kind == metadata.KindTemplate && n.Name != base
			if !free || n.Attrs[AttrKeeper] != "" || len(tx.DocumentsOf(n.Key)) > 0 {
				keep[n.Key] = true
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return o.prunableOf(nodes, keep)
}

// prunableOf orders what is not kept, children before parents, and leaves out what somebody uses.
func (o *op) prunableOf(nodes []metadata.Node, keep map[metadata.Key]bool) ([]metadata.Node, error) {
	children := map[metadata.Key]int{}
	for _, n := range nodes {
		children[n.Parent]++
	}
	var gone []metadata.Node
	done := map[metadata.Key]bool{}
	for progress := true; progress; {
		progress = false
		for _, n := range nodes {
			if keep[n.Key] || done[n.Key] || children[n.Key] > 0 {
				continue
			}
			used, err := o.inUse(n)
			if err != nil {
				return nil, err
			}
			if used {
				keep[n.Key] = true
				continue
			}
			gone = append(gone, n)
			done[n.Key], progress = true, true
			children[n.Parent]--
		}
	}
	return gone, nil
}

// inUse tells whether a node is claimed or its device open.
func (o *op) inUse(n metadata.Node) (bool, error) {
	claims, err := o.claims(n.ID)
	if err != nil || len(claims) > 0 {
		return true, err
	}
	info, err := o.dm().Info(o.ref(n.ID))
	return info.OpenCount > 0, notFoundIsNil(err)
}

// pruneOne removes a node unless somebody has begun to use it meanwhile.
func (s *Store) pruneOne(ctx context.Context, n metadata.Node) (bool, error) {
	o, err := s.beginDelete(ctx)
	if err != nil {
		return false, err
	}
	defer o.Exit()
	if err := o.LockIDs(ctx, n.ID); err != nil {
		return false, err
	}
	err = o.view(ctx, func(tx *metadata.Tx) error {
		now, err := tx.NodeByKey(n.Key)
		if err == nil && (now.ID != n.ID || now.Name != n.Name) {
			err = errs.ErrBusy
		}
		return err
	})
	if err == nil {
		err = o.resumeDead(n.ID)
	}
	if err == nil {
		_, err = o.removeLocked(ctx, n, RemoveOptions{})
	}
	if errors.Is(err, errs.ErrBusy) || errors.Is(err, errs.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}
