package metadata_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/metadata"
)

// gate is a store's lock that one at a time is let to.
type gate struct {
	lock
	asked chan struct{}
	open  chan struct{}
}

func newGate() *gate { return &gate{asked: make(chan struct{}, 100), open: make(chan struct{}, 100)} }

func (g *gate) LockStore(ctx context.Context, shared bool) (func(), error) {
	if !shared {
		g.asked <- struct{}{}
		select {
		case <-g.open:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return g.lock.LockStore(ctx, shared)
}

// crowd is a store that several want to change at once.
type crowd struct {
	*metadata.Store
	t    *testing.T
	gate *gate
	all  sync.WaitGroup
}

func newCrowd(t *testing.T) *crowd {
	c := &crowd{t: t, gate: newGate()}
	c.Store = metadata.New(create(t), c.gate)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// want has somebody else want a change, and returns when he waits.
func (c *crowd) want(ctx context.Context, fn func(tx *metadata.Tx) error) *error {
	return c.wantThen(ctx, fn, func() {})
}

// wantThen is want, and calls then when he was told.
func (c *crowd) wantThen(ctx context.Context, fn func(tx *metadata.Tx) error, then func()) *error {
	err := new(error)
	before := c.Waiting()
	c.all.Go(func() { *err = c.UpdateTogether(ctx, fn); then() })
	for c.Waiting() == before {
		runtime.Gosched()
	}
	return err
}

func (c *crowd) names() (names []string) {
	view(c.t, c.Store, func(tx *metadata.Tx) error {
		return tx.Nodes(func(n metadata.Node) error {
			names = append(names, n.Name)
			return nil
		})
	})
	return names
}

func add(id int) func(tx *metadata.Tx) error {
	return func(tx *metadata.Tx) error {
		_, err := tx.AddNode(node(fmt.Sprintf("n%d", id), metadata.ThinID(id), 0))
		return err
	}
}

// Who comes while somebody waits for the store's lock shares his transaction. Each sees what those before it have done, and of one that fails, after it
// has written, nothing is left.
func TestUpdateTogether(t *testing.T) {
	c, ctx := newCrowd(t), t.Context()
	failed := errors.New("failed")
	last := 0
	ok := []*error{c.want(ctx, add(1))}
	<-c.gate.asked
	ok = append(ok, c.want(ctx, func(tx *metadata.Tx) error {
		tx.Last(func() {
			last = 0
			_ = tx.Nodes(func(metadata.Node) error { last++; return nil })
		})
		return add(2)(tx)
	}))
	bad := c.want(ctx, func(tx *metadata.Tx) error { return errors.Join(add(3)(tx), failed) })
	taken := c.want(ctx, add(2))
	ok = append(ok, c.want(ctx, func(tx *metadata.Tx) error {
		if _, err := tx.Node("n2"); err != nil {
			return err
		}
		if _, err := tx.Node("n3"); !errors.Is(err, errs.ErrNotFound) {
			return fmt.Errorf("n3 is there: %w", err)
		}
		return add(4)(tx)
	}))
	c.gate.open <- struct{}{}
	c.all.Wait()
	for i, err := range ok {
		if *err != nil {
			t.Errorf("%d: %v", i, *err)
		}
	}
	mustFail(t, *bad, failed)
	mustFail(t, *taken, errs.ErrExists)
	if names := fmt.Sprint(c.names()); names != "[n1 n2 n4]" || last != 3 {
		t.Errorf("there are %s; at the end there were %d", names, last)
	}
	if len(c.gate.asked) > 0 || c.Updates() != 3 { // each failure has the others tried again
		t.Errorf("%d transactions, and the lock was asked for %d times more", c.Updates(), len(c.gate.asked))
	}
}

// The turn goes on when whoever has it gives up, or whoever would be next; who comes while a transaction runs has the next one.
func TestUpdateTogetherGivesUp(t *testing.T) {
	c, ctx := newCrowd(t), t.Context()
	impatient, giveUp := context.WithCancel(ctx)
	first := c.want(impatient, add(1))
	<-c.gate.asked
	second := c.want(impatient, add(2))
	third := c.want(ctx, add(3))
	giveUp()
	<-c.gate.asked // of the third
	var fourth *error
	last := c.want(ctx, func(tx *metadata.Tx) error {
		if fourth == nil { // nobody else is let in
			fourth = c.want(ctx, add(5))
		}
		return add(4)(tx)
	})
	c.gate.open <- struct{}{}
	<-c.gate.asked
	c.gate.open <- struct{}{}
	c.all.Wait()
	mustFail(t, *first, context.Canceled)
	mustFail(t, *second, context.Canceled)
	must(t, errors.Join(*third, *last, *fourth))
	if names := fmt.Sprint(c.names()); names != "[n3 n4 n5]" || c.Waiting() > 0 {
		t.Errorf("there are %s, and %d wait", names, c.Waiting())
	}
}

// A page that bbolt panics on is everybody's error, and the next one starts anew.
func TestUpdateTogetherPanics(t *testing.T) {
	c, ctx := newCrowd(t), t.Context()
	panics := c.want(ctx, func(*metadata.Tx) error { panic("damaged") })
	<-c.gate.asked
	other := c.want(ctx, add(1))
	c.gate.open <- struct{}{}
	c.all.Wait()
	mustFail(t, *panics, errs.ErrDamaged)
	mustFail(t, *other, errs.ErrDamaged)
	c.gate.open <- struct{}{}
	must(t, c.UpdateTogether(ctx, add(1)))
}

// Who is refused for what another has changed in the same transaction hears so when that is durable: a power cut before leaves neither.
func TestUpdateTogetherToldWhenDurable(t *testing.T) {
	c, ctx := newCrowd(t), t.Context()
	first := c.want(ctx, add(1))
	<-c.gate.asked
	var told atomic.Bool
	taken := c.wantThen(ctx, add(1), func() { told.Store(true) })
	early := false
	last := c.want(ctx, func(tx *metadata.Tx) error {
		for range 10000 { // whoever was told would be heard of
			runtime.Gosched()
		}
		early = told.Load()
		return add(3)(tx)
	})
	c.gate.open <- struct{}{}
	c.all.Wait()
	must(t, errors.Join(*first, *last))
	mustFail(t, *taken, errs.ErrExists)
	if early {
		t.Error("he was told while the transaction of the others ran")
	}
}

// What nobody else has changed refuses nobody: where the others' transaction fails, he hears that, and where one before him is refused at second
// thought, he is not.
func TestUpdateTogetherRefusedForNothing(t *testing.T) {
	c, ctx := newCrowd(t), t.Context()
	first := c.want(ctx, add(1))
	<-c.gate.asked
	taken := c.want(ctx, add(1))
	panics := c.want(ctx, func(*metadata.Tx) error { panic("damaged") })
	c.gate.open <- struct{}{}
	c.all.Wait()
	for _, err := range []error{*first, *taken, *panics} {
		mustFail(t, err, errs.ErrDamaged)
	}
	runs := 0
	fickle := c.want(ctx, func(tx *metadata.Tx) error {
		if runs++; runs > 1 {
			return errs.ErrInvalid
		}
		return add(1)(tx)
	})
	<-c.gate.asked
	second := c.want(ctx, add(1))
	c.gate.open <- struct{}{}
	c.all.Wait()
	mustFail(t, *fickle, errs.ErrInvalid)
	must(t, *second)
	if names := fmt.Sprint(c.names()); names != "[n1]" {
		t.Errorf("there are %s", names)
	}
}

// Where there is no room for all, there is for those that need none, such as a removal; and who was refused for what had no room is not.
func TestUpdateTogetherWithoutRoom(t *testing.T) {
	testenv.Need(t, testenv.Root)
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"))
	defer func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) }()
	path := filepath.Join(dir, "records.db")
	empty, err := os.ReadFile(create(t))
	must(t, err)
	must(t, os.WriteFile(path, empty, 0o600))
	c, ctx := newCrowd(t), t.Context()
	c.Store = metadata.New(path, c.gate)
	defer c.Close()
	c.gate.open <- struct{}{}
	must(t, c.Update(ctx, add(1)))
	<-c.gate.asked
	large := c.want(ctx, func(tx *metadata.Tx) error {
		n := node("n2", 2, 0)
		n.Labels = map[string]string{"a": strings.Repeat("x", 2<<20)}
		_, err := tx.AddNode(n)
		return err
	})
	<-c.gate.asked
	small := c.want(ctx, add(2))
	removal := c.want(ctx, func(tx *metadata.Tx) error { return tx.DeleteNode(1) })
	refused := c.want(ctx, func(tx *metadata.Tx) error { return tx.DeleteNode(1) })
	c.gate.open <- struct{}{}
	c.all.Wait()
	mustFail(t, *large, errs.ErrNoSpace)
	must(t, errors.Join(*small, *removal))
	mustFail(t, *refused, errs.ErrNotFound)
	if names := fmt.Sprint(c.names()); names != "[n2]" || len(c.gate.asked) > 0 {
		t.Errorf("there are %s; the lock was asked for %d times more", names, len(c.gate.asked))
	}
}

// Many at once, some of which fail and some of which give up: all that was promised is there, and nothing else.
func TestUpdateTogetherMany(t *testing.T) {
	s := open(t, create(t))
	var made sync.Map
	var all sync.WaitGroup
	var failed atomic.Int64
	for i := range 40 {
		all.Go(func() {
			holder := s.With(&lock{})
			for j := range 10 {
				id := 1 + i*10 + j
				ctx, cancel := context.WithCancel(t.Context())
				if j%3 == 0 {
					go cancel()
				}
				err := holder.UpdateTogether(ctx, func(tx *metadata.Tx) error {
					if err := add(id)(tx); err != nil {
						return err
					}
					if j%4 == 1 {
						return errs.ErrInvalid
					}
					return nil
				})
				cancel()
				switch {
				case err == nil:
					made.Store(fmt.Sprintf("n%d", id), true)
				case j%4 == 1 && errors.Is(err, errs.ErrInvalid):
					failed.Add(1)
				case !errors.Is(err, context.Canceled):
					t.Errorf("%d: %v", id, err)
				}
			}
		})
	}
	all.Wait()
	there := 0
	view(t, s, func(tx *metadata.Tx) error {
		return tx.Nodes(func(n metadata.Node) error {
			if _, ok := made.LoadAndDelete(n.Name); !ok {
				t.Errorf("%s is there", n.Name)
			}
			there++
			return nil
		})
	})
	made.Range(func(name, _ any) bool {
		t.Errorf("%s is not there", name)
		return true
	})
	t.Logf("%d made, %d failed, in %d transactions", there, failed.Load(), s.Updates())
}
