// Package metadata keeps a pool's records: what exists, who descends from whom, what is being
// deleted, and which window of thin ids is in use. It is the truth about what exists; it knows no
// kernel and never says what is active.
//
// A pool has one store, one bbolt file. Nobody keeps it open between transactions, so that any
// number of processes share it: each transaction takes the caller's lock, opens the file, runs and
// closes it. An Update that returned nil is on the disk.
//
// A Store is safe for concurrent use; transactions are not.
package metadata
