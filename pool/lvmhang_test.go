package pool_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// Where a disk does not answer, lvm2 waits in the kernel and cannot even be killed. Whoever waits for it goes on when its time is up.
func TestVolumesOnDiskThatHangs(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.LVM)
	ctx := pooltest.Context(t)
	disk := pooltest.NewLoop(t, 16<<20)
	dm, err := devmapper.Open()
	must(t, err)
	defer dm.Close()
	const uuid = devmapper.UUID("TEST-hanging-disk")
	ref := devmapper.ByUUID(uuid)
	_, err = dm.Create("hanging", uuid)
	must(t, err)
	defer func() {
		_, err := dm.Remove(ref, devmapper.RemoveOptions{})
		must(t, err)
	}()
	must(t, dm.Load(ref, devmapper.LoadOptions{}, devmapper.Target{Length: 16 << 11, Type: "linear", Params: fmt.Sprintf("7:%d 0", disk.Number)}))
	_, err = dm.Resume(ref, devmapper.ResumeOptions{})
	must(t, err)
	must(t, dm.Suspend(ctx, ref, devmapper.SuspendOptions{}))

	short, cancel := context.WithTimeout(ctx, 6*time.Second)
	defer cancel()
	e := &pooltest.Env{Dirs: pooltest.Dirs(t), Name: pooltest.PoolName}
	err = pool.Create(short, e.Dirs, onVolumes("testvg"))
	mustFail(t, err, context.DeadlineExceeded)
	t.Log(err)
	_, err = dm.Resume(ref, devmapper.ResumeOptions{})
	must(t, err)
	// The program ends now. What it had open has to be closed before the device can go.
	for {
		info, err := dm.Info(ref)
		must(t, errors.Join(err, ctx.Err()))
		if info.OpenCount == 0 {
			return
		}
		pooltest.LVM(t, "version")
	}
}
