package service_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// Records that are damaged while somebody serves the pool and has them open are brought back by an import beside him.
func TestImportUnderServe(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s, ctx := e.Open(t), pooltest.Context(t)
	_, err := s.CreateSnapshot(ctx, "a", layer.SnapshotOptions{})
	must(t, err)
	must(t, pool.Stop(ctx, e.Dirs, e.Name)) // which copies the records
	srv := serve(t, e)
	_, err = s.CreateSnapshot(ctx, "b", layer.SnapshotOptions{})
	must(t, err)
	_, err = s.RemoveNode(ctx, "b", layer.RemoveOptions{NoWait: true})
	must(t, err)
	srv.until("deleted what removed nodes had") // he has them open
	srv.look()
	f, err := os.OpenFile(e.Store(), os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt(make([]byte, 2*os.Getpagesize()), 0)
	must(t, err)
	must(t, f.Close())
	srv.until("removed nodes are not deleted", "damaged") // he has looked
	r, err := pool.Import(ctx, e.Dirs, pool.ImportOptions{Dir: filepath.Dir(e.Store())})
	must(t, err)
	if r.Nodes != 1 || r.Differs() {
		t.Errorf("%+v", r)
	}
	srv.look()
	_, err = e.Node(ctx, "a")
	must(t, err)
	must(t, srv.stop())
}

// unlocked is the lock of records that nobody changes.
type unlocked struct{}

func (unlocked) LockStore(context.Context, bool) (func(), error) { return func() {}, nil }

// Whoever serves a pool sees what is removed also after its records were put in their place anew, as an import does.
func TestReapsAfterRestore(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s, ctx := e.Open(t), pooltest.Context(t)
	for _, name := range []string{"a", "b", "c"} {
		_, err := s.CreateSnapshot(ctx, name, layer.SnapshotOptions{})
		must(t, err)
	}
	srv := serve(t, e)
	_, err := s.RemoveNode(ctx, "a", layer.RemoveOptions{NoWait: true})
	must(t, err)
	srv.until("deleted what removed nodes had")
	for _, name := range []string{"b", "c"} {
		var c *metadata.Copy
		store := metadata.New(e.Store(), unlocked{})
		must(t, store.View(ctx, func(tx *metadata.Tx) (err error) {
			c, err = metadata.CopyOf(tx, time.Now())
			return err
		}))
		must(t, store.Close())
		must(t, metadata.Restore(e.Store(), c))
		changes, err := s.Pool().Changes(ctx)
		must(t, err)
		_, err = s.RemoveNode(ctx, name, layer.RemoveOptions{NoWait: true})
		must(t, err)
		for {
			left, err := e.Tombstones(ctx)
			must(t, err)
			if len(left) == 0 {
				break
			}
			if _, ok := <-changes; !ok {
				t.Fatalf("%s is left: %v", name, context.Cause(ctx))
			}
		}
	}
	must(t, srv.stop())
}
