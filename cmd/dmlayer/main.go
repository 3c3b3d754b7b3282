// Command dmlayer keeps image layers, container and VM disks as thin devices in a device-mapper pool.
package main

import (
	"context"
	"os"

	"github.com/dmlayer/dmlayer/cmd/dmlayer/internal/cli"
)

func main() {
	os.Exit(cli.Run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
