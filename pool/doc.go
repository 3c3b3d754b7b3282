// Package pool turns a recorded description into a running thin pool and back: it makes, starts,
// stops and destroys pools, keeps the record store and the kernel's pool paired, hands out thin ids
// and holds the locks that let any number of processes share a pool. What the thin devices mean is
// the business of package layer.
//
// # Locks
//
// A pool has one lock file in the run directory. An operation is a Session: one open description of
// that file, whose byte-range locks the kernel drops when the process dies. The order is: chain,
// start/stop (shared), ids ascending, pool lock, new id (tried only), store.
package pool
