package layer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
)

var (
	pointUserCounted   = fault.New("layer.user.counted")
	pointUserMounted   = fault.New("layer.user.mounted")
	pointUserUnmounted = fault.New("layer.user.unmounted")
)

// The users of a node's default mount are counted in the run directory: a folder for each thin id, and in it a file for each user with the
// number of times that he has mounted the node, and the holder, if there is one. It is looked at and changed under the node's lock. The truth is what is mounted: where the
// node is not, nobody uses it, and whatever was counted is of the dead.

// MountUser is a user of a node's default mount.
type MountUser struct {
	Node  string
	Kind  Kind
	User  string
	Count int
	// Holder is what UserOptions had, last.
	Holder string
}

// UserOptions says how MountFor mounts and counts.
type UserOptions struct {
	Options []string // beside the pool's, as in mount -o; of the first mount
	Once    bool     // the user counts once, however often he mounts
	Holder  string   // whoever the user dies with, unless it is "": lower case letters, digits and '-', up to 40. DismissDead asks about him
}

var (
	userGrammar   = regexp.MustCompile(`^[a-z][a-z0-9-]{0,127}$`)
	holderGrammar = regexp.MustCompile(`^[a-z0-9-]{0,40}$`)
)

func checkUser(user string) error {
	if !userGrammar.MatchString(user) {
		return fmt.Errorf("user %q: %w", user, errs.ErrInvalid)
	}
	return nil
}

// use is what is counted of a user.
type use struct {
	count  int
	holder string
}

// MountFor mounts a node on its default directory for a user, and counts him: the mount stays until each user has called UnmountFor as often.
// A user is lower case letters, digits and '-', up to 128. Users and mounts outlive the process. Errors as those of Mount.
func (s *Store) MountFor(ctx context.Context, name, user string, uo UserOptions) (Mounted, error) {
	var m Mounted
	err := checkUser(user)
	if err == nil && !holderGrammar.MatchString(uo.Holder) {
		err = fmt.Errorf("holder %q: %w", uo.Holder, errs.ErrInvalid)
	}
	if err == nil {
		err = s.withNode(ctx, s.begin, name, func(o *op, n metadata.Node) (err error) {
			m, err = o.mountFor(ctx, n, user, uo)
			return err
		})
	}
	return m, opError("mount", name, err)
}

func (o *op) mountFor(ctx context.Context, n metadata.Node, user string, uo UserOptions) (Mounted, error) {
	m := Mounted{Dir: filepath.Join(o.s.pool.MountDir(), n.Name), ReadOnly: n.Kind == metadata.KindLayer}
	mounted, err := o.mountedAt(n.ID, m.Dir)
	if err != nil {
		return Mounted{}, err
	}
	var before use
	if mounted {
		var users map[string]use
		users, err = o.users(n.ID)
		before = users[user]
	} else if err = errors.Join(o.mayMount(n, m.ReadOnly), trusted(n, "mount")); err == nil {
		err = o.beginUsers(n.ID)
	}
	if err != nil {
		return Mounted{}, err
	}
	now := use{before.count + 1, uo.Holder}
	if uo.Once {
		now.count = 1
	}
	if now != before {
		if err := o.setUser(n.ID, user, now); err != nil {
			return Mounted{}, err
		}
	}
	err = pointUserCounted.Hit()
	if err == nil && !mounted {
		err = o.mountHere(ctx, n, m, uo.Options)
	}
	if err != nil {
		return Mounted{}, undoing(ctx, err, func(context.Context) error { return o.setUser(n.ID, user, before) })
	}
	return m, pointUserMounted.Hit()
}

// mountHere mounts a node on its default directory.
func (o *op) mountHere(ctx context.Context, n metadata.Node, m Mounted, options []string) error {
	if err := o.makeMountPoint(m.Dir); err != nil {
		return err
	}
	err := o.explainFull(o.mountOn(ctx, n, m.Dir, m.ReadOnly, options))
	if err != nil {
		_ = unix.Rmdir(m.Dir) // unless something is mounted there
	}
	return err
}

