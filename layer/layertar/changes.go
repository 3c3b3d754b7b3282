package layertar

import (
	"context"
	"errors"
	"fmt"
)

// Kind says how a path changed.
type Kind byte

// The kinds of changes, as `docker diff` and `dmlayer diff` print them.
const (
	Added    Kind = 'A'
	Modified Kind = 'C' // content, attributes, or what kind of file it is
	Deleted  Kind = 'D'
)

func (k Kind) String() string { return string(rune(k)) }

// A Change is one path that differs between two trees.
type Change struct {
	Kind Kind
	Path string // absolute, with the tree's root as "/"

	// Implied marks a directory that is the same in both trees and is listed only because of
	// something below it.
	Implied bool

	file bool // in upper it was seen, and was no directory; Walk tells
}

// String returns the line that `dmlayer diff` prints.
func (c Change) String() string { return fmt.Sprintf("%c %s", c.Kind, c.Path) }

// DiffOptions says what is known about two trees.
type DiffOptions struct {
	// SameLineage: one tree began as a block-level copy of the other, so that a file that nobody
	// touched has the same inode number and the same change time in both. The lower tree must not have
	// changed since. No content is read then, except of files that may have changed.
	SameLineage bool
}

// A Differ finds what changed between two trees.
//
// Changes calls fn for each path of upper that is not in lower or is not the same there, and for
// each path of lower that is gone, in the order of a walk: a directory before what it holds, names in
// byte order. An empty lower stands for the empty tree. The rules:
//
//   - A file is Modified if its type, mode, owner, device number, size, modification time (to the
//     nanosecond), extended attributes, link target or content differ, or if it shares its inode
//     with other paths than before. What only changed in between and was changed back is the same.
//   - So is a directory; its size does not count.
//   - A directory above any change is Modified, as docker and the OCI layer format have it, with
//     Implied set if nothing of its own differs.
//   - Of a deleted directory, and of one that something else replaced, only the directory is listed.
//     Of an added one, everything is.
//   - The root is listed only if its mode, owner or extended attributes differ.
//
// An error of fn ends the walk and is returned. An upper tree that is written to meanwhile gives changes
// that are true of some instant for each file. ErrBusy: each time that a file was looked at, another one
// took its place before it was read.
type Differ interface {
	Changes(ctx context.Context, lower, upper string, o DiffOptions, fn func(Change) error) error
}

// Changes finds the changes by walking both trees; see Differ. Memory grows with the number of
// changes and of hard links, not with the size of the trees.
func Changes(ctx context.Context, lower, upper string, o DiffOptions, fn func(Change) error) error {
	return Walk{}.Changes(ctx, lower, upper, o, fn)
}

// Walk is the Differ that walks both trees side by side.
type Walk struct{}

// Changes implements Differ.
func (Walk) Changes(ctx context.Context, lower, upper string, o DiffOptions, fn func(Change) error) error {
	err := compareTrees(ctx, lower, upper, o, fn)
	if err != nil {
		return fmt.Errorf("compare trees: %w", classify(err))
	}
	return nil
}

func compareTrees(ctx context.Context, lower, upper string, o DiffOptions, fn func(Change) error) error {
	w := &walker{ctx: ctx, lineage: o.SameLineage}
	up, err := openTree(upper)
	if err != nil {
		return err
	}
	defer up.close()
	var low *node
	if lower != "" {
		if low, err = openTree(lower); err != nil {
			return err
		}
		defer low.close()
		if err := errors.Join(w.root(low, up), low.enter()); err != nil {
			return err
		}
	}
	if err := up.enter(); err != nil {
		return err
	}
	if err := w.children(low, up); err != nil {
		return err
	}
	if err := w.lookAgain(low, up); err != nil {
		return err
	}
	w.relinked()
	for _, c := range w.list() {
		if err := fn(c); err != nil {
			return err
		}
	}
	return nil
}
