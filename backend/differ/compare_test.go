package differ_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/backend/differ"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/treecmp"
)

// comparing is a host with a snapshot that is compared with the layer below it, and containerd's content store on a disk.
type comparing struct {
	*host
	blobs  content.Store
	leases *countedLeases
	differ *differ.Differ
	low    []mount.Mount
	up     []mount.Mount
}

// countedLeases counts the leases that there are.
type countedLeases struct {
	leases.Manager
	n int
}

func (c *countedLeases) Create(_ context.Context, opts ...leases.Opt) (leases.Lease, error) {
	var l leases.Lease
	for _, o := range opts {
		if err := o(&l); err != nil {
			return l, err
		}
	}
	c.n++
	return l, nil
}

func (c *countedLeases) Delete(context.Context, leases.Lease, ...leases.DeleteOpt) error {
	c.n--
	return nil
}

// blobLabels are those that containerd has in its database.
type blobLabels map[digest.Digest]map[string]string

func (b blobLabels) Get(d digest.Digest) (map[string]string, error) { return b[d], nil }

func (b blobLabels) Set(d digest.Digest, set map[string]string) error {
	b[d] = set
	return nil
}

func (b blobLabels) Update(d digest.Digest, set map[string]string) (map[string]string, error) {
	for k, v := range set {
		b[d][k] = v
	}
	return b[d], nil
}

func newComparing(t *testing.T, spec pool.Spec) *comparing {
	t.Helper()
	h := newHost(t, spec)
	blobs, err := local.NewLabeledStore(t.TempDir(), blobLabels{})
	must(t, err)
	c := &comparing{host: h, blobs: blobs, leases: &countedLeases{}}
	c.differ = differ.New(h.store, blobs, c.leases)
	base := pack(t, dir("d"), file("d/one", "1"), file("d/two", "2"), dir("d/sub"), file("d/sub/deep", "x"), file("f", "file"), dir("e"), file("e/gone", "2"))
	m := h.prepare("base-active", "")
	_, err = h.differ.Apply(h.context(), h.put(base, ocispec.MediaTypeImageLayer), m)
	must(t, err)
	must(t, h.sn.Commit(h.context(), "base", "base-active"))
	c.low, err = h.sn.View(h.context(), "low", "base")
	must(t, err)
	c.up = h.prepare("up", "base")
	return c
}

// change does to the snapshot what containers do.
func change(t *testing.T, root string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(root, name) }
	must(t, errors.Join(
		os.WriteFile(at("f"), []byte("changed"), 0o600), os.Remove(at("d/one")), os.RemoveAll(at("e")), os.WriteFile(at("e"), []byte("file"), 0o644),
		os.Chmod(at("d/two"), 0o4711), os.Lchown(at("d/sub"), 1000, 1001), os.MkdirAll(at("n/o"), 0o700), os.Symlink("../x", at("n/link")),
		os.WriteFile(at("n/o/p"), make([]byte, 100_000), 0o644), os.Link(at("n/o/p"), at("n/hard")), os.Link(at("d/sub/deep"), at("n/deep")),
		unix.Mkfifo(at("n/fifo"), 0o600), unix.Mknod(at("n/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Lsetxattr(at("f"), "user.k", []byte("v"), 0), os.Chtimes(at("n/o"), time.Time{}, time.Unix(-1000, 5)), os.WriteFile(at("n/ä\nö"), nil, 0o644)))
}

func TestCompareRoundTrip(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			c := newComparing(t, pool.Spec{FS: fs})
			c.mounted([][]mount.Mount{c.up}, func(dirs []string) {
				change(t, dirs[0])
				for _, mediaType := range []string{"", ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerZstd} {
					c.roundTrip(t, mediaType, dirs[0])
				}
			})
			c.uploads(t, 3)
		})
	}
}

// roundTrip makes a layer of what the mounted snapshot has, and expects the same of another one to which that is applied.
func (c *comparing) roundTrip(t *testing.T, mediaType, root string) {
	t.Helper()
	desc, err := c.differ.Compare(c.context(), c.low, c.up, diff.WithMediaType(mediaType), diff.WithLabels(map[string]string{"mine": "kept"}))
	must(t, err)
	if mediaType == "" {
		mediaType = ocispec.MediaTypeImageLayerGzip
	}
	data, err := content.ReadBlob(c.context(), c.blobs, desc)
	must(t, err)
	if desc.MediaType != mediaType || desc.Digest != digest.FromBytes(data) || desc.Size != int64(len(data)) {
		t.Errorf("%s: %+v of %d bytes", mediaType, desc, len(data))
	}
	key := "again-" + mediaType
	m := c.prepare(key, "base")
	plain, err := c.host.differ.Apply(c.context(), c.put(data, desc.MediaType), m)
	must(t, err)
	info, err := c.blobs.Info(c.context(), desc.Digest)
	if err != nil || info.Labels[labels.LabelUncompressed] != plain.Digest.String() || info.Labels["mine"] != "kept" {
		t.Errorf("%s: labels %v, %v; it is %s", mediaType, info.Labels, err, plain.Digest)
	}
	c.mounted([][]mount.Mount{m}, func(dirs []string) {
		found, err := treecmp.Compare(root, dirs[0], treecmp.Options{})
		must(t, err)
		for _, d := range found {
			t.Errorf("%s: %s", mediaType, d)
		}
	})
}

