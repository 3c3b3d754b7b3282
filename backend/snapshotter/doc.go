// Package snapshotter is a containerd snapshotter on the layers of a pool: each active snapshot is a snapshot of package layer, each committed
// one a layer, and a view of a committed one shares the read-only activation of the layer.
//
// # Keys
//
// A key is never a name or a path: it is looked up among the documents of the pool. So several keys, of any namespace, may stand for one layer,
// also for one that image load has unpacked, and nothing grows with their number.
//
// # Layers that are there
//
// A Prepare that is labelled with the chain id of a layer that the pool has, whoever brought it, commits a key for that layer and
// returns ErrAlreadyExists, so that the client neither fetches nor unpacks it. Where the client prepares layers without their parents, and so
// could not be told, it gets a staged snapshot, whose mounts are read-only, and only commits it.
package snapshotter
