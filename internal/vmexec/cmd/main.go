// Vmexec runs a program inside a fresh virtual machine that has device-mapper; see package vmexec.
package main

import (
	"os"

	"github.com/dmlayer/dmlayer/internal/vmexec"
)

func main() { os.Exit(vmexec.Main(os.Args)) }