// mountedAt tells whether a node, whose lock is held, is mounted on a directory. It spares reading the table of all mounts where the
// directory itself can say.
func (o *op) mountedAt(id metadata.ThinID, dir string) (bool, error) {
	if o.knownAbsent(id) {
		return false, nil
	}
	var st unix.Stat_t
	err := unix.Stat(dir, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err == nil && o.seen.id == id {
		return uint64(st.Dev) == unix.Mkdev(o.seen.dev.Major, o.seen.dev.Minor), nil
	}
	mounts, err := o.mountsOf(id) // a file system that has shut down
	return slices.ContainsFunc(mounts, func(m fsutil.MountInfo) bool { return m.Dir == dir }), err
}

// UnmountFor takes back one MountFor of a user. With the last one of the last user the node is unmounted, and deactivated where nobody
// else uses it; ErrBusy then leaves the user counted. A user who is not counted, and a node that is not mounted, are no errors.
func (s *Store) UnmountFor(ctx context.Context, name, user string) error {
	return s.dismiss(ctx, name, user, func(count int) int { return count - 1 })
}

// Dismiss leaves so many counts of a user, who has died, at most. With the last one of the last user the node is unmounted as UnmountFor does.
func (s *Store) Dismiss(ctx context.Context, name, user string, keep int) error {
	return s.dismiss(ctx, name, user, func(count int) int { return min(count, keep) })
}

func (s *Store) dismiss(ctx context.Context, name, user string, change func(int) int) error {
	err := checkUser(user)
	if err == nil {
		err = s.withNode(ctx, s.hold, name, func(o *op, n metadata.Node) error { return o.dismiss(ctx, n, user, change) })
	}
	return opError("unmount", name, err)
}

func (o *op) dismiss(ctx context.Context, n metadata.Node, user string, change func(int) int) error {
	dir := filepath.Join(o.s.pool.MountDir(), n.Name)
	mounted, err := o.mountedAt(n.ID, dir)
	if err != nil {
		return err
	}
	if !mounted {
		return o.forgetUsers(n.ID)
	}
	users, err := o.users(n.ID)
	if err != nil {
		return err
	}
	left := use{max(change(users[user].count), 0), users[user].holder}
	if left.count > 0 || len(users) > 1 || len(users) == 1 && users[user].count == 0 {
		return o.setUser(n.ID, user, left)
	}
	// Nobody is left, or nobody was counted: the run directory forgot.
	if err := o.Mark(n.ID); err != nil {
		return err
	}
	if err := fsutil.Unmount(ctx, dir, fsutil.UnmountOptions{}); err != nil {
		return err
	}
	if err := pointUserUnmounted.Hit(); err != nil {
		o.KeepMark(n.ID)
		return err
	}
	_ = unix.Rmdir(dir)
	return errors.Join(o.dropUsers(n.ID, users), o.release(n))
}

// MountUsers returns who uses the default mounts of nodes, by node and user, as it is counted; what is counted of nodes that are gone is
// forgotten. It looks at as many files as there are users.
func (s *Store) MountUsers(ctx context.Context) ([]MountUser, error) {
	o, err := s.reader(ctx)
	if err != nil {
		return nil, err
	}
	defer o.Exit()
	entries, err := os.ReadDir(o.usersDir())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("users of mounts: %w", err)
	}
	all := []MountUser{}
	err = o.view(ctx, func(tx *metadata.Tx) error {
		for _, e := range entries {
			id, err := strconv.ParseUint(e.Name(), 10, 32)
			if err != nil {
				continue // somebody else's file
			}
			n, err := tx.NodeByID(metadata.ThinID(id))
			if errors.Is(err, errs.ErrNotFound) {
				// Removed since, and thin ids are never used again.
				err = o.forgetUsers(metadata.ThinID(id))
				if err == nil {
					continue
				}
			}
			if err != nil {
				return err
			}
			users, err := o.users(n.ID)
			if err != nil {
				return err
			}
			for _, user := range slices.Sorted(maps.Keys(users)) {
				all = append(all, mountUser(n, user, users[user]))
			}
		}
		return nil
	})
	slices.SortFunc(all, func(a, b MountUser) int { return strings.Compare(a.Node+"/"+a.User, b.Node+"/"+b.User) })
	return all, err
}

