package graphdriver_test

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"slices"
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
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for _, h := range hostileRequests {
		d.hostile(t, h, before)
	}
	for range 300 {
		h := hostileRequests[random.IntN(len(hostileRequests))]
		h.body = mutate(random, hostileRequests[random.IntN(len(hostileRequests))].body)
		d.hostile(t, h, before)
	}
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
