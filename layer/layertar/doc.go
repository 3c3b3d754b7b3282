// Package layertar turns layer tars into the content of a mounted node, and what changed in a node
// into a layer tar.
//
// It works on directories only and knows neither devices nor mounts. A directory is given by its
// path, which may be a magic link such as "/proc/self/fd/7": that is how the root of a detached
// mount is reached. Each function opens the directory once, at its start, and never looks at the
// path again.
//
// The format is the layer format of the OCI image specification (layer.md), which is also what
// `docker save` writes: whiteouts are files ".wh.NAME", an opaque directory holds a file
// ".wh..wh..opq", and both speak of lower layers only, wherever in the archive they stand.
//
// Archives are foreign bytes. Whatever one says, nothing outside the directory is read, written,
// linked to or removed. What no function here defends against is another process that changes the
// same directory at the same time: give it a mount that nobody else can reach.
package layertar
