package layer_test

import (
	"context"
	"errors"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// slowChain makes a chain on base in one call of CreateLayers that goes on layer by layer: a step ends when
// its layer is acknowledged, which is when the next one is to be filled.
type slowChain struct {
	names  []string
	begun  chan struct{} // a layer after the first is to be filled
	goOn   chan struct{}
	result chan error
}

func (c *slowChain) start(ctx context.Context, s *layer.Store, _ *pooltest.Env) error {
	c.begun, c.goOn, c.result = make(chan struct{}), make(chan struct{}), make(chan error, 1)
	layers := chainOf("base", c.names...)
	for i := range layers[1:] {
		fill := layers[i+1].Fill
		layers[i+1].Fill = func(ctx context.Context, w *layer.LayerWriter) error {
			c.begun <- struct{}{}
			<-c.goOn
			return fill(ctx, w)
		}
	}
	go func() {
		made, err := s.CreateLayers(ctx, layers)
		if err == nil && len(made) != len(layers) {
			err = errors.New("the chain ended early")
		}
		c.result <- err
	}()
	return c.wait()
}

func (c *slowChain) wait() error {
	select {
	case <-c.begun:
		return nil
	case err := <-c.result:
		return err
	}
}

func (c *slowChain) next(context.Context, *layer.Store, *pooltest.Env) error {
	c.goOn <- struct{}{}
	return c.wait()
}

func (c *slowChain) end(context.Context, *layer.Store, *pooltest.Env) error {
	c.goOn <- struct{}{}
	return <-c.result
}
