package thinpool_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/devmapper/dmtest"
	"github.com/dmlayer/dmlayer/thinpool"
)

const blockSize devmapper.Sectors = 128

// lab is a device-mapper with two devices to make a pool on.
type lab struct {
	*devmapper.Client
	meta, data devmapper.DevNum
	// repair forgets that commits failed, while the pool is not active.
	fake *dmtest.Kernel // nil on a real kernel
}

// onBoth runs a test on the fake and, where there is one, on the kernel.
func onBoth(t *testing.T, test func(t *testing.T, l lab)) {
	t.Run("fake", func(t *testing.T) {
		k := dmtest.NewKernel()
		t.Cleanup(func() { // the first one is the last to run
			if left := k.Names(); len(left) > 0 {
				t.Errorf("the test left %q behind", left)
			}
		})
		test(t, lab{k.Client(), metaDev, dataDev, k})
	})
	t.Run("kernel", func(t *testing.T) { test(t, newKernelLab(t)) })
}

// poolTable is the table that tests use unless they have a reason.
func (l lab) poolTable() thinpool.PoolTable {
	return thinpool.PoolTable{Metadata: l.meta, Data: l.data, BlockSize: blockSize}
}

// pool activates a pool of a number of blocks.
func (l lab) pool(t *testing.T, blocks uint64, change ...func(*thinpool.PoolTable)) (*thinpool.Pool, devmapper.DevNum) {
	t.Helper()
	table := l.poolTable()
	for _, c := range change {
		c(&table)
	}
	info, err := thinpool.ActivatePool(l.Client, "test-pool", "DMLTEST-pool", devmapper.Sectors(blocks)*blockSize, table)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.remove(t, devmapper.ByUUID("DMLTEST-pool")) })
	if !info.Active || info.Suspended || info.Name != "test-pool" || info.UUID != "DMLTEST-pool" {
		t.Errorf("activated pool: %+v", info)
	}
	return thinpool.NewPool(l.Client, devmapper.ByDev(info.Dev)), info.Dev
}

func (l lab) remove(t *testing.T, ref devmapper.Ref) {
	t.Helper()
	if err := thinpool.Deactivate(l.Client, ref); err != nil && !errors.Is(err, devmapper.ErrNotFound) {
		t.Errorf("clean up: %v", err)
	}
}

func spec(pool devmapper.DevNum, id thinpool.ID, size devmapper.Sectors) thinpool.ThinSpec {
	return thinpool.ThinSpec{
		Name: devmapper.Name(fmt.Sprintf("test-thin-%d", id)), UUID: devmapper.UUID(fmt.Sprintf("DMLTEST-%d", id)),
		Pool: pool, ID: id, Size: size,
	}
}

// thin activates a thin device for the test.
func (l lab) thin(t *testing.T, s thinpool.ThinSpec) (devmapper.Info, devmapper.Ref) {
	t.Helper()
	info, err := thinpool.Activate(l.Client, s)
	if err != nil {
		t.Fatal(err)
	}
	ref := devmapper.ByUUID(s.UUID)
	t.Cleanup(func() { l.remove(t, ref) })
	return info, ref
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// wantError wants all classes.
func wantError(t *testing.T, what string, err error, classes ...error) {
	t.Helper()
	for _, class := range classes {
		if !errors.Is(err, class) {
			t.Errorf("%s: %v; want %q", what, err, class)
		}
	}
	if err != nil && !strings.HasPrefix(err.Error(), "thinpool: ") {
		t.Errorf("%s: text %q", what, err)
	}
}

// tempFile is a sparse file.
func tempFile(t *testing.T, name string, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	must(t, err)
	return path
}
