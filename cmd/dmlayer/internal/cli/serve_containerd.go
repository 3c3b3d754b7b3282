package cli

import (
	"cmp"
	"context"

	"github.com/dmlayer/dmlayer/backend/containerd"
	"github.com/dmlayer/dmlayer/layer"
)

// containerdEndpoint is the socket of containerd's proxy plugins.
var containerdEndpoint = endpoint{
	flag: "containerd", value: "/run/dmlayer/containerd.sock",
	usage: "`socket` of the snapshotter and differ for containerd; \"\" is none",
	open: func(ctx context.Context, a *app, store *layer.Store, path string) (endpointServer, error) {
		address := cmp.Or(a.containerdAddress, a.envOr("CONTAINERD_ADDRESS", "/run/containerd/containerd.sock"))
		return containerd.Open(ctx, store, path, address)
	},
}
