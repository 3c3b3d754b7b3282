package cli

import (
	"context"
	"errors"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/service"
)

// endpoint is a socket that serve offers. Its flag takes another socket, and nothing switches it off.
type endpoint struct {
	flag, value, usage string
	open               func(ctx context.Context, a *app, store *layer.Store, socket string) (endpointServer, error)
}

// endpointServer is what an endpoint opened: see service.Endpoint.
type endpointServer = service.Endpoint

// endpoints are the sockets of serve, in the order of its help.
var endpoints = []endpoint{containerdEndpoint, dockerEndpoint}

func (a *app) newServe() *cobra.Command {
	sockets := make([]string, len(endpoints))
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Watch a pool, grow it and finish what others left",
		Long: `Works on the pool of --pool until it is told to stop: grows it before it is full, finishes removals and what
dead processes left, and copies the records now and then. It stays in the foreground and logs to standard error;
systemd is told when it is ready. A disk of the pool that is not there yet, as after a boot, is waited for. SIGHUP
has it look at everything again. SIGTERM and SIGINT end it once what is running is done (exit 0); mounts stay as they are.`,
		Example: "  dmlayer serve\n  dmlayer serve --pool fast --log-level debug",
		GroupID: groupService,
		Args:    args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.needRoot(cmd); err != nil {
				return err
			}
			return a.serve(cmd, sockets)
		},
	}
	for i, e := range endpoints {
		cmd.Flags().StringVar(&sockets[i], e.flag, e.value, e.usage)
	}
	cmd.Flags().StringVar(&a.containerdAddress, "containerd-address", "", "containerd's own `socket`, for the layers that the differ reads and writes "+
		"($CONTAINERD_ADDRESS, /run/containerd/containerd.sock)")
	return exitCodes(cmd, 3, 5, 6, 7, 8)
}

func (a *app) serve(cmd *cobra.Command, sockets []string) error {
	again := make(chan struct{}, 1)
	hangup := func() {
		select {
		case again <- struct{}{}:
		default:
		}
	}
	a.hangup.Store(&hangup)
	c := service.Config{Dirs: a.dirs(), Pool: a.flags.pool, Logger: a.serviceLogger(cmd), Again: again}
	for i, e := range endpoints {
		if sockets[i] != "" {
			c.Endpoints = append(c.Endpoints, func(ctx context.Context, s *layer.Store) (service.Endpoint, error) {
				return e.open(ctx, a, s, sockets[i])
			})
		}
	}
	err := service.Run(cmd.Context(), c)
	if errors.As(context.Cause(cmd.Context()), &interrupted{}) && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// serviceLogger says more than that of a command, which has its own way to tell what it did.
func (a *app) serviceLogger(cmd *cobra.Command) *slog.Logger {
	if !cmd.Flags().Changed("log-level") {
		a.flags.logLevel = "info"
	}
	return a.logger()
}
