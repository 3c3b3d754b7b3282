package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/backend/graphdriver"
	"github.com/dmlayer/dmlayer/backend/plugin"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/thinpool"
)

// runBare serves graph drivers that keep nothing: the content of layers is thrown away, and nothing can run. What a container costs on them is dockerd and the
// requests (null, whose containers are folders), and with what the kernel has to do for a driver like dmlayer (bare).
func runBare(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("bench bare", flag.ExitOnError)
	sockets := f.String("sockets", "", "folder for the sockets, null.sock and bare.sock")
	dir := f.String("dir", "", "folder for folders")
	_ = f.Parse(args) // exits
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM)
	defer stop()
	b := &bareDriver{folders: folders{filepath.Join(*dir, "bare")}, made: map[string]thinpool.ID{}}
	ended := make(chan error, 2)
	for name, d := range map[string]graphDriver{"null": folders{filepath.Join(*dir, "null")}, "bare": b} {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "unix", filepath.Join(*sockets, name+".sock"))
		if err != nil {
			return err
		}
		go func() { ended <- serveDriver(d).Serve(ctx, l) }()
	}
	return errors.Join(<-ended, <-ended, b.close())
}

// graphDriver is what of a graph driver matters when a container is created and deleted.
type graphDriver interface {
	create(ctx context.Context, id, parent string) error
	get(id string) (dir string, err error)
	put(id string) error
	remove(id string) error
	exists(id string) bool
}

type bareAnswer struct {
	Dir    string `json:",omitempty"`
	Exists bool   `json:",omitempty"`
	Size   int64  `json:",omitempty"`
}

func serveDriver(d graphDriver) *plugin.Server {
	s := plugin.New(nil, graphdriver.Kind)
	for method, fn := range map[string]func(ctx context.Context, r graphRequest) (bareAnswer, error){
		"CreateReadWrite": func(ctx context.Context, r graphRequest) (bareAnswer, error) {
			return bareAnswer{}, d.create(ctx, r.ID, r.Parent)
		},
		"Get": func(_ context.Context, r graphRequest) (bareAnswer, error) {
			dir, err := d.get(r.ID)
			return bareAnswer{Dir: dir}, err
		},
		"Put":    func(_ context.Context, r graphRequest) (bareAnswer, error) { return bareAnswer{}, d.put(r.ID) },
		"Remove": func(_ context.Context, r graphRequest) (bareAnswer, error) { return bareAnswer{}, d.remove(r.ID) },
		"Exists": func(_ context.Context, r graphRequest) (bareAnswer, error) {
			return bareAnswer{Exists: d.exists(r.ID)}, nil
		},
	} {
		plugin.Handle(s, "GraphDriver."+method, fn)
	}
	for _, method := range []string{"Init", "Create", "Status", "GetMetadata", "Cleanup", "Capabilities", "DiffSize"} {
		plugin.Handle(s, "GraphDriver."+method, func(context.Context, struct{}) (bareAnswer, error) { return bareAnswer{}, nil })
	}
	plugin.HandleUpload(s, "GraphDriver.ApplyDiff", func(_ context.Context, _ url.Values, body io.Reader) (bareAnswer, error) {
		size, err := io.Copy(io.Discard, body)
		return bareAnswer{Size: size}, err
	})
	return s
}

// folders has a folder for each container.
type folders struct{ dir string }

func (f folders) place(id string) string { return filepath.Join(f.dir, filepath.Base(id)) }

func (f folders) create(_ context.Context, id, _ string) error {
	return os.MkdirAll(f.place(id), 0o755)
}
func (f folders) get(id string) (string, error) { return f.place(id), nil }
func (f folders) put(string) error              { return nil }
func (f folders) remove(id string) error        { return os.RemoveAll(f.place(id)) }
func (f folders) exists(id string) bool {
	_, err := os.Stat(f.place(id))
	return err == nil
}

// bareDriver does in dmlayer's pool, on an image that dmlayer has there, what the kernel has to do for a container, and nothing else: the floor of this bench, whose records are
// one fsynced write each. Thin devices are deleted when nothing has happened for a moment.
type bareDriver struct {
	folders
	mu    sync.Mutex
	store *layer.Store
	floor *floor
	image thinpool.ID
	made  map[string]thinpool.ID
	gone  []thinpool.ID
	later *time.Timer
}

// open finds the image that dmlayer has loaded by now.
func (b *bareDriver) open(ctx context.Context) (err error) {
	if b.floor != nil {
		return nil
	}
	dirs := pool.Dirs{Root: os.Getenv("DMLAYER_ROOT"), Run: os.Getenv("DMLAYER_RUN")}
	if b.store == nil {
		if b.store, err = layer.Open(context.WithoutCancel(ctx), layer.Config{Dirs: dirs, Pool: "default"}); err != nil {
			return err
		}
	}
	all, err := b.store.List(ctx)
	if err != nil {
		return err
	}
	name := ""
	for _, n := range all {
		if n.Kind == layer.KindLayer && (name == "" || n.Parent == name) {
			name = n.Name
		}
	}
	if name == "" {
		return errors.New("dmlayer has no image yet")
	}
	b.later = time.AfterFunc(time.Hour, b.deleteGone)
	if b.floor, err = newFloorOf(ctx, &bench{config: config{fs: "ext4"}, dirs: dirs, store: b.store}, name); err == nil {
		b.image = b.floor.origin
	}
	return err
}

func (b *bareDriver) close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.floor != nil {
		b.floor.close()
	}
	if b.store == nil {
		return nil
	}
	return b.store.Close()
}

func (b *bareDriver) create(ctx context.Context, id, parent string) (err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.open(ctx); err != nil {
		return err
	}
	b.floor.origin = b.image
	if thin, ok := b.made[parent]; ok {
		b.floor.origin = thin
	}
	b.made[id], err = b.floor.create()
	return err
}

func (b *bareDriver) get(id string) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.floor.mount, errors.Join(b.floor.activate(b.made[id]), b.floor.mountIt())
}

func (b *bareDriver) put(id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return errors.Join(unix.Unmount(b.floor.mount, 0), b.floor.deactivate(b.made[id]))
}

func (b *bareDriver) remove(id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	thin, ok := b.made[id]
	if !ok {
		return nil
	}
	delete(b.made, id)
	b.gone = append(b.gone, thin)
	b.later.Reset(100 * time.Millisecond)
	return b.floor.write()
}

func (b *bareDriver) deleteGone() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, thin := range b.gone {
		_ = b.floor.delete(thin) // the pool goes with the bench
	}
	b.gone = nil
}

// initFiles writes what Docker puts between an image and a container.
func initFiles(root string) error {
	for _, d := range []string{"dev", "dev/pts", "dev/shm", "proc", "sys", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	for _, f := range []string{".dockerenv", "dev/console", "etc/hostname", "etc/hosts", "etc/resolv.conf"} {
		path := filepath.Join(root, f)
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		if err := os.WriteFile(path, nil, 0o755); err != nil {
			return err
		}
	}
	return errors.Join(os.RemoveAll(filepath.Join(root, "etc/mtab")), os.Symlink("/proc/mounts", filepath.Join(root, "etc/mtab")))
}
