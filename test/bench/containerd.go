package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	endpoint "github.com/dmlayer/dmlayer/backend/containerd"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/service"
)

// snapshotsConfig says what `bench containerd` measures beside what imagesConfig says.
type snapshotsConfig struct {
	sizes    []int
	together int
	usages   int
	unpacks  int
	many     int
	skip     string
}

// snapshotsBench measures dmlayer serve as a snapshotter, and containerd's own snapshotters, each through its socket.
type snapshotsBench struct {
	*imagesBench
	snapshotsConfig
	serve *exec.Cmd
	made  int // snapshots that are there
	empty *grpc.ClientConn
}

func runContainerd(ctx context.Context, args []string) (err error) {
	b := &snapshotsBench{imagesBench: &imagesBench{imagesConfig: imagesConfig{size: 20 << 30}}}
	f := flag.NewFlagSet("bench containerd", flag.ExitOnError)
	f.StringVar(&b.dir, "dir", os.TempDir(), "folder for the pool, on the file system to measure on")
	f.StringVar(&b.images, "images", ".cache/images", "folder with the images that scripts/images builds")
	f.StringVar(&b.image, "image", "large", "name of the image to unpack")
	f.StringVar(&b.fs, "fs", "ext4", "file system of the pool")
	f.IntVar(&b.rounds, "rounds", 20, "rounds of each kind and size")
	f.StringVar(&b.command, "command", "", "the dmlayer binary")
	f.StringVar(&b.peers, "peers", "", "folder with containerd and ctr")
	sizes := f.String("sizes", "10,2000", "how many other snapshots there are, ascending")
	f.IntVar(&b.together, "together", 50, "how many are prepared at once")
	f.IntVar(&b.usages, "usages", 2000, "of how many snapshots the usage is asked, one by one")
	f.IntVar(&b.unpacks, "unpacks", 2, "how often the image is unpacked by each; 0: not at all")
	f.StringVar(&b.skip, "skip", "", "rows to leave out, with commas: those of containerd's devmapper take minutes under QEMU")
	f.StringVar(&b.profile, "profile", "", "serve in this process, measure only dmlayer's rounds, and write a CPU profile of that")
	f.IntVar(&b.many, "many", 10000, "snapshots with which the memory of serve is measured; 0: it is not")
	_ = f.Parse(args) // exits
	for text := range strings.SplitSeq(*sizes, ",") {
		var n int
		if _, err := fmt.Sscan(text, &n); err != nil {
			return fmt.Errorf("-sizes %q: %w", *sizes, err)
		}
		b.sizes = append(b.sizes, n)
	}
	if b.unpacks > 0 {
		if err := touchMemory(); err != nil {
			return err
		}
	}
	with := b.withServe
	if b.profile != "" {
		with = b.withServeHere
	}
	return b.withImage(ctx, func() error {
		defer b.forgetClaims()
		return with(ctx, func(socket string) error {
			return b.withContainerd(ctx, socket, func(c *containerd) error { return b.all(ctx, socket, c) })
		})
	})
}

// forgetClaims has the pool destroyed with thousands of snapshots that nobody has removed, as after a reboot.
func (b *snapshotsBench) forgetClaims() { _ = os.RemoveAll(b.store.Pool().ClaimDir()) }

// withServe runs fn while dmlayer serve listens on a socket.
func (b *snapshotsBench) withServe(ctx context.Context, fn func(socket string) error) (err error) {
	socket := filepath.Join(b.dirs.Run, "serve", "containerd.sock")
	b.serve = b.dmlayer(ctx, "serve", "--containerd", socket, "--docker", "")
	b.serve.Env = append(os.Environ(), "CONTAINERD_ADDRESS="+b.peerSocket())
	b.serve.Stderr = os.Stderr
	b.serve.Args = append(b.serve.Args, "--log-level", "error")
	if err := b.serve.Start(); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, b.serve.Process.Signal(unix.SIGTERM), b.serve.Wait())
	}()
	return b.withEmpty(ctx, socket, fn)
}

// withServeHere does the same in this process.
func (b *snapshotsBench) withServeHere(ctx context.Context, fn func(socket string) error) (err error) {
	socket := filepath.Join(b.dirs.Run, "serve", "containerd.sock")
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	open := func(ctx context.Context, s *layer.Store) (service.Endpoint, error) {
		return endpoint.Open(ctx, s, socket, b.peerSocket())
	}
	go func() {
		ended <- service.Run(ctx, service.Config{Dirs: b.dirs, Pool: imagesPool, Endpoints: []service.Opener{open}})
	}()
	defer func() {
		cancel()
		err = errors.Join(err, <-ended)
	}()
	return b.withEmpty(ctx, socket, fn)
}

// withEmpty runs fn once a socket is answered.
func (b *snapshotsBench) withEmpty(ctx context.Context, socket string, fn func(socket string) error) (err error) {
	if b.empty, err = dial(socket); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.empty.Close()) }()
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := b.emptyCall(wait, grpc.WaitForReady(true)); err != nil {
		return fmt.Errorf("dmlayer serve does not answer: %w", err)
	}
	return fn(socket)
}

