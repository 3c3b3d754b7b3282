package thinpool_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/test/thintools"
	"github.com/dmlayer/dmlayer/thinpool"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// busyPool is a pool that is used at random. Its devices are written to in 4 KiB only, for the sake of the memory
// that is behind them.
type busyPool struct {
	lab
	*thinpool.Pool
	dev    devmapper.DevNum
	random *rand.Rand
	ids    map[thinpool.ID]bool
	next   thinpool.ID
	buf    []byte
}

const (
	busyBlocks = 16_000
	busySize   = busyBlocks * blockSize
)

func newBusyPool(t *testing.T) *busyPool {
	t.Helper()
	testenv.Need(t, testenv.DM, testenv.Loop, testenv.ThinCheck)
	c, err := devmapper.Open()
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	l := lab{c, loop(t, tempFile(t, "meta", 16<<20)), loop(t, tempFile(t, "data", int64(busySize.Bytes()))), nil}
	b := &busyPool{lab: l, random: rand.New(rand.NewPCG(1, 2)), ids: map[thinpool.ID]bool{}, next: 1, buf: page(t, 'x')[:4096]}
	b.Pool, b.dev = l.pool(t, busyBlocks, func(p *thinpool.PoolTable) { p.SkipBlockZeroing = true })
	return b
}

func (b *busyPool) any() thinpool.ID {
	ids := slices.Sorted(maps.Keys(b.ids))
	return ids[b.random.IntN(len(ids))]
}

func (b *busyPool) create(t *testing.T) {
	t.Helper()
	must(t, b.CreateThin(b.next))
	b.ids[b.next] = true
	b.next++
}

// with does something to an active device.
func (b *busyPool) with(t *testing.T, id thinpool.ID, f func(dev *os.File)) {
	t.Helper()
	s := spec(b.dev, id, busySize)
	info, err := thinpool.Activate(b.Client, s)
	must(t, err)
	dev := open(t, info)
	defer func() { must(t, dev.Close(), thinpool.Deactivate(b.Client, devmapper.ByUUID(s.UUID))) }()
	f(dev)
}

func (b *busyPool) write(t *testing.T, dev *os.File, begin, count int64) {
	t.Helper()
	for i := range count {
		if _, err := dev.WriteAt(b.buf, (begin+i)%busyBlocks*int64(blockSize.Bytes())); err != nil {
			t.Fatal(err)
		}
	}
}

// step is one thing that happens to the pool.
func (b *busyPool) step(t *testing.T) {
	t.Helper()
	id := b.any()
	switch n := b.random.IntN(12); {
	case n == 0:
		b.create(t)
	case n < 4:
		must(t, b.CreateSnap(b.next, id))
		b.ids[b.next] = true
		b.next++
	case n == 4 && len(b.ids) > 4:
		must(t, b.Delete(id))
		delete(b.ids, id)
	case n < 7:
		b.with(t, id, func(dev *os.File) {
			must(t, thinpool.Discard(t.Context(), dev, uint64(b.random.IntN(600))*blockSize.Bytes(), uint64(1+b.random.IntN(300))*blockSize.Bytes()))
		})
	default:
		b.with(t, id, func(dev *os.File) { b.write(t, dev, b.random.Int64N(600), 1+b.random.Int64N(80)) })
	}
}

// subject is the metadata device.
func (b *busyPool) subject(root uint64) thintools.Subject {
	s := thintools.Subject{Path: fmt.Sprintf("/dev/loop%d", b.meta.Minor), Root: root}
	ids := slices.Sorted(maps.Keys(b.ids))
	for i := range min(len(ids)-1, 4) {
		s.Pairs = append(s.Pairs, [2]uint64{uint64(ids[i]), uint64(ids[len(ids)-1-i])})
	}
	return s
}

// TestMetadataOfKernel compares what thinmeta and Debian's programs read of what the kernel has written: of the
// active pool while it is written to, and of the pool when it is inactive.
func TestMetadataOfKernel(t *testing.T) {
	b := newBusyPool(t)
	for range 130 { // details have two levels then
		b.create(t)
	}
	b.with(t, 1, func(dev *os.File) { b.write(t, dev, 0, 4000) })
	for range 3 {
		for range 60 {
			b.step(t)
		}
		b.compareLive(t)
	}
	must(t, b.SetTransactionID(0, 77), thinpool.Deactivate(b.Client, b.Ref()))
	thintools.Agree(t, b.subject(0))
}

// compareLive compares while a device is written to, which must not matter.
func (b *busyPool) compareLive(t *testing.T) {
	t.Helper()
	b.with(t, b.any(), func(dev *os.File) {
		ctx, cancel := context.WithCancel(t.Context())
		var writer sync.WaitGroup
		writer.Go(func() {
			for i := int64(0); ctx.Err() == nil; i++ {
				_, err := dev.WriteAt(b.buf, i*7%1000*int64(blockSize.Bytes()))
				if err == nil && i%50 == 0 {
					err = dev.Sync() // makes the pool commit
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
		must(t, b.WithMetadataSnap(func(root uint64) error {
			thintools.Agree(t, b.subject(root))
			return nil
		}))
		cancel()
		writer.Wait()
	})
}

// TestMetadataSnapIsReleased also after a panic, and after a crash.
func TestMetadataSnapIsReleased(t *testing.T) {
	l := newKernelLab(t)
	p, _ := l.pool(t, 512)
	held := func() uint64 {
		t.Helper()
		s, err := p.Status()
		must(t, err)
		return s.HeldRoot
	}
	stop := errors.New("stop")
	if err := p.WithMetadataSnap(func(root uint64) error {
		if root == 0 || root != held() {
			t.Errorf("metadata snapshot %d, status says %d", root, held())
		}
		return stop
	}); !errors.Is(err, stop) {
		t.Errorf("error of f: %v", err)
	}
	if held() != 0 {
		t.Error("not released after an error")
	}
	func() {
		defer func() { _ = recover() }()
		_ = p.WithMetadataSnap(func(uint64) error { panic("stop") })
	}()
	if held() != 0 {
		t.Error("not released after a panic")
	}
	_, err := p.ReserveMetadataSnap() // by a process that dies then
	must(t, err)
	must(t, p.CreateThin(5))
	f, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", l.meta.Minor), os.O_RDONLY|unix.O_DIRECT, 0)
	must(t, err)
	defer f.Close()
	must(t, p.WithMetadataSnap(func(root uint64) error {
		m, err := thinmeta.Open(f, thinmeta.Options{Root: root})
		if err != nil {
			return err
		}
		_, err = m.Device(t.Context(), 5)
		return err
	}))
	if held() != 0 {
		t.Error("not released after a crash")
	}
}
