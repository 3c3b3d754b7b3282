package snapshotter

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/dmlayer/dmlayer/backend/internal/errclass"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/layer"
)

var pointActivate = fault.New("snapshotter.activate.looked-up")

// Snapshotter is containerd's interface to a pool. It is safe for concurrent use, also together with other processes that use the pool.
type Snapshotter struct {
	store *layer.Store

	seen seen

	measuring chan struct{} // has room for the one who looks at usage
	usage     usage
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// New returns a snapshotter on a store, which stays the caller's and must outlive it.
func New(store *layer.Store) *Snapshotter {
	return &Snapshotter{store: store, measuring: make(chan struct{}, 1)}
}

// Close has nothing to release: snapshots stay as they are.
func (s *Snapshotter) Close() error { return nil }

// claimOf is by what name a key claims its node.
func claimOf(key string) string {
	sum := sha256.Sum256([]byte(key))
	return "containerd-" + hex.EncodeToString(sum[:20])
}

// newNode returns a name for a node. Keys lead to nodes by documents, so it need only be unused.
func newNode() string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails
	return "containerd-" + hex.EncodeToString(b[:])
}

// options applies what the caller asks for, and checks it.
func options(key string, opts []snapshots.Opt) (snapshots.Info, error) {
	var base snapshots.Info
	if err := checkKey("key", key); err != nil {
		return base, err
	}
	for _, opt := range opts {
		if err := opt(&base); err != nil {
			return base, err
		}
	}
	return base, checkLabels(base.Labels)
}

// Prepare makes an active snapshot. Where it is to become a layer that the pool has, see the package's documentation.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	base, err := options(key, opts)
	if err != nil {
		return nil, err
	}
	mounts, err := s.prepare(ctx, newRecord(snapshots.KindActive, key, parent, base.Labels))
	return mounts, errclass.Translated(err)
}

func newRecord(kind snapshots.Kind, key, parent string, labels map[string]string) record {
	now := time.Now().UTC()
	names := map[snapshots.Kind]string{snapshots.KindActive: "active", snapshots.KindView: "view", snapshots.KindCommitted: "committed"}
	return record{Kind: names[kind], Parent: parent, Labels: maps.Clone(labels), Created: now, Updated: now, key: key}
}

func (s *Snapshotter) prepare(ctx context.Context, r record) ([]mount.Mount, error) {
	_, sized := r.Labels[snapshots.LabelSnapshotMaxSize]
	if node, ok := s.parentSeen(r); ok && !sized && r.Labels[snapshots.LabelSnapshotRef] == "" {
		mounts, err := s.prepareNode(ctx, r, node, 0, false)
		if !wrong(err) {
			return mounts, err
		}
		s.seen.drop(r.Parent)
	}
	on, err := s.stand(ctx, r)
	for err == nil && on.known != "" {
		mounts, kerr := s.prepareKnown(ctx, r, on)
		if !errors.Is(kerr, errForgotten) {
			return mounts, kerr
		}
		on, err = s.stand(ctx, r)
	}
	if err != nil {
		return nil, err
	}
	size, err := on.size(r.Labels)
	if err != nil {
		return nil, err
	}
	return s.prepareNode(ctx, r, on.node, size, false)
}

// prepareNode makes a node for a snapshot.
func (s *Snapshotter) prepareNode(ctx context.Context, r record, parent string, size int64, readOnly bool) ([]mount.Mount, error) {
	r.node = newNode()
	so := layer.SnapshotOptions{Parent: parent, Size: size, Attrs: map[string]string{attrKey: r.key}}
	co := layer.ClaimOptions{Claim: claimOf(r.key), ReadOnly: readOnly}
	_, d, err := s.store.Prepare(ctx, r.node, so, co, func(tx *layer.DocTx) error { return addOn(tx, r, parent) })
	if err != nil {
		return nil, err
	}
	s.seen.put(r)
	return mounts(d), nil
}