func dial(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// emptyCall asks for a method that nobody has: what any call costs.
func (b *snapshotsBench) emptyCall(ctx context.Context, opts ...grpc.CallOption) error {
	err := b.empty.Invoke(ctx, "/dmlayer.bench/Empty", &emptypb.Empty{}, &emptypb.Empty{}, opts...)
	if status.Code(err) != codes.Unimplemented {
		return fmt.Errorf("an empty call: %w", err)
	}
	return nil
}

// all measures everything. What has containerd collect garbage comes first: dmlayer's snapshots that containerd was not asked for are garbage to it.
func (b *snapshotsBench) all(ctx context.Context, socket string, c *containerd) (err error) {
	peers, err := dial(c.socket)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, peers.Close()) }()
	if err := collect(ctx, peers); err != nil {
		return err
	}
	if b.unpacks > 0 && b.profile == "" {
		if err := b.unpack(ctx, c); err != nil {
			return err
		}
	}
	dir := filepath.Join(b.dirs.Run, "target")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	client := func(name string, conn *grpc.ClientConn, snapshotter string) *snapshotClient {
		sn := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), snapshotter)
		return &snapshotClient{name: name, sn: sn, dir: dir, conn: conn}
	}
	clients := []*snapshotClient{
		client("dmlayer", b.empty, ""),
		client("containerd dmlayer", peers, "dmlayer"),
		client("containerd overlayfs", peers, "overlayfs"),
		client("containerd devmapper", peers, "devmapper"),
	}
	clients = slices.DeleteFunc(clients, func(c *snapshotClient) bool { return slices.Contains(strings.Split(b.skip, ","), c.name) })
	if b.profile != "" {
		return b.profiled(ctx, clients[0])
	}
	if err := b.collections(ctx, peers, clients[1:]); err != nil {
		return err
	}
	if err := clients[0].base(ctx); err != nil {
		return fmt.Errorf("%s: %w", clients[0].name, err)
	}
	floor, err := b.floor(ctx)
	if err != nil {
		return err
	}
	defer floor.close()
	for _, n := range b.sizes {
		if err := b.populate(ctx, clients[0], n); err != nil {
			return err
		}
		if err := b.table(ctx, n, floor, clients); err != nil {
			return err
		}
	}
	return b.memory(ctx, clients[0])
}

// floor is that of the rounds, on a parent of its own.
func (b *snapshotsBench) floor(ctx context.Context) (*floor, error) {
	_, err := b.store.CreateLayer(ctx, parent, layer.LayerOptions{}, func(_ context.Context, w *layer.LayerWriter) error {
		return os.WriteFile(filepath.Join(w.Root(), "file"), []byte("content"), 0o644)
	})
	if err != nil {
		return nil, err
	}
	return newFloor(ctx, &bench{config: config{fs: b.fs}, dirs: b.dirs, store: b.store})
}

// unpack measures the image with each snapshotter.
func (b *snapshotsBench) unpack(ctx context.Context, c *containerd) error {
	var kinds []loadKind
	for _, s := range []string{"overlayfs", "dmlayer", "devmapper"} {
		kinds = append(kinds, loadKind{"containerd " + s, c.round(s)})
	}
	results := make([]loadResults, len(kinds))
	for range b.unpacks {
		for i, k := range kinds {
			t := &loadTimer{}
			if err := k.run(ctx, t); err != nil {
				return fmt.Errorf("%s: %w", k.name, err)
			}
			results[i].add(t)
		}
	}
	b.printUnpack(kinds, results)
	return nil
}

// populate makes snapshots until there are as many: a device each.
func (b *snapshotsBench) populate(ctx context.Context, c *snapshotClient, n int) error {
	ctx = c.context(ctx)
	for ; b.made < n; b.made++ {
		if _, err := c.sn.Prepare(ctx, fmt.Sprintf("other-%d", b.made), baseKey); err != nil {
			return err
		}
	}
	return nil
}

// profiled writes a profile of rounds.
func (b *snapshotsBench) profiled(ctx context.Context, c *snapshotClient) error {
	if err := errors.Join(c.base(ctx), b.populate(ctx, c, b.sizes[0])); err != nil {
		return err
	}
	stop, err := startProfile(b.profile)
	if err != nil {
		return err
	}
	defer stop()
	var times series
	for range b.rounds {
		t := &timer{}
		if err := c.round(ctx, t); err != nil {
			return err
		}
		times.add(t)
	}
	b.printRounds(b.sizes[0], []kind{{"dmlayer", nil}}, []series{times})
	return nil
}

// memory tells what serve needs with very many snapshots, most of them views and thus without a device of their own, after it was asked for all.
func (b *snapshotsBench) memory(ctx context.Context, c *snapshotClient) error {
	if b.many == 0 {
		return nil
	}
	in := c.context(ctx)
	for ; b.made < b.many; b.made++ {
		if _, err := c.sn.View(in, fmt.Sprintf("other-%d", b.made), baseKey); err != nil {
			return err
		}
	}
	n, err := c.walk(in)
	if err != nil {
		return err
	}
	if _, err := c.sn.Usage(in, "other-0"); err != nil {
		return err
	}
	now, err := memoryOf(b.serve.Process.Pid, "VmRSS")
	if err != nil {
		return err
	}
	peak, err := peakOf(b.serve.Process.Pid)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(os.Stdout, "memory of serve with %d snapshots, after a walk over all and a usage: %.1f MiB resident, peak %.1f MiB\n",
		n, float64(now)/(1<<20), float64(peak)/(1<<20))
	return err
}
