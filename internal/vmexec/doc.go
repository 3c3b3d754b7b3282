// Package vmexec runs a program inside a fresh virtual machine that has device-mapper, for machines
// that have none: `go test -exec` hands it every test binary, `scripts/vm` every command or a shell.
//
// One static binary plays three roles:
//
//   - runner: on the host. It prepares a private folder, takes a core, starts the reaper and copies
//     the job's output and exit code.
//   - reaper: init of a new pid namespace on the host. It starts the virtual machine and ends
//     it when the runner is gone, however the runner went. When the reaper itself is killed, the
//     kernel kills the rest of its namespace.
//   - guest: PID 1 inside the virtual machine. It mounts what a job needs, runs the job, looks for
//     leaks and powers off.
//
// The guest sees the host's root file system read-only, and one private folder of the host (the
// share) read-write. The job travels there as a file, so that quoting and length do not matter,
// and the result starts out as a failure that only a guest that came to its end overwrites.
//
// This is a test tool. It is no part of the dmlayer program and may start other programs itself.
package vmexec

// Exit codes of the runner beside those of the job. They follow timeout(1) where it has one.
const (
	ExitLeak    = 99  // the job succeeded and left something behind
	ExitTimeout = 124 // DMLAYER_VM_TIMEOUT ran out
	ExitHarness = 125 // the virtual machine, not the job, failed
)
