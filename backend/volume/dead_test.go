package volume_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/backend/volume"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/plugintest"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// dockerdSocket makes this program a dockerd that asks what it is told on standard input, and says what is answered.
const dockerdSocket = "DMLAYER_TEST_DOCKERD"

func beDockerd(socket string) {
	c := plugintest.NewClient(socket)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var method string
		var r request
		_, err := fmt.Sscan(lines.Text(), &method, &r.Name, &r.ID)
		var a answer
		if err == nil {
			err = c.Call(method, r, &a)
		}
		if err != nil {
			fmt.Println("failed:", err)
		} else {
			fmt.Println(a.Mountpoint)
		}
	}
}

// child is another process that takes lines and gives one for each.
type child struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func start(t testing.TB, cmd *exec.Cmd) *child {
	t.Helper()
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	c := &child{t, cmd, in, bufio.NewReader(out)}
	t.Cleanup(c.kill)
	return c
}

func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

func (c *child) hear() string {
	c.t.Helper()
	line, err := c.out.ReadString('\n')
	must(c.t, err)
	return strings.TrimSpace(line)
}

func (c *child) ask(method, name, id string) string {
	c.t.Helper()
	_, err := fmt.Fprintln(c.in, method, name, id)
	must(c.t, err)
	return c.hear()
}

func (d *docker) dockerd() *child {
	d.t.Helper()
	self, err := os.Executable()
	must(d.t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), dockerdSocket+"="+d.Socket)
	return start(d.t, cmd)
}

// container is a process that has a directory mounted elsewhere, in a mount namespace of its own.
func container(t testing.TB, dir string) *child {
	t.Helper()
	c := start(t, exec.Command("unshare", "--mount", "sh", "-c", `mount --bind "$1" "$2" && umount "$1" && echo runs; read -r word`, "sh", dir, t.TempDir()))
	if said := c.hear(); said != "runs" {
		t.Fatal(said)
	}
	return c
}

// kept looks for the dead, as another dmlayer would, and fails where it does not leave so many volumes mounted.
func (d *docker) kept(want int) {
	d.t.Helper()
	have, err := volume.New(d.e.Open(d.t)).DismissDead(pooltest.Context(d.t))
	must(d.t, err)
	if have != want {
		d.t.Errorf("%d volumes are kept, want %d", have, want)
	}
}

func (d *docker) mounted(name string, want bool) {
	d.t.Helper()
	if have := d.call("Path", request{Name: name}).Mountpoint != ""; have != want {
		d.t.Errorf("%s is mounted: %v, want %v", name, have, want)
	}
}

// TestDeadDockerd: what a dockerd that was killed had mounted goes, but not under a container that lives on.
func TestDeadDockerd(t *testing.T) {
	d := newDocker(t, pooltest.New(t, pool.Spec{}))
	d.call("Create", request{Name: "data"})
	d.call("Create", request{Name: "other"})
	first, second := d.dockerd(), d.dockerd()
	dir := first.ask("VolumeDriver.Mount", "data", "one")
	first.ask("VolumeDriver.Mount", "other", "one")
	alive := container(t, dir)
	// A mount namespace that was made meanwhile, such as that of a service, has copies of all mounts.
	service := start(t, exec.Command("unshare", "--mount", "sh", "-c", "echo runs; read -r word"))
	service.hear()

	d.kept(0) // nobody has died
	d.mounted("data", true)
	d.mounted("other", true)
	first.kill()
	d.kept(1)
	d.mounted("data", true)
	d.mounted("other", false)
	service.kill()
	d.kept(1)

	// With another dockerd's container beside it nobody knows whose the mount is.
	if again := second.ask("VolumeDriver.Mount", "data", "two"); again != dir {
		t.Errorf("mounted on %q and %q", dir, again)
	}
	d.kept(1)
	second.ask("VolumeDriver.Unmount", "data", "two")
	d.mounted("data", true)
	// The container is started again, with the word that its dockerd had.
	alive.kill()
	second.ask("VolumeDriver.Mount", "data", "one")
	d.kept(0)
	d.mounted("data", true)
	second.ask("VolumeDriver.Unmount", "data", "one")
	d.mounted("data", false)

	// A process that works in a volume keeps it, too; and whose dockerd lives is not the dead one's.
	dir = second.ask("VolumeDriver.Mount", "data", "three")
	third := d.dockerd()
	third.ask("VolumeDriver.Mount", "data", "four")
	f, err := os.Create(filepath.Join(dir, "f"))
	must(t, err)
	second.kill()
	d.kept(0)
	d.mounted("data", true)
	third.kill()
	d.kept(1)
	d.mounted("data", true)
	must(t, f.Close())
	d.kept(0)
	d.mounted("data", false)
	d.call("Remove", request{Name: "data"})
	d.call("Remove", request{Name: "other"})
}

// TestDeadDockerdIsSeen: a dockerd that comes has the dead one's volumes unmounted, at once or when their containers end.
func TestDeadDockerdIsSeen(t *testing.T) {
	defer volume.LookAgain(time.Millisecond)()
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	v := volume.New(s)
	d := &docker{plugintest.Serve(t, v.Register, volume.Kind), t, e, s}
	ctx, cancel := context.WithCancel(pooltest.Context(t))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		v.Run(ctx, func(err error) { t.Error(err) })
	}()
	defer func() { cancel(); <-ended }()
	gone := func(name string) {
		t.Helper()
		for d.call("Path", request{Name: name}).Mountpoint != "" {
			must(t, pooltest.Context(t).Err())
		}
	}

	d.call("Create", request{Name: "free"})
	d.call("Create", request{Name: "used"})
	first := d.dockerd()
	first.ask("VolumeDriver.Mount", "free", "one")
	alive := container(t, first.ask("VolumeDriver.Mount", "used", "two"))
	first.kill()
	d.mounted("free", true) // nobody has said anything yet
	d.dockerd().ask("Plugin.Activate", "-", "-")
	gone("free")
	d.mounted("used", true)
	alive.kill()
	gone("used")
	d.call("Remove", request{Name: "free"})
	d.call("Remove", request{Name: "used"})
}
