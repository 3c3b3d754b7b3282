package image

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"
)

func TestLoadInParallel(t *testing.T) {
	s := newFakeStore(t)
	source := write(t, tarOf(dockerFiles(gzipped, appImage, otherImage)...))
	errc := make(chan error)
	for range 4 {
		go func() {
			_, err := load(t.Context(), s, source, LoadOptions{})
			errc <- err
		}()
	}
	for range 4 {
		if err := <-errc; err != nil {
			t.Error(err)
		}
	}
	checkApp(t, s)
	if len(s.fills) != 3 {
		t.Errorf("%d layers were unpacked, want 3", len(s.fills))
	}
}

// TestLoadAgainstRemoval takes layers away between their making and the record, as removing an image
// that shares them does.
func TestLoadAgainstRemoval(t *testing.T) {
	source := write(t, tarOf(dockerFiles(plain, appImage)...))
	t.Run("before the record", func(t *testing.T) {
		s := newFakeStore(t)
		times := 0
		s.beforeUpdate = func() {
			if times++; times <= 2 {
				_ = s.Remove(context.Background(), appImage.layerName(1))
				_ = s.Remove(context.Background(), appImage.layerName(0))
			}
		}
		if _, err := load(t.Context(), s, source, LoadOptions{}); err != nil {
			t.Fatal(err)
		}
		s.beforeUpdate = nil
		checkApp(t, s)
	})
	t.Run("before the child", func(t *testing.T) {
		s := newFakeStore(t)
		times := 0
		s.beforeCreate = func() {
			if times++; times == 2 {
				_ = s.Remove(context.Background(), appImage.layerName(0))
			}
		}
		if _, err := load(t.Context(), s, source, LoadOptions{}); err != nil {
			t.Fatal(err)
		}
		checkApp(t, s)
	})
	t.Run("for ever", func(t *testing.T) {
		s := newFakeStore(t)
		s.beforeUpdate = func() { _ = s.Remove(context.Background(), appImage.layerName(1)) }
		if _, err := load(t.Context(), s, source, LoadOptions{}); !errors.Is(err, errVanished) {
			t.Errorf("load: %v", err)
		}
		if got := s.names(); !slices.Equal(got, []string{appImage.layerName(0)}) || len(s.docs) > 0 {
			t.Errorf("left: %q, %d documents", got, len(s.docs))
		}
	})
}

// TestLoadCancelled cancels a load in its second layer: the first stays, and the next load goes on from it.
func TestLoadCancelled(t *testing.T) {
	for _, at := range []Stage{StageWaiting, StageUnpack} {
		s := newFakeStore(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		o := LoadOptions{Progress: func(e Event) {
			if e.Stage == at && e.Layer == appImage.layerName(1) {
				cancel()
			}
		}}
		source := write(t, tarOf(dockerFiles(plain, appImage)...))
		if _, err := load(ctx, s, source, o); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", at, err)
		}
		var want []string
		if at == StageUnpack {
			want = append(want, appImage.layerName(0))
		}
		if got := s.names(); !slices.Equal(got, want) || len(s.docs) > 0 {
			t.Errorf("%s: left %q and %d documents, want %q", at, got, len(s.docs), want)
		}
		s.fills = nil
		if _, err := load(t.Context(), s, source, LoadOptions{}); err != nil {
			t.Fatal(err)
		}
		checkApp(t, s)
		if len(s.fills)+len(want) != 2 {
			t.Errorf("%s: the second load unpacked %q", at, s.fills)
		}
	}
}

// TestLoadStreamCancelled cancels a load whose input never comes.
func TestLoadStreamCancelled(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := load(ctx, newFakeStore(t), "-", LoadOptions{Input: r}); !errors.Is(err, context.Canceled) {
		t.Errorf("load: %v", err)
	}
}

// TestLoadGoesOn loads an image of which a killed load has left a layer without a record.
func TestLoadGoesOn(t *testing.T) {
	s := newFakeStore(t)
	source := write(t, tarOf(ociFiles(gzipped, appImage)...))
	if _, err := load(t.Context(), s, source, LoadOptions{}); err != nil {
		t.Fatal(err)
	}
	clear(s.docs)
	if err := s.Remove(t.Context(), appImage.layerName(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := load(t.Context(), s, source, LoadOptions{}); err != nil {
		t.Fatal(err)
	}
	checkApp(t, s)
	if len(s.fills) != 3 {
		t.Errorf("%d layers were unpacked, want 3", len(s.fills))
	}
}
