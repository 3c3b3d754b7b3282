package graphdriver_test

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/pool"
)

type hostile struct{ method, body string }

// hostileRequests are refused, or do nothing that anybody minds.
var hostileRequests = []hostile{
	{"Init", `{"Home":"/h","Opts":["dm.basesize=20G"]}`}, {"Init", `{"Opts":["dm.basesize"]}`}, {"Init", `{"Opts":{}}`},
	{"Create", `{"ID":"a","Parent":"kept"}`}, {"Create", `{"ID":"../../etc","Parent":""}`}, {"Create", `{"ID":"a","Parent":"none"}`}, {"Create", `{"ID":"kept"}`},
	{"CreateReadWrite", `{"ID":"b","StorageOpt":{"size":"999999999999G"}}`}, {"CreateReadWrite", `{"ID":"b","Parent":"../kept"}`},
	{"Remove", `{"ID":""}`}, {"Remove", `{"ID":"\u0000"}`}, {"Remove", ``}, {"Remove", `{"ID":"vm"}`}, {"Get", `{"ID":"..","MountLabel":"x\",rw"}`},
	{"Get", `{"ID":"kept","MountLabel":"\n"}`}, {"Put", `{"ID":"kept"}`}, {"Exists", `[]`}, {"Diff", `{"ID":"kept","Parent":"/"}`}, {"Diff", `{"ID":"nothing"}`},
	{"Changes", `{"ID":"kept","Parent":"."}`}, {"DiffSize", `{"ID":"kept"} {}`}, {"ApplyDiff?id=kept&parent=", "x"}, {"ApplyDiff?id=%zz", "x"}, {"ApplyDiff?id=n", ""},
	{"GetMetadata", `{"ID":null}`}, {"Status", `{"ID":` + strings.Repeat("[", 10000)}, {"Capabilities", strings.Repeat(" ", 2<<20)}, {"None", `{}`}, {"", ``},
}

// TestHostile asks what no Docker asks, and mixtures of it: a refusal has changed nothing, and what was there before is there afterwards, unless it was
// named. A node that is not Docker's is never touched.
func TestHostile(t *testing.T) {
	d := newDocker(t, pool.Spec{})
	d.layer("kept", "", map[string]string{"a": "1"})
	d.call("CreateReadWrite", graphRequest{ID: "vm"})
	must(t, d.store.Rename(t.Context(), "docker-vm", "vm"))
	before := d.nodes()
	random := rand.New(rand.NewPCG(hostileSeed(t), 0))
	for _, h := range hostileRequests {
		d.hostile(t, h, before)
	}
	for range 300 {
		h := hostileRequests[random.IntN(len(hostileRequests))]
		h.body = mutate(random, hostileRequests[random.IntN(len(hostileRequests))].body)
		d.hostile(t, h, before)
	}
}

// hostileSeed is the same one in every run, so that a failure is one of the code and not of the day, or what DMLAYER_HOSTILE_SEED says: a number, or
// "random".
func hostileSeed(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(1)
	switch text := os.Getenv("DMLAYER_HOSTILE_SEED"); text {
	case "":
	case "random":
		seed = rand.Uint64()
	default:
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		must(t, err)
	}
	t.Logf("seed %d; again with DMLAYER_HOSTILE_SEED=%d", seed, seed)
	return seed
}

// mutate cuts, doubles and replaces bytes.
func mutate(random *rand.Rand, body string) string {
	b := []byte(body[:min(len(body), 1000)])
	for range random.IntN(4) {
		if len(b) == 0 {
			break
		}
		i := random.IntN(len(b))
		switch random.IntN(3) {
		case 0:
			b = b[:i]
		case 1:
			b = slices.Insert(b, i, b[i:]...)
		default:
			b[i] = byte(random.Uint32())
		}
	}
	return string(b)
}

