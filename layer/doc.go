// Package layer keeps nodes: immutable layers, writable snapshots and volumes, each a thin device
// with a record. It is the one place where intent, kernel action and record are ordered, so that no
// instant exists at which a kill or a power cut loses something committed or leaves something behind.
//
// # Creating
//
// A thin id, its lock, create_snap; the work and the flush; one durable record, whose transaction
// checks every precondition again. The record is the commit point: before it, the next open deletes
// the id; after it, the node is whole.
//
// # Chains
//
// Layers one on the other are filled in one mount of a working device where the file system leaves nothing
// to replay when it is frozen. Each becomes a layer as a snapshot of the device, and the last one as the
// device itself. Until then the device is an id in flight, like that of any node that is being made.
//
// # Removing
//
// A durable tombstone is the commit point. Then the device goes, the thin device is deleted, and when
// the pool's status shows that this was committed the tombstone is dropped with the next write.
//
// # Recovery
//
// Open looks at the ids that were in flight and at the tombstones, takes the lock of each without
// waiting, reads the store again, and cleans up what nobody owns. A living owner is never disturbed.
package layer
