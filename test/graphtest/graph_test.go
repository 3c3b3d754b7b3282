// Package graphtest runs the test cases that moby has for its own graph drivers against a plugin, through moby's own proxy of plugins. It is a module of its
// own so that moby is no dependency of dmlayer; scripts/graphtest compiles it, and TestGraphtest of backend/graphdriver runs it.
package graphtest

import (
	"fmt"
	"os"
	"strconv"
	"testing"

	"github.com/docker/docker/daemon/graphdriver"
	"github.com/docker/docker/daemon/graphdriver/graphtest"
	"github.com/docker/docker/pkg/idtools"
	"github.com/docker/docker/pkg/plugingetter"
	"github.com/docker/docker/pkg/plugins"
)

const (
	plugin = "dmlayer"      // behind the socket
	driver = "dmlayerproxy" // the name under which moby knows the proxy
)

func TestMain(m *testing.M) {
	socket := os.Getenv("DMLAYER_GRAPH_SOCKET")
	if socket == "" {
		fmt.Fprintln(os.Stderr, "DMLAYER_GRAPH_SOCKET names no socket")
		os.Exit(1)
	}
	client, err := plugins.NewClient("unix://"+socket, nil)
	if err == nil {
		getter := getter{compat{client}}
		err = graphdriver.Register(driver, func(root string, options []string, _ idtools.IdentityMapping) (graphdriver.Driver, error) {
			return graphdriver.GetDriver(plugin, getter, graphdriver.Options{Root: root, DriverOptions: options, ExperimentalEnabled: true})
		})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// compat is a plugin on a socket.
type compat struct{ client *plugins.Client }

func (compat) Name() string               { return plugin }
func (compat) ScopedPath(s string) string { return s }
func (compat) IsV1() bool                 { return true }
func (c compat) Client() *plugins.Client  { return c.client }

// getter knows that plugin only.
type getter struct{ plugin compat }

func (g getter) Get(string, string, int) (plugingetter.CompatPlugin, error)   { return g.plugin, nil }
func (g getter) GetAllByCap(string) ([]plugingetter.CompatPlugin, error)      { return nil, nil }
func (g getter) GetAllManagedPluginsByCap(string) []plugingetter.CompatPlugin { return nil }
func (g getter) Handle(string, func(string, *plugins.Client))                 {}

// depth is how many layers lie one on the other: 128, or what DMLAYER_GRAPH_DEPTH says.
func depth() int {
	if n, err := strconv.Atoi(os.Getenv("DMLAYER_GRAPH_DEPTH")); err == nil {
		return n
	}
	return 128
}

// TestSetup keeps the driver for the tests that follow, as moby's drivers do.
func TestSetup(t *testing.T) { graphtest.GetDriver(t, driver) }

func TestCreateEmpty(t *testing.T)   { graphtest.DriverTestCreateEmpty(t, driver) }
func TestCreateBase(t *testing.T)    { graphtest.DriverTestCreateBase(t, driver) }
func TestCreateSnap(t *testing.T)    { graphtest.DriverTestCreateSnap(t, driver) }
func TestDeepLayerRead(t *testing.T) { graphtest.DriverTestDeepLayerRead(t, depth(), driver) }
func TestDiffApply(t *testing.T)     { graphtest.DriverTestDiffApply(t, 10, driver) }
func TestChanges(t *testing.T)       { graphtest.DriverTestChanges(t, driver) }
func TestTeardown(t *testing.T)      { graphtest.PutDriver(t) }

// TestSetQuota wants a pool whose base size is below 50 MB.
func TestSetQuota(t *testing.T) { graphtest.DriverTestSetQuota(t, driver, true) }

func BenchmarkExists(b *testing.B)        { graphtest.DriverBenchExists(b, driver) }
func BenchmarkGetEmpty(b *testing.B)      { graphtest.DriverBenchGetEmpty(b, driver) }
func BenchmarkDiffBase(b *testing.B)      { graphtest.DriverBenchDiffBase(b, driver) }
func BenchmarkDiffSmall(b *testing.B)     { graphtest.DriverBenchDiffN(b, 10, 10, driver) }
func BenchmarkDiffLarge(b *testing.B)     { graphtest.DriverBenchDiffN(b, 1000, 10, driver) }
func BenchmarkDiffApply(b *testing.B)     { graphtest.DriverBenchDiffApplyN(b, 100, driver) }
func BenchmarkDeepLayerDiff(b *testing.B) { graphtest.DriverBenchDeepLayerDiff(b, 20, driver) }
func BenchmarkDeepLayerRead(b *testing.B) { graphtest.DriverBenchDeepLayerRead(b, 20, driver) }
