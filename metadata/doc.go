// Package metadata keeps a pool's records: what exists, who descends from whom, what is being
// deleted, and which window of thin ids is in use. It is the truth about what exists; it knows no
// kernel and never says what is active.
//
// A pool has one store, one bbolt file, which any number of processes share: each transaction takes the
// caller's lock and bbolt's for as long as it runs. Between transactions the file stays mapped but not
// locked; if another process has changed it meanwhile, it is opened anew. An Update that returned nil is
// on the disk.
//
// A Store is safe for concurrent use; transactions are not.
package metadata
