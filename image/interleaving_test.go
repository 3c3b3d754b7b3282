package image_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// childOperations are what children of this test binary can be stopped in.
var childOperations = pooltest.Operations{
	"load": func(ctx context.Context, j pooltest.Job) error {
		s, err := layer.Open(ctx, layer.Config{Dirs: j.Dirs, Pool: j.Pool})
		if err != nil {
			return err
		}
		_, err = image.Load(ctx, s, j.Args[0], image.LoadOptions{})
		return errors.Join(err, s.Close())
	},
}

// meeting is what B does while A is somewhere in loading two images that share a layer.
type meeting struct {
	name   string
	points []string // where A is
	do     func(ctx context.Context, s *layer.Store) error
	images int // that there are when A has ended well
}

var (
	beforeRecord = []string{"image.load.checked", "image.load.layer-made", "image.load.all-made"}
	afterRecord  = []string{"image.load.recorded"}
	theImages    = []string{"app:1", "example.com:5000/team/other:v2", "other"}
)

var meetings = []meeting{
	{"prune layers", beforeRecord, func(ctx context.Context, s *layer.Store) error {
		_, err := s.Prune(ctx, false)
		return err
	}, 3},
	{"prune images", append(beforeRecord, afterRecord...), func(ctx context.Context, s *layer.Store) error {
		_, err := image.Prune(ctx, s, image.PruneOptions{})
		return err
	}, 3},
	{"remove what is not there yet", beforeRecord, func(ctx context.Context, s *layer.Store) error {
		return wanted(layer.ErrNotFound)(image.Remove(ctx, s, theImages...))
	}, 3},
	{"remove", afterRecord, func(ctx context.Context, s *layer.Store) error {
		_, err := image.Remove(ctx, s, theImages...)
		return err
	}, 0},
	{"tag what is not there yet", beforeRecord, func(ctx context.Context, s *layer.Store) error {
		return wanted(layer.ErrNotFound)(image.Tag(ctx, s, "app:1", "new:1"))
	}, 3},
	{"tag", afterRecord, func(ctx context.Context, s *layer.Store) error {
		_, err := image.Tag(ctx, s, "app:1", "new:1")
		return err
	}, 4},
}

// wanted turns the error that must be into none.
func wanted(class error) func(any, error) error {
	return func(_ any, err error) error {
		if errors.Is(err, class) {
			return nil
		}
		return errors.Join(err, errors.New("should have failed"))
	}
}

// TestInterleavings stops a load and has another process do something to the same images; then the load goes
// on, or is killed and done again.
func TestInterleavings(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	f := image.TwoImages()
	source := archiveFile(t, f)
	for _, m := range meetings {
		for _, point := range m.points {
			for _, killed := range []bool{false, true} {
				t.Run(m.name+" at "+point, func(t *testing.T) { m.play(t, e, f, source, point, killed) })
			}
		}
	}
}

func (m meeting) play(t *testing.T, e *pooltest.Env, f image.Fixture, source, point string, killed bool) {
	ctx := pooltest.Context(t)
	job := pooltest.Job{Op: "load", Dirs: e.Dirs, Pool: e.Name, Args: []string{source}}
	stopped := job
	stopped.Action, stopped.Point = pooltest.ActionStop, point
	a := pooltest.Start(t, stopped)
	a.WaitStopped()
	s := must[*layer.Store](t)(layer.Open(ctx, e.Config()))
	defer s.Close()
	if err := m.do(ctx, s); err != nil {
		t.Fatal(err)
	}
	images := m.images
	if killed {
		a.Kill()
		checkWhole(t, e, f)
		pooltest.Run(t, job).Succeed()
		images = max(images, 3)
	} else {
		a.Continue()
		a.Succeed()
	}
	var refs []string
	for _, i := range must[[]image.Image](t)(image.List(ctx, s)) {
		refs = append(refs, i.Ref)
		for _, l := range i.Layers {
			if err := image.RebuildLayer(ctx, s, l.Name, &bytes.Buffer{}); err != nil {
				t.Error(err)
			}
		}
	}
	if len(refs) != images || images > 0 && !slices.Contains(refs, "app:1") {
		t.Errorf("images %q, want %d", refs, images)
	}
	if err := e.CheckLive(ctx); err != nil {
		t.Error(err)
	}
	finishRemoval(t, e)
}