// uploads expects that many leases, and none of the uploads that have not ended.
func (c *comparing) uploads(t *testing.T, leases int) {
	t.Helper()
	left, err := c.blobs.ListStatuses(c.context())
	if err != nil || len(left) > 0 || c.leases.n != leases {
		t.Errorf("left are the uploads %v (%v) and %d leases, want %d", left, err, c.leases.n, leases)
	}
}

func TestCompareRefused(t *testing.T) {
	c := newComparing(t, pool.Spec{})
	other := []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"upperdir=/tmp"}}}
	now := time.Now()
	for name, r := range map[string]struct {
		low, up []mount.Mount
		opt     diff.Opt
	}{
		"no lower":      {nil, c.up, diff.WithMediaType("")},
		"no upper":      {c.low, nil, diff.WithMediaType("")},
		"two":           {c.low, slices.Concat(c.up, c.up), diff.WithMediaType("")},
		"lower overlay": {other, c.up, diff.WithMediaType("")},
		"upper overlay": {c.low, other, diff.WithMediaType("")},
		"media type":    {c.low, c.up, diff.WithMediaType("application/x")},
		"erofs":         {c.low, c.up, diff.WithMediaType("application/vnd.erofs.layer.v1")},
		"epoch":         {c.low, c.up, diff.WithSourceDateEpoch(&now)},
	} {
		if _, err := c.differ.Compare(c.context(), r.low, r.up, r.opt); !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c.uploads(t, 0)
	// No differ can say it in a layer: containerd's would take it for a deletion.
	c.mounted([][]mount.Mount{c.up}, func(dirs []string) {
		must(t, os.WriteFile(filepath.Join(dirs[0], ".wh.f"), nil, 0o600))
		if _, err := c.differ.Compare(c.context(), c.low, c.up); !errdefs.IsInvalidArgument(err) {
			t.Errorf("a name that no layer can have: %v", err)
		}
		must(t, os.Remove(filepath.Join(dirs[0], ".wh.f")))
	})
	c.uploads(t, 0)
	gone := []mount.Mount{{Type: c.up[0].Type, Source: filepath.Join(filepath.Dir(c.up[0].Source), "no-such"), Options: c.up[0].Options}}
	if _, err := c.differ.Compare(c.context(), c.low, gone); !errdefs.IsNotFound(err) {
		t.Errorf("no such snapshot: %v", err)
	}
	c.uploads(t, 0)
}

// asked is a context that ends when it is asked for the n-th time whether it has.
type asked struct {
	context.Context
	n      int
	cancel context.CancelFunc
}

func (a *asked) Err() error {
	if a.n--; a.n == 0 {
		a.cancel()
	}
	return a.Context.Err()
}

// TestCompareCancelled lets the client go at each crash point, and at each entry of the layer.
func TestCompareCancelled(t *testing.T) {
	c := newComparing(t, pool.Spec{})
	c.mounted([][]mount.Mount{c.up}, func(dirs []string) { change(t, dirs[0]) })
	made := 0
	compare := func(ctx context.Context) {
		_, err := c.differ.Compare(ctx, c.low, c.up)
		if err == nil {
			made++
		} else if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		c.uploads(t, made)
	}
	for hit, seen := 1, 1; seen >= hit; hit++ {
		ctx, cancel := context.WithCancel(c.context())
		seen = 0
		fault.Set(func(string) error {
			if seen++; seen == hit {
				cancel()
			}
			return nil
		})
		compare(ctx)
		fault.Set(nil)
		cancel()
	}
	for n, last := 1, false; !last; n += min(n, 8) {
		ctx, cancel := context.WithCancel(c.context())
		a := &asked{ctx, n, cancel}
		compare(a)
		last = a.n > 0
		cancel()
	}
	if made == 0 {
		t.Error("none was made")
	}
	must(t, c.pool.CheckLive(c.context()))
}
