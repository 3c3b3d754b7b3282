package layer_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// A power cut has left the copies of the superblock of an xfs that has grown as they were, and the pool is full: they cannot be brought up. The
// xfs is mounted all the same, so that its files can be read and removed, and a mount after that, with room, brings them up.
func TestMountGrownXFSInFullPool(t *testing.T) {
	e := pooltest.New(t, pool.Spec{FS: "xfs", DataSize: 160 << 20, BaseSize: 512 << 20, Space: pool.Space{MinFree: -1}})
	ctx := pooltest.Context(t)
	var said bytes.Buffer
	config := e.Config()
	config.Logger = slog.New(slog.NewTextHandler(&said, nil))
	s, err := layer.Open(ctx, config)
	must(t, err)
	defer func() { must(t, s.Close()) }()
	asVM := func(name string, fn func(device string)) { // a machine that is trusted: what it leaves is not checked
		t.Helper()
		asVM(t, s, name, fn)
		must(t, trusted(ctx, e, name))
	}
	makeSnapshot(t, s, "grown", "")
	var old map[int64][]byte
	asVM("grown", func(device string) { old = superblocks(t, device) })
	must(t, s.Resize(ctx, "grown", 1<<30))
	mount(t, s, "grown")
	unmount(t, s, "grown")
	asVM("grown", func(device string) {
		for at, sector := range old {
			writeAt(t, device, sector, at)
		}
	})
	// The child shares all blocks, and makes its own of what a mount writes to, while there is room.
	makeSnapshot(t, s, "child", "grown")
	asVM("child", func(device string) {
		mountAsVM(t, "xfs", device, func(dir string) { must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o600)) })
	})
	makeSnapshot(t, s, "hog", "")
	asVM("hog", func(device string) {
		f, err := fsutil.OpenDevice(device, true)
		must(t, err)
		for at, chunk := int64(0), bytes.Repeat([]byte{7}, 1<<20); err == nil; at += int64(len(chunk)) {
			if _, err = f.WriteAt(chunk, at); err == nil {
				err = fsutil.Flush(f)
			}
		}
		if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EIO) {
			t.Errorf("the pool is not full: %v", err)
		}
		_ = f.Close()
	})

	wantFile(t, mount(t, s, "child"), "file", "content")
	if !strings.Contains(said.String(), "copies of the superblock") {
		t.Errorf("nothing was said of the copies: %s", said.String())
	}
	unmount(t, s, "child")
	must(t, s.Remove(ctx, "hog"))
	mount(t, s, "child")
	unmount(t, s, "child")
	asVM("child", func(device string) {
		if now := superblocks(t, device); maps.EqualFunc(now, old, slices.Equal) || len(now) <= len(old) {
			t.Error("the copies are as old as before")
		}
		if r, err := fsutil.Fsck(ctx, device, fsutil.XFS, fsutil.FsckOptions{}); err != nil || !r.Clean {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// trusted takes the mark of strangers off a node.
func trusted(ctx context.Context, e *pooltest.Env, name string) error {
	s := metadata.New(e.Store(), alone{})
	return errors.Join(s.Update(ctx, func(tx *metadata.Tx) error {
		n, err := tx.Node(name)
		if err != nil {
			return err
		}
		n.Foreign = false
		return tx.PutNode(n)
	}), s.Close())
}

// superblocks returns the first sector of each allocation group but the first, by its place.
func superblocks(t testing.TB, device string) map[int64][]byte {
	t.Helper()
	sector := func(at int64) []byte {
		b := make([]byte, 512)
		readAt(t, device, b, at)
		return b
	}
	be, first := binary.BigEndian, sector(0)
	copies := map[int64][]byte{}
	for ag := int64(1); ag < int64(be.Uint32(first[88:])); ag++ {
		at := ag * int64(be.Uint32(first[84:])) * int64(be.Uint32(first[4:]))
		copies[at] = sector(at)
	}
	return copies
}
