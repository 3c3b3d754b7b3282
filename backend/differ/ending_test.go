package differ

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// silent is how often a containerd was asked that does not answer any more, and how often of these without a limit.
type silent struct{ asked, endless int }

func (s *silent) last(ctx context.Context) error {
	s.asked++
	if _, ok := ctx.Deadline(); !ok || ctx.Err() != nil {
		s.endless++
	}
	return context.DeadlineExceeded
}

type silentStore struct {
	content.Store
	*silent
}

func (s silentStore) Abort(ctx context.Context, _ string) error { return s.last(ctx) }

func (s silentStore) Writer(context.Context, ...content.WriterOpt) (content.Writer, error) {
	return silentWriter{}, nil
}

type silentWriter struct{ content.Writer }

func (silentWriter) Truncate(int64) error        { return nil }
func (silentWriter) Write(p []byte) (int, error) { return len(p), nil }
func (silentWriter) Close() error                { return nil }

type silentLeases struct {
	leases.Manager
	*silent
}

func (silentLeases) Create(context.Context, ...leases.Opt) (leases.Lease, error) {
	return leases.Lease{ID: "x"}, nil
}

func (s silentLeases) Delete(ctx context.Context, _ leases.Lease, _ ...leases.DeleteOpt) error {
	return s.last(ctx)
}

func TestContainerdThatDoesNotAnswer(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := &silent{}
	broken := errors.New("broken")
	u := upload{store: silentStore{silent: s}, config: diff.Config{MediaType: ocispec.MediaTypeImageLayer}}
	if _, err := u.run(ctx, func(io.Writer) error { cancel(); return broken }); !errors.Is(err, broken) {
		t.Errorf("upload: %v", err)
	}
	_, release, err := New(nil, nil, silentLeases{silent: s}).leased(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := release(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("release: %v", err)
	}
	if s.asked != 2 || s.endless != 0 {
		t.Errorf("asked %d times, of which %d without a limit", s.asked, s.endless)
	}
}
