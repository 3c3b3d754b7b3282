// Package lvm is a client of lvm2's programs. It starts them through internal/run, reads every property
// from their JSON reports, with units of bytes, and never from what they say to people.
//
// lvm2 tells failures apart by prose only: its exit code is 5 for nearly all of them. So a command that has failed is explained by
// looking again at what is there.
//
// All functions are safe for concurrent use; lvm2's own locks keep its programs apart, also from those of others. A
// program outlives this process once it was started, as half of its work is worse than all of it; a context that
// ends still ends it.
package lvm
