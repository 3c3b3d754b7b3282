package layer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
)

var (
	pointMountOpened  = fault.New("layer.mount.opened")
	pointMountMounted = fault.New("layer.mount.mounted")
	pointUnmounted    = fault.New("layer.unmount.unmounted")
)

// Mount activates a node and mounts its file system on dir, or on its default directory where dir is
// "". A layer is mounted read-only. A node that is mounted there already is no error; one that is in
// use in a way that excludes this one is ErrBusy; a foreign one is ErrDamaged unless it is trusted and its
// file system is found sound.
func (s *Store) Mount(ctx context.Context, name, dir string, mo MountOptions) (Mounted, error) {
	m, err := s.mount(ctx, name, dir, mo)
	return m, opError("mount", name, err)
}

func (s *Store) mount(ctx context.Context, name, dir string, mo MountOptions) (Mounted, error) {
	o, err := s.begin(ctx)
	if err != nil {
		return Mounted{}, err
	}
	defer o.Exit()
	n, err := o.lockNode(ctx, name)
	if err != nil {
		return Mounted{}, err
	}
	readOnly := mo.ReadOnly || n.Kind == metadata.KindLayer
	if err := o.mayMount(n, readOnly); err != nil {
		return Mounted{}, err
	}
	if err := o.trust(ctx, &n, mo.Trust, readOnly); err != nil {
		return Mounted{}, err
	}
	var place string
	if dir == "" {
		place = filepath.Join(s.pool.MountDir(), name)
		if err := o.makeMountPoint(place); err != nil {
			return Mounted{}, err
		}
	} else if place, err = realDir(dir); err != nil {
		return Mounted{}, errs.WithHint(err, "make the directory, or leave it out for the default")
	}
	m := Mounted{Dir: place, ReadOnly: readOnly}
	err = o.explainFull(o.mountOn(ctx, n, place, readOnly, mo.Options))
	if err != nil && dir == "" {
		_ = unix.Rmdir(place) // unless something is mounted there
	}
	return m, err
}

// makeMountPoint makes a default directory. Where it is there already, nothing but this node may be
// mounted on it: another root's pool may share the run directory and the name.
func (o *op) makeMountPoint(dir string) error {
	err := unix.Mkdir(dir, 0o755)
	if errors.Is(err, unix.ENOENT) {
		err = os.MkdirAll(dir, 0o755)
	}
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make mount point %s: %w", dir, err)
	}
	var above, at unix.Stat_t
	if err := errors.Join(unix.Stat(filepath.Dir(dir), &above), unix.Stat(dir, &at)); err != nil {
		return fmt.Errorf("mount point %s: %w", dir, err)
	}
	own := o.seen.dev != (devmapper.DevNum{}) && uint64(at.Dev) == unix.Mkdev(o.seen.dev.Major, o.seen.dev.Minor)
	if above.Dev != at.Dev && !own {
		return errs.WithHint(fmt.Errorf("something else is mounted on %s: %w", dir, errs.ErrBusy), "name another directory")
	}
	return nil
}

// realDir returns the directory as the kernel's mount table will name it.
func realDir(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	place, err := filepath.EvalSymlinks(abs)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("directory %s: %w", dir, errs.ErrNotFound)
	}
	if err != nil {
		return "", err
	}
	if fi, err := os.Stat(place); err != nil || !fi.IsDir() {
		return "", fmt.Errorf("%s is not a directory: %w", dir, errs.ErrInvalid)
	}
	return place, nil
}

// mayMount keeps a mount apart from somebody who writes to the raw device.
func (o *op) mayMount(n metadata.Node, readOnly bool) error {
	held, err := o.claims(n.ID)
	if err != nil {
		return err
	}
	if slices.Contains(held, claimAttached) || len(held) > 0 && !readOnly {
		return claimedBy(n, held)
	}
	return nil
}

func (o *op) mountOn(ctx context.Context, n metadata.Node, dir string, readOnly bool, extra []string) (err error) {
	if err := fsutil.CheckOptions(fsutil.Type(n.FS), extra...); err != nil {
		return err
	}
	mounts, err := o.mountsOf(n.ID)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if m.ReadOnly() != readOnly {
			return errs.WithHint(fmt.Errorf("%s %q is mounted on %s, %s: %w", n.Kind, n.Name, m.Dir, m.Options, errs.ErrBusy), "dmlayer unmount "+n.Name)
		}
		if m.Dir == dir {
			return nil
		}
	}
	err = o.mountDevice(ctx, n, dir, readOnly, extra)
	if err != nil {
		return undoing(ctx, err, func(context.Context) error { return o.release(n) })
	}
	return nil
}

