package devmapper_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/devmapper/dmtest"
)

// A device of 1 MiB that reads as zeros, from its creation to its removal.
// Programs use [devmapper.Open] where the example has a kernel in memory.
func Example() {
	c := dmtest.NewKernel().Client()
	defer c.Close()

	name, err := devmapper.NewName("zeros")
	if err != nil {
		log.Fatal(err)
	}
	info, err := c.Create(name, "EXAMPLE-zeros")
	if err != nil {
		log.Fatal(err)
	}
	zeros := devmapper.ByName(name)
	if err := c.Load(zeros, devmapper.LoadOptions{}, devmapper.Target{Length: 2048, Type: "zero"}); err != nil {
		log.Fatal(err)
	}
	if _, err := c.Resume(zeros, devmapper.ResumeOptions{}); err != nil {
		log.Fatal(err)
	}
	fmt.Println("device", info.Dev)

	table, err := c.Table(zeros)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("table ", table[0])

	if _, err := c.Create(name, ""); errors.Is(err, devmapper.ErrExists) {
		fmt.Println("error ", err)
	}
	if _, err := c.Remove(zeros, devmapper.RemoveOptions{}); err != nil {
		log.Fatal(err)
	}
	// Output:
	// device 254:0
	// table  0 2048 zero
	// error  devmapper: create "zeros": device or resource busy
}

// Waiting for a pool to run low, without a thread that blocks in the kernel.
func ExampleClient_Events() {
	c, err := devmapper.Open()
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := contextUntilSignal()
	defer cancel()

	events, err := c.Events(ctx)
	if err != nil {
		log.Fatal(err)
	}
	seen := make(map[devmapper.UUID]uint32)
	for {
		devices, err := c.List("EXAMPLE-")
		if err != nil {
			log.Fatal(err)
		}
		for _, d := range devices {
			if d.EventNr != seen[d.UUID] {
				seen[d.UUID] = d.EventNr
				fmt.Println("something happened to", d.Name)
			}
		}
		if _, ok := <-events; !ok {
			return
		}
	}
}

func contextUntilSignal() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), os.Interrupt)
}