// View makes a read-only snapshot: of a committed one without a device of its own, of nothing with one.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	base, err := options(key, opts)
	if err != nil {
		return nil, err
	}
	mounts, err := s.view(ctx, newRecord(snapshots.KindView, key, parent, base.Labels))
	return mounts, errclass.Translated(err)
}

func (s *Snapshotter) view(ctx context.Context, r record) ([]mount.Mount, error) {
	_, sized := r.Labels[snapshots.LabelSnapshotMaxSize]
	if r.Parent == "" {
		on, err := s.stand(ctx, r)
		if err != nil {
			return nil, err
		}
		size, err := on.size(r.Labels)
		if err != nil {
			return nil, err
		}
		return s.prepareNode(ctx, r, "", size, true)
	}
	if node, ok := s.parentSeen(r); ok && !sized {
		mounts, err := s.viewNode(ctx, r, node)
		if !wrong(err) {
			return mounts, err
		}
		s.seen.drop(r.Parent)
	}
	on, err := s.stand(ctx, r)
	if err == nil {
		_, err = on.size(r.Labels) // nobody grows a view, which is as large as what it shows
	}
	if err != nil {
		return nil, err
	}
	return s.viewNode(ctx, r, on.node)
}

// viewNode records a view of a node, and activates that for it. The document comes first: a claim that nothing names would stay.
func (s *Snapshotter) viewNode(ctx context.Context, r record, node string) ([]mount.Mount, error) {
	r.node = node
	co := layer.ClaimOptions{Claim: claimOf(r.key), ReadOnly: true}
	d, err := s.store.ActivateWith(ctx, node, co, func(tx *layer.DocTx) error { return addOn(tx, r, node) })
	if err != nil {
		return nil, err
	}
	s.seen.put(r)
	return mounts(d), nil
}

// Mounts returns how an active snapshot or a view is mounted, and sees to it that its device is there: after a reboot it is not.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	r, err := s.lookup(ctx, key)
	if err == nil && r.kind() == snapshots.KindCommitted {
		err = fmt.Errorf("snapshot %q is committed, neither active nor a view: %w", key, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, errclass.Translated(err)
	}
	mounts, err := s.activate(ctx, r)
	return mounts, errclass.Translated(err)
}

func (s *Snapshotter) activate(ctx context.Context, r record) ([]mount.Mount, error) {
	if err := pointActivate.Hit(); err != nil {
		return nil, err
	}
	co := layer.ClaimOptions{Claim: claimOf(r.key), ReadOnly: r.kind() == snapshots.KindView || r.Staged}
	if r.shared() {
		// The node outlives the snapshot. What has removed that since it was looked at found no claim to end, and nobody would end this one.
		co.Check = func(tx *layer.DocTx) error { return same(tx, r) }
	}
	d, err := s.store.Activate(ctx, r.node, co)
	if err != nil {
		return nil, err
	}
	return mounts(d), nil
}

// mounts describes how a device is mounted. Its path is a link that lasts as long as the snapshot, so that it serves those who hand the device
// itself to a virtual machine.
func mounts(d layer.Device) []mount.Mount {
	options := d.Options
	if !d.ReadOnly {
		options = append(options, "rw")
	}
	return []mount.Mount{{Type: d.FS, Source: d.Path, Options: options}}
}

// lookup reads one snapshot.
func (s *Snapshotter) lookup(ctx context.Context, key string) (record, error) {
	var r record
	err := checkKey("key", key)
	if err == nil {
		err = s.store.ViewDocuments(ctx, func(tx *layer.DocTx) (err error) {
			r, err = get(tx, key)
			return err
		})
	}
	return r, err
}

// Commit turns an active snapshot into a layer. When it returns, the layer is whole on the disk.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	base, err := options(name, opts)
	if err == nil {
		err = checkKey("key", key)
	}
	if err == nil {
		err = s.commit(ctx, name, key, base)
	}
	return errclass.Translated(err)
}