func (o *op) mountDevice(ctx context.Context, n metadata.Node, dir string, readOnly bool, extra []string) error {
	d, err := o.openDevice(ctx, n, readOnly)
	if err != nil {
		return err
	}
	if err := pointMountOpened.Hit(); err != nil {
		return errors.Join(err, d.Close())
	}
	fits := false
	if !readOnly {
		if fits, err = mendOrFits(ctx, d, n); err != nil {
			return errors.Join(err, d.Close())
		}
	}
	// The open descriptor keeps the minor number ours until the mount holds it.
	mount := fsutil.MountOptions{Type: fsutil.Type(n.FS), ReadOnly: readOnly, Extra: append(slices.Clone(o.s.pool.Record().MountOptions), extra...)}
	if readOnly && n.Kind != metadata.KindLayer {
		mount.Extra = append(mount.Extra, o.withoutReplay(d, n)...)
	}
	err = fsutil.Mount(ctx, d.path, dir, mount)
	if err == nil {
		err = pointMountMounted.Hit()
		if err == nil && !readOnly {
			err = o.growBehind(ctx, d, dir, n, fits)
		}
		if err != nil {
			err = errors.Join(err, fsutil.Unmount(context.WithoutCancel(ctx), dir, fsutil.UnmountOptions{}))
		}
	}
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

// withoutReplay returns the option that leaves a journal alone, where the pool can only be read and nothing can be replayed. What
// it holds is missing then.
func (o *op) withoutReplay(d *device, n metadata.Node) []string {
	if o.mayWrite() == nil {
		return nil
	}
	if fs, err := fsutil.ReadFS(d.File); err != nil || fs.NeedsRecovery {
		o.s.log.Warn("the pool can only be read: no journal is replayed, and what was written last may be missing", "node", n.Name)
	}
	if fsutil.Type(n.FS) == fsutil.XFS {
		return []string{"norecovery"}
	}
	return []string{"noload"}
}

// growBehind finishes a growth of the file system that a crash interrupted, or that was left to the
// first mount. The superblock tells, unless it is known already, so that a mount that needs none pays nothing.
func (o *op) growBehind(ctx context.Context, d *device, dir string, n metadata.Node, fits bool) error {
	if !fits {
		fs, err := fsutil.ReadFS(d.File)
		fits = err == nil && asLarge(fs, n)
	}
	if !fits {
		return fsutil.Grow(ctx, dir)
	}
	err := finishGrowth(ctx, dir, n)
	if err != nil && ctx.Err() == nil { // no mount needs them: in a full pool the files can be read still, and removed
		o.s.log.Warn("copies of the superblock of a file system that has grown are not brought up; the next mount tries again", "node", n.Name, "error", err)
		return nil
	}
	return err
}

// asLarge tells whether a file system fills its node, but for a part of a block.
func asLarge(fs fsutil.FS, n metadata.Node) bool {
	return fs.Size+uint64(fs.BlockSize) > uint64(n.Size)
}

// finishGrowth brings up what a power cut may have left behind a growth that counts as done.
func finishGrowth(ctx context.Context, dir string, n metadata.Node) error {
	if !n.Grown {
		return nil
	}
	return fsutil.FinishGrowth(ctx, dir)
}

// mountsOf returns where a node is mounted in our mount namespace.
func (o *op) mountsOf(id metadata.ThinID) ([]fsutil.MountInfo, error) {
	if o.knownAbsent(id) {
		return nil, nil
	}
	info, err := o.dm().Info(o.ref(id))
	if errors.Is(err, devmapper.ErrNotFound) || err == nil && info.OpenCount == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return fsutil.MountsOf(info.Dev.Major, info.Dev.Minor)
}

// Unmount takes a mount away, by the node's name or by the directory (what contains a '/'), and
// deactivates the node when nobody uses it any more. By its name a node is unmounted from its default
// directory, or from the only other one; where there are several others, ErrInvalid names them. What is
// not mounted is ErrNotFound.
func (s *Store) Unmount(ctx context.Context, nameOrDir string) error {
	return opError("unmount", nameOrDir, s.unmount(ctx, nameOrDir))
}

func (s *Store) unmount(ctx context.Context, nameOrDir string) error {
	nameless, err := s.unmountNode(ctx, nameOrDir)
	if err != nil || !nameless {
		return err
	}
	// A node that was removed while it was in use can go now.
	o, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer o.Exit()
	return o.recover(ctx)
}

// unmountNode unmounts; nameless says that the device has no node any more.
func (s *Store) unmountNode(ctx context.Context, nameOrDir string) (nameless bool, err error) {
	o, err := s.hold(ctx)
	if err != nil {
		return false, err
	}
	defer o.Exit()
	var n metadata.Node
	var dir string
	if strings.Contains(nameOrDir, "/") {
		n, dir, err = o.lockMounted(ctx, nameOrDir)
	} else if n, err = o.lockNode(ctx, nameOrDir); err == nil {
		dir, err = o.onlyMount(n)
	}
	if err != nil {
		return false, err
	}
	if n.Key != 0 {
		if err := o.Mark(n.ID); err != nil {
			return false, err
		}
	}
	if err := fsutil.Unmount(ctx, dir, fsutil.UnmountOptions{}); err != nil {
		return false, withOpeners(dir, err)
	}
	if err := pointUnmounted.Hit(); err != nil {
		o.KeepMark(n.ID)
		return false, err
	}
	if filepath.Dir(dir) == s.pool.MountDir() {
		_ = unix.Rmdir(dir)
	}
	if n.Key == 0 {
		return true, nil
	}
	return false, o.release(n)
}

// withOpeners adds to an error of unmounting a busy directory who has files of it open, where that can be told.
func withOpeners(dir string, busy error) error {
	var st unix.Stat_t
	if !errors.Is(busy, errs.ErrBusy) || unix.Lstat(dir, &st) != nil {
		return busy
	}
	users, err := fsutil.OpenersOf(unix.Major(st.Dev), unix.Minor(st.Dev))
	if err != nil || len(users) == 0 {
		return errs.WithHint(busy, "see what is mounted below it: findmnt -R "+dir)
	}
	names := make([]string, len(users))
	for i, u := range users {
		names[i] = u.String()
	}
	return errs.WithHint(fmt.Errorf("%w: %s", busy, some(names)), "end what uses it")
}

// onlyMount returns where a node is mounted. It looks at the default directory first, which spares
// reading the table of all mounts.
func (o *op) onlyMount(n metadata.Node) (string, error) {
	var st unix.Stat_t
	place := filepath.Join(o.s.pool.MountDir(), n.Name)
	if o.seen.id == n.ID && !o.seen.absent && unix.Stat(place, &st) == nil &&
		uint64(st.Dev) == unix.Mkdev(o.seen.dev.Major, o.seen.dev.Minor) {
		return place, nil
	}
	mounts, err := o.mountsOf(n.ID)
	if err != nil {
		return "", err
	}
	switch len(mounts) {
	case 0:
		return "", fmt.Errorf("%s %q is not mounted: %w", n.Kind, n.Name, errs.ErrNotFound)
	case 1:
		return mounts[0].Dir, o.onTop(n, mounts[0].Dir)
	}
	dirs := make([]string, len(mounts))
	for i, m := range mounts {
		dirs[i] = m.Dir
	}
	err = fmt.Errorf("%s %q is mounted on %s: %w", n.Kind, n.Name, strings.Join(dirs, ", "), errs.ErrInvalid)
	return "", errs.WithHint(err, "name the directory")
}

// lockMounted finds the node that is mounted on a directory, and locks it. A device whose node was
// removed meanwhile comes without one.
func (o *op) lockMounted(ctx context.Context, dir string) (metadata.Node, string, error) {
	place, err := realDir(dir)
	if err != nil {
		return metadata.Node{}, "", err
	}
	id, err := o.mountedID(place)
	if err != nil {
		return metadata.Node{}, "", err
	}
	if err := o.LockIDs(ctx, id); err != nil {
		return metadata.Node{}, "", err
	}
	var n metadata.Node
	err = o.view(ctx, func(tx *metadata.Tx) error {
		n, err = tx.NodeByID(id)
		return err
	})
	if errors.Is(err, errs.ErrNotFound) {
		o.UnlockID(id)
		return metadata.Node{}, place, nil
	}
	if err == nil {
		err = o.resumeDead(id)
	}
	if err == nil {
		err = o.onTop(n, place)
	}
	return n, place, err
}

// onTop is ErrBusy where something else is mounted over the node by now. The node's lock is held. A file
// system that cannot say, because it has shut down, can be unmounted.
func (o *op) onTop(n metadata.Node, dir string) error {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil || uint64(st.Dev) == unix.Mkdev(o.seen.dev.Major, o.seen.dev.Minor) {
		return nil
	}
	err := fmt.Errorf("%s %q is covered by another mount on %s: %w", n.Kind, n.Name, dir, errs.ErrBusy)
	return errs.WithHint(err, "unmount that first")
}

// mountedID returns the thin id of the device that is mounted on a directory.
func (o *op) mountedID(place string) (metadata.ThinID, error) {
	mounts, err := fsutil.Mounts()
	if err != nil {
		return 0, err
	}
	for _, m := range slices.Backward(mounts) { // the last one is on top
		if m.Dir != place {
			continue
		}
		info, err := o.dm().Info(devmapper.ByDev(devmapper.DevNum(m.Dev)))
		if err == nil {
			if id, ok := o.s.pool.ThinID(info.UUID); ok {
				return id, nil
			}
		}
		return 0, fmt.Errorf("what is mounted on %s is not of pool %q: %w", place, o.s.pool.Name(), errs.ErrInvalid)
	}
	return 0, fmt.Errorf("nothing is mounted on %s: %w", place, errs.ErrNotFound)
}

func notFoundIsNil(err error) error {
	if errors.Is(err, devmapper.ErrNotFound) {
		return nil
	}
	return err
}
