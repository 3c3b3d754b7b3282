package layer_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// strew writes one block of 4 KiB every so many bytes, past the page cache's delay, until the device refuses or ends.
func strew(device string, size, every int64) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	b := make([]byte, 4096)
	for at := int64(0); at < size && err == nil; at += every {
		_, err = f.WriteAt(b, at)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// eatMetadata makes snapshots of a device with many mappings, and changes a bit of each everywhere, until the pool's metadata is
// full. It returns the names of what it has made.
func eatMetadata(t testing.TB, s *layer.Store) (names []string) {
	t.Helper()
	const base, blocks, leaf = "base", 64 << 10, 120 * 64 << 10
	ctx := pooltest.Context(t)
	size := int64(240 << 20)
	makeSnapshot(t, s, base, "")
	asVM(t, s, base, func(device string) { must(t, strew(device, size, blocks)) })
	names = append(names, base)
	for i := 0; ; i++ {
		name := fmt.Sprintf("s%d", i)
		if _, err := s.CreateSnapshot(ctx, name, layer.SnapshotOptions{Parent: base}); err != nil {
			t.Logf("%s: %v", name, err)
			return names
		}
		names = append(names, name)
		var full error
		asVM(t, s, name, func(device string) { full = strew(device, size, leaf) })
		if full != nil {
			t.Logf("%s: %v", name, full)
			return names
		}
	}
}

func metadataOf(t testing.TB, s *layer.Store) pool.Status {
	t.Helper()
	st, err := s.PoolStatus(pooltest.Context(t))
	must(t, err)
	t.Logf("%s, metadata %d of %d, data %d of %d", st.State, *st.MetadataUsed, *st.MetadataTotal, *st.DataUsed, *st.DataTotal)
	return st
}

// Writers eat the metadata of a pool that nobody can make larger: it is read-only, and everything can be deleted all the same.
func TestMetadataExhausted(t *testing.T) {
	e := pooltest.New(t, pool.Spec{MetadataSize: 4 << 20, DataSize: 1 << 30, Space: pool.Space{MinFree: -1}})
	s, ctx := e.Open(t), pooltest.Context(t)
	names := eatMetadata(t, s)
	if st := metadataOf(t, s); st.State != pool.StateReadOnly {
		t.Fatalf("the pool is %s", st.State)
	}
	_, err := s.CreateSnapshot(ctx, "more", layer.SnapshotOptions{Parent: "base"})
	mustFail(t, err, layer.ErrNoSpace)
	for i := len(names) - 1; i >= 0; i-- {
		must(t, s.Remove(ctx, names[i]))
		if i == len(names)-1 {
			metadataOf(t, s)
		}
	}
	if st := metadataOf(t, s); st.State != pool.StateActive || *st.MetadataTotal != 4<<20 {
		t.Errorf("the pool is %s, with %d of metadata", st.State, *st.MetadataTotal)
	}
	// The next growth sets a part aside again.
	now, err := pool.Extend(ctx, e.Dirs, e.Name, pool.Extension{Metadata: pool.Extent{Bytes: 4 << 20, More: true}})
	must(t, err)
	if st := metadataOf(t, s); now.Metadata != 8<<20 || *st.MetadataTotal >= 8<<20 || *st.MetadataTotal <= 4<<20 {
		t.Errorf("metadata of %d, in the table %d", now.Metadata, *st.MetadataTotal)
	}
}

// A pool that is read-only for want of metadata writes again as soon as it has grown.
func TestMetadataExhaustedAndGrown(t *testing.T) {
	e := pooltest.New(t, pool.Spec{MetadataSize: 4 << 20, DataSize: 1 << 30, Space: pool.Space{MinFree: -1}})
	s, ctx := e.Open(t), pooltest.Context(t)
	eatMetadata(t, s)
	_, err := pool.Extend(ctx, e.Dirs, e.Name, pool.Extension{Metadata: pool.Extent{Bytes: 8 << 20}})
	must(t, err)
	if st := metadataOf(t, s); st.State != pool.StateActive {
		t.Errorf("the pool is %s", st.State)
	}
	makeSnapshot(t, s, "more", "base")
	asVM(t, s, "more", func(device string) { must(t, strew(device, 1<<20, 64<<10)) })
}

// childExhausted removes a node of a pool without metadata.
func childExhausted(ctx context.Context, j pooltest.Job) error {
	s, err := layer.Open(ctx, layer.Config{Dirs: j.Dirs, Pool: j.Pool})
	if err != nil {
		return err
	}
	return errors.Join(s.Remove(ctx, j.Args[0]), s.Close())
}

// What is added for a deletion that dies is not lost: the next one goes on from there.
func TestMetadataExhaustedAndKilled(t *testing.T) {
	for _, point := range []string{"pool.held.recorded", "pool.grow.linear"} {
		t.Run(point, func(t *testing.T) {
			e := pooltest.New(t, pool.Spec{MetadataSize: 4 << 20, DataSize: 1 << 30, Space: pool.Space{MinFree: -1}})
			s, ctx := e.Open(t), pooltest.Context(t)
			names := eatMetadata(t, s)
			pooltest.RunKilled(t, pooltest.Job{Op: "exhausted", Dirs: e.Dirs, Pool: e.Name, Args: names[1:2], Point: point})
			for _, name := range names[1:] {
				if err := s.Remove(ctx, name); err != nil && !errors.Is(err, layer.ErrNotFound) {
					t.Fatal(err)
				}
			}
			if st := metadataOf(t, s); st.State != pool.StateActive {
				t.Errorf("the pool is %s", st.State)
			}
		})
	}
}
