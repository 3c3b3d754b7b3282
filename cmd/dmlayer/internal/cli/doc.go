// Package cli is the command line of dmlayer: flags, printing and exit codes. It holds no rules: what
// may be done to a pool or a node is decided by the packages that it calls.
//
// Each verb has one file with an options struct, a constructor for its command and a function that
// does the work on what it is given. Run is the only entry.
package cli
