package thinpool_test

import (
	"context"
	"fmt"
	"log"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/devmapper/dmtest"
	"github.com/dmlayer/dmlayer/thinpool"
)

// A pool, a device in it, and a snapshot of the device while it is in use.
// Programs use [devmapper.Open] where the example has a kernel in memory.
func Example() {
	c := dmtest.NewKernel().Client()
	defer c.Close()

	poolInfo, err := thinpool.ActivatePool(c, "pool", "EXAMPLE-pool", devmapper.SectorsOf(10<<30), thinpool.PoolTable{
		Metadata:  devmapper.DevNum{Major: 7, Minor: 0},
		Data:      devmapper.DevNum{Major: 7, Minor: 1},
		BlockSize: 128,
	})
	if err != nil {
		log.Fatal(err)
	}
	pool := thinpool.NewPool(c, devmapper.ByUUID("EXAMPLE-pool"))

	if err := pool.CreateThin(1); err != nil {
		log.Fatal(err)
	}
	thin := thinpool.ThinSpec{Name: "disk", UUID: "EXAMPLE-1", Pool: poolInfo.Dev, ID: 1, Size: devmapper.SectorsOf(1 << 30)}
	if _, err := thinpool.Activate(c, thin); err != nil {
		log.Fatal(err)
	}

	disk := devmapper.ByUUID("EXAMPLE-1")
	if err := c.Suspend(context.Background(), disk, devmapper.SuspendOptions{}); err != nil {
		log.Fatal(err)
	}
	err = pool.CreateSnap(2, 1)
	if _, rerr := c.Resume(disk, devmapper.ResumeOptions{}); rerr != nil {
		log.Fatal(rerr) // whatever became of the snapshot
	}
	if err != nil {
		log.Fatal(err)
	}

	status, err := pool.Status()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(status.Mode, status.FreeData(), "blocks free")
	fmt.Println(pool.CreateSnap(2, 1))
	// Output:
	// rw 163840 blocks free
	// thinpool: create snapshot 2 of thin 1 in pool uuid "EXAMPLE-pool": thin id exists: devmapper: message to uuid "EXAMPLE-pool": file exists (message "create_snap 2 1")
}