func (s *Snapshotter) commit(ctx context.Context, name, key string, base snapshots.Info) error {
	_, taken := s.seen.get(name)
	if from, ok := s.seen.get(key); ok && !taken && from.kind() == snapshots.KindActive {
		err := s.commitFrom(ctx, from, name, base)
		if !wrong(err) {
			return err
		}
		s.seen.drop(key)
	}
	var from record
	err := s.store.ViewDocuments(ctx, func(tx *layer.DocTx) (err error) {
		from, err = committable(tx, name, key)
		return err
	})
	if err != nil {
		return err
	}
	return s.commitFrom(ctx, from, name, base)
}

func (s *Snapshotter) commitFrom(ctx context.Context, from record, name string, base snapshots.Info) (err error) {
	if base.Parent != "" && base.Parent != from.Parent {
		if !from.Staged || from.Parent != "" {
			return fmt.Errorf("snapshot %q stands on %q and cannot be put on %q: %w", from.key, from.Parent, base.Parent, errdefs.ErrInvalidArgument)
		}
	}
	to := newRecord(snapshots.KindCommitted, name, from.Parent, base.Labels)
	if from.Staged {
		if base.Parent != "" {
			to.Parent = base.Parent
		}
		to.node = from.node
		err = s.commitStaged(ctx, from, to)
	} else {
		to.node = newNode()
		_, err = s.store.Commit(ctx, from.node, to.node, layer.CommitOptions{
			Move: true, Claim: claimOf(from.key), Attrs: map[string]string{attrKey: name},
			Documents: func(tx *layer.DocTx) error { return replace(tx, from, to) },
		})
	}
	if err == nil {
		s.seen.drop(from.key)
		s.seen.put(to)
	}
	return err
}

// committable returns the active snapshot that is to be committed under a name.
func committable(tx documents, name, key string) (record, error) {
	if err := free(tx, name); err != nil {
		return record{}, err
	}
	r, err := get(tx, key)
	if err == nil && r.kind() != snapshots.KindActive {
		err = fmt.Errorf("snapshot %q is not active: %w", key, errdefs.ErrFailedPrecondition)
	}
	return r, err
}

// replace records a committed snapshot in the place of the active one that it was.
func replace(tx documents, from, to record) error {
	now, err := committable(tx, to.key, from.key)
	if err != nil {
		return err
	}
	if now.node == to.node { // the commit has given it its new name
		now.node = from.node
	}
	if err := errors.Join(from.stale(now), remove(tx, now)); err != nil {
		return err
	}
	return put(tx, to)
}

// Remove removes a snapshot that is no parent. Its layer stays where other keys or images need it. It waits for nobody: what somebody has
// mounted still goes with him. A snapshot whose record cannot be read can be removed too.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	if r, ok := s.seen.get(key); ok {
		s.seen.drop(key) // whatever comes of it
		err := s.drop(ctx, r)
		if !wrong(err) && !errors.Is(err, layer.ErrDamaged) {
			return errclass.Translated(err)
		}
	}
	r, err := s.lookup(ctx, key)
	switch {
	case err == nil:
		err = s.drop(ctx, r)
	case errors.Is(err, layer.ErrDamaged):
		err = s.dropDamaged(ctx, key)
	}
	return errclass.Translated(err)
}

func (s *Snapshotter) drop(ctx context.Context, r record) error {
	claim := claimOf(r.key)
	if r.kind() == snapshots.KindCommitted {
		claim = ""
	}
	_, err := s.store.Drop(ctx, r.node, claim, func(tx *layer.DocTx) error {
		now, err := get(tx, r.key)
		if err == nil {
			err = errors.Join(r.stale(now), childless(tx, r.key))
		}
		if err != nil {
			return err
		}
		return remove(tx, now)
	})
	return err
}

// Cleanup finishes what removals have left: containerd calls it when it has collected garbage.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	_, err := s.store.Reap(ctx, nil)
	return errclass.Translated(err)
}
