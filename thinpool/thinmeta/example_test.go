package thinmeta_test

import (
	"context"
	"fmt"
	"log"

	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta/metagen"
)

// What a pool consists of, how two devices differ, and whether all is well.
// Programs open the metadata device or a copy of it where the example makes
// metadata of its own.
func Example() {
	pool := metagen.New(metagen.Options{})
	pool.Thin(1)
	pool.Write(1, 0, 1000)
	pool.Snap(2, 1)
	pool.Write(2, 100, 20)
	pool.Unmap(2, 990, 10)

	ctx := context.Background()
	m, err := thinmeta.Open(pool.Image(), thinmeta.Options{})
	if err != nil {
		log.Fatal(err)
	}
	usage, err := m.Usage(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, d := range usage.Devices {
		fmt.Printf("device %d: %d blocks, %d of them its own\n", d.ID, d.Mapped, d.Exclusive)
	}
	for d, err := range m.Diff(ctx, 1, 2, thinmeta.DiffOptions{}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s: %d blocks from %d on\n", d.Change, d.Length, d.Begin)
	}
	for r, err := range m.Mappings(ctx, 2) {
		if err != nil {
			log.Print(err) // and go on: the rest can be read
			continue
		}
		fmt.Printf("%d+%d is at %d\n", r.Begin, r.Length, r.Data)
	}
	report, err := m.Check(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(report.Mappings, "mappings, damage:", report.Err())
	// Output:
	// device 1: 1000 blocks, 30 of them its own
	// device 2: 990 blocks, 20 of them its own
	// different: 20 blocks from 100 on
	// left only: 10 blocks from 990 on
	// 0+100 is at 0
	// 100+20 is at 1000
	// 120+870 is at 120
	// 1990 mappings, damage: <nil>
}