func mountUser(n metadata.Node, user string, u use) MountUser {
	return MountUser{Node: n.Name, Kind: Kind(n.Kind), User: user, Count: u.count, Holder: u.holder}
}

func (o *op) usersDir() string { return filepath.Join(o.s.pool.StateDir(), "users") }

func (o *op) userDir(id metadata.ThinID) string {
	return filepath.Join(o.usersDir(), strconv.FormatUint(uint64(id), 10))
}

// users returns what is counted of each user of a thin id. A count that cannot be read is of somebody who died while he wrote it: one.
func (o *op) users(id metadata.ThinID) (map[string]use, error) {
	entries, err := os.ReadDir(o.userDir(id))
	if errors.Is(err, os.ErrNotExist) {
		return map[string]use{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("users of thin device %d: %w", id, err)
	}
	users := make(map[string]use, len(entries))
	for _, e := range entries {
		text, err := readSmall(filepath.Join(o.userDir(id), e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // it is looked at without the node's lock, and he has just gone
		}
		if err != nil {
			return nil, fmt.Errorf("users of thin device %d: %w", id, err)
		}
		count, holder, _ := strings.Cut(string(text), " ")
		u := use{holder: holder}
		u.count, err = strconv.Atoi(count)
		if err != nil || u.count < 1 {
			u.count = 1
		}
		users[e.Name()] = u
	}
	return users, nil
}

// setUser counts a user of a thin id; a count of 0 forgets him.
func (o *op) setUser(id metadata.ThinID, user string, u use) error {
	path := filepath.Join(o.userDir(id), user)
	if u.count == 0 {
		if err := removeFile(path); err != nil {
			return fmt.Errorf("user of thin device %d: %w", id, err)
		}
		_ = unix.Rmdir(o.userDir(id)) // others keep it
		return nil
	}
	text := strconv.AppendInt(nil, int64(u.count), 10)
	if u.holder != "" {
		text = append(append(text, ' '), u.holder...)
	}
	err := writeSmall(path, text)
	if errors.Is(err, os.ErrNotExist) { // mounted, and nobody was counted: the run directory forgot
		if err = os.MkdirAll(o.userDir(id), 0o700); err == nil {
			err = writeSmall(path, text)
		}
	}
	if err != nil {
		return fmt.Errorf("user of thin device %d: %w", id, err)
	}
	return nil
}

// beginUsers makes the folder for the users of a thin id that is not mounted, and forgets the dead who are counted there.
func (o *op) beginUsers(id metadata.ThinID) error {
	err := unix.Mkdir(o.userDir(id), 0o700)
	if errors.Is(err, unix.EEXIST) {
		if err := o.forgetUsers(id); err != nil {
			return err
		}
	}
	if err != nil {
		err = os.MkdirAll(o.userDir(id), 0o700)
	}
	if err != nil {
		return fmt.Errorf("users of thin device %d: %w", id, err)
	}
	return nil
}

// dropUsers is forgetUsers for who is known.
func (o *op) dropUsers(id metadata.ThinID, users map[string]use) error {
	for user := range users {
		_ = unix.Unlink(filepath.Join(o.userDir(id), user))
	}
	if err := unix.Rmdir(o.userDir(id)); err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return o.forgetUsers(id)
}

func (o *op) forgetUsers(id metadata.ThinID) error {
	if err := os.RemoveAll(o.userDir(id)); err != nil {
		return fmt.Errorf("users of thin device %d: %w", id, err)
	}
	return nil
}

// MountPoint returns the default directory of a node, where MountFor mounts it.
func (s *Store) MountPoint(name string) string { return filepath.Join(s.pool.MountDir(), name) }
