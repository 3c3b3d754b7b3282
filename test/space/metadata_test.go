package space

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

const (
	block        = 64 << 10
	leafMappings = 126 // a leaf has so many mappings at least, and up to 252
)

// scatter writes a whole block at each of count places of a node that are stride blocks apart, past the page cache.
func scatter(t testing.TB, s *layer.Store, name string, count, stride int) (err error) {
	t.Helper()
	ctx := pooltest.Context(t)
	path, err := s.Attach(ctx, name, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Detach(ctx, name)) }()
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	buf, err := unix.Mmap(-1, 0, block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	must(t, err)
	defer func() { must(t, unix.Munmap(buf)) }()
	copy(buf, content(1, 0, block))
	for i := 0; i < count && err == nil; i++ {
		_, err = f.WriteAt(buf, int64(i*stride)*block)
	}
	if err == nil {
		err = fsutil.Flush(f)
	}
	return errors.Join(err, f.Close())
}

// scattered makes snapshots of a parent with many mappings, and writes to each where a write costs most: a block for each leaf. It ends with the
// first error, and returns how many snapshots it has made.
func scattered(t testing.TB, s *layer.Store, leaves, most int) (n int, err error) {
	t.Helper()
	for ; n < most; n++ {
		name := fmt.Sprintf("s-%d", n)
		if _, err := s.CreateSnapshot(pooltest.Context(t), name, layer.SnapshotOptions{Parent: "parent"}); err != nil {
			return n, err
		}
		if err := scatter(t, s, name, leaves, leafMappings); err != nil {
			return n + 1, err
		}
	}
	return n, nil
}

const leaves = 24

// onScattered runs a test on pools with a node of so many leaves of metadata, and little room for more.
func onScattered(t *testing.T, minFree, leaves int, fn func(t *testing.T, e *place, s *layer.Store)) {
	spec := pool.Spec{DataSize: 1 << 30, MetadataSize: 4 << 20, BaseSize: 256 << 20, Space: pool.Space{MinFree: minFree}}
	everywhere(t, spec, func(t *testing.T, e *place, s *layer.Store) {
		snapshot(t, s, "parent", "")
		must(t, scatter(t, s, "parent", leaves*leafMappings, 1))
		fn(t, e, s)
	})
}

// Small writes all over the place eat the metadata, not the data. Without a guard the pool is read-only then, and deleting works all the
// same, down to the last node.
func TestP02MetadataFullStillDeletes(t *testing.T) {
	onScattered(t, -1, leaves, metadataFull)
}

func metadataFull(t *testing.T, e *place, s *layer.Store) {
	ctx := pooltest.Context(t)
	n, err := scattered(t, s, leaves, 1000)
	if err == nil {
		t.Fatal("metadata without end")
	}
	st := status(t, e)
	t.Logf("after %d snapshots: %v; %s, data %d of %d, metadata %d of %d", n, err, st.State, *st.DataUsed, *st.DataTotal, *st.MetadataUsed, *st.MetadataTotal)
	if st.State != pool.StateReadOnly || *st.DataUsed > *st.DataTotal/2 || *st.TakesNodes {
		t.Fatalf("%s, data %d of %d", st.State, *st.DataUsed, *st.DataTotal)
	}
	_, err = s.CreateSnapshot(ctx, "new", layer.SnapshotOptions{Parent: "parent"})
	mustFail(t, err, layer.ErrNoSpace)
	nodes, err := s.List(ctx)
	must(t, err)
	for _, i := range nodes {
		if i.Name != "parent" {
			remove(t, s, i.Name)
		}
	}
	remove(t, s, "parent")
	if st := status(t, e); st.State != pool.StateActive || !*st.TakesNodes {
		t.Fatalf("in the end %s, takes nodes: %v", st.State, *st.TakesNodes)
	}
	snapshot(t, s, "new", "")
	must(t, writeFile(mount(t, s, "new")+"/f", 1, block))
	unmount(t, s, "new")
	wantSound(t, s, "new")
}

// The guard keeps a part of the metadata for those who delete: nodes are refused before the kernel stops writing.
func TestP02GuardBeforeMetadataIsFull(t *testing.T) {
	onScattered(t, 70, leaves, guardOfMetadata)
}

func guardOfMetadata(t *testing.T, e *place, s *layer.Store) {
	n, err := scattered(t, s, leaves, 1000)
	mustFail(t, err, layer.ErrNoSpace)
	st := status(t, e)
	t.Logf("after %d snapshots: %v; metadata %d of %d", n, err, *st.MetadataUsed, *st.MetadataTotal)
	if free := *st.MetadataTotal - *st.MetadataUsed; st.State != pool.StateActive || free < *st.MetadataTotal*6/10 || *st.TakesNodes {
		t.Errorf("%s, %d of %d free, takes nodes: %v", st.State, free, *st.MetadataTotal, *st.TakesNodes)
	}
	for i := range n {
		remove(t, s, fmt.Sprintf("s-%d", i))
	}
	snapshot(t, s, "new", "parent")
}

// A write to a snapshot costs as much metadata as a leaf has, which is 4 KiB, where no other one is near: a hundred times what it costs where
// all are written.
func TestP10MetadataOfScatteredWrites(t *testing.T) {
	onScattered(t, -1, 8, costOfScattered)
}

func costOfScattered(t *testing.T, e *place, s *layer.Store) {
	const leaves = 8
	cost := func(count, stride int) int64 {
		snapshot(t, s, "s", "parent")
		before := *status(t, e).MetadataUsed
		must(t, scatter(t, s, "s", count, stride))
		after := *status(t, e).MetadataUsed
		remove(t, s, "s")
		return (after - before) / int64(count)
	}
	apart, together := cost(leaves, leafMappings), cost(leaves*leafMappings, 1)
	t.Logf("%d bytes of metadata for a block apart, %d for one of many", apart, together)
	if apart < 1500 || apart > 8192 {
		t.Errorf("a write apart costs %d bytes of metadata", apart)
	}
	if together > 96 {
		t.Errorf("one of many costs %d bytes of metadata: the automatic size takes it for 96", together)
	}
}