func (d *docker) hostile(t *testing.T, h hostile, before []string) {
	t.Helper()
	stream, err := d.Post("GraphDriver."+h.method, strings.NewReader(h.body))
	if err == nil {
		var b bytes.Buffer
		_, err = b.ReadFrom(stream)
		_ = stream.Close()
	}
	after := d.nodes()
	if err != nil && !slices.Equal(before, after) {
		t.Fatalf("%q was refused (%v), and there is %v after %v", h, err, after, before)
	}
	named := h.method == "Remove" && json.Valid([]byte(h.body)) && strings.Contains(h.body, "kept")
	if !slices.Contains(after, "vm") || !slices.Contains(after, "docker-kept") && !named {
		t.Fatalf("%q left %v", h, after)
	}
	for _, name := range after {
		if !slices.Contains(before, name) {
			d.call("Remove", graphRequest{ID: strings.TrimPrefix(name, "docker-")})
		}
	}
	if named && !slices.Contains(after, "docker-kept") {
		d.layer("kept", "", map[string]string{"a": "1"})
	}
	d.call("Cleanup", graphRequest{})
}

// TestRefusedPromises: whatever is refused leaves a layer that has no content yet without a node.
func TestRefusedPromises(t *testing.T) {
	d := newDocker(t, pool.Spec{})
	d.layer("kept", "", map[string]string{"a": "1"})
	d.call("CreateReadWrite", graphRequest{ID: "open", Parent: "kept"})
	d.call("Create", graphRequest{ID: "p", Parent: "kept"})
	d.call("Create", graphRequest{ID: "q"})
	before := d.nodes()
	for _, h := range []hostile{
		{"Diff", `{"ID":"p","Parent":"none"}`}, {"Diff", `{"ID":"none","Parent":"p"}`}, {"Diff", `{"ID":"p","Parent":"../x"}`}, {"Diff", `{"ID":"..","Parent":"q"}`},
		{"Changes", `{"ID":"p","Parent":"none"}`}, {"Changes", `{"ID":"none","Parent":"p"}`}, {"DiffSize", `{"ID":"p","Parent":"none"}`},
		{"Create", `{"ID":"kept","Parent":"p"}`}, {"Create", `{"ID":"p","Parent":"q"}`}, {"Create", `{"ID":"p","Parent":"p"}`}, {"Create", `{"ID":"../x","Parent":"p"}`},
		{"CreateReadWrite", `{"ID":"kept","Parent":"p"}`}, {"CreateReadWrite", `{"ID":"p","Parent":"q"}`}, {"CreateReadWrite", `{"ID":"..","Parent":"p"}`},
		{"CreateReadWrite", `{"ID":"c","Parent":"p","StorageOpt":{"size":"1M"}}`}, {"CreateReadWrite", `{"ID":"c","Parent":"p","StorageOpt":{"size":"9999T"}}`},
		{"CreateReadWrite", `{"ID":"c","Parent":"p","StorageOpt":{"colour":"red"}}`},
		{"Get", `{"ID":"p","MountLabel":"x\",rw"}`}, {"Get", `{"ID":"p","MountLabel":"what no kernel takes"}`},
		{"ApplyDiff?id=p", ""}, {"ApplyDiff?id=none", "x"},
	} {
		body, err := d.Post("GraphDriver."+h.method, strings.NewReader(h.body))
		if err == nil {
			_ = body.Close()
			t.Errorf("%q was not refused", h)
		}
		if after := d.nodes(); !slices.Equal(before, after) {
			t.Fatalf("%q was refused (%v), and there is %v after %v", h, err, after, before)
		}
		if !d.exists("p") || !d.exists("q") {
			t.Fatalf("%q was refused (%v), and took a promise away", h, err)
		}
	}
	// They can still be kept.
	for _, id := range []string{"p", "q"} {
		_, err := d.apply(id, "", bytes.NewReader(archive(t, map[string]string{"x": "x"})))
		must(t, err)
	}
	// On top of what can be written to, what is left of half a stream is nothing either.
	before = d.nodes()
	d.call("Create", graphRequest{ID: "r", Parent: "open"})
	_, err := d.apply("r", "open", bytes.NewReader(archive(t, map[string]string{"x": strings.Repeat("x", 100_000)})[:50_000]))
	mustFail(t, err, "fill layer")
	if after := d.nodes(); !slices.Equal(before, after) || d.exists("r") {
		t.Errorf("half a stream left %v after %v", after, before)
	}
}
