package cli

import (
	"context"
	"log/slog"
	"sync"

	"github.com/dmlayer/dmlayer/backend/graphdriver"
	"github.com/dmlayer/dmlayer/backend/plugin"
	"github.com/dmlayer/dmlayer/backend/volume"
	"github.com/dmlayer/dmlayer/internal/socket"
	"github.com/dmlayer/dmlayer/layer"
)

// dockerEndpoint serves Docker's graph driver and volume plugins on one socket. The file's name is the plugin's.
var dockerEndpoint = endpoint{
	flag: "docker", value: "/run/docker/plugins/dmlayer.sock",
	usage: "`socket` of Docker's graph driver and volume plugins; \"\" is none", open: openDocker,
}

// dockerServer is the endpoint once it has its socket.
type dockerServer struct {
	plugin   *plugin.Server
	listener *socket.Listener
	volumes  *volume.Driver
	log      *slog.Logger
}

func openDocker(ctx context.Context, a *app, store *layer.Store, path string) (endpointServer, error) {
	log := a.logger()
	failed := func(method string, err error) {
		log.Warn("request of Docker failed", slog.String("method", method), slog.Any("error", err))
	}
	p := plugin.New(failed, graphdriver.Kind, volume.Kind)
	graph, err := graphdriver.New(ctx, store)
	if err != nil {
		return nil, err
	}
	graph.Register(p)
	volumes := volume.New(store)
	volumes.Register(p)
	l, err := socket.Listen(ctx, path)
	if err != nil {
		return nil, err
	}
	return dockerServer{p, l, volumes, log}, nil
}

func (s dockerServer) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var dead sync.WaitGroup
	dead.Go(func() {
		s.volumes.Run(ctx, func(err error) { s.log.Warn("volumes of a Docker that has died stay mounted", slog.Any("error", err)) })
	})
	defer dead.Wait()
	defer cancel()
	return s.plugin.Serve(ctx, s.listener)
}
