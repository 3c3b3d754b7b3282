package cli

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
)

func size(n int64) *int64 { return &n }

// testInfos are a layer of an image, its two snapshots and an empty volume.
func testInfos() []layer.Info {
	at := time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)
	top := "sha256-" + hexes[2]
	return []layer.Info{
		{Node: layer.Node{Name: "data", Kind: layer.KindVolume, Size: 1 << 30, Created: at.Add(time.Hour)}, State: "inactive"},
		{Node: layer.Node{Name: top, Kind: layer.KindLayer, Size: 10 << 30, Created: at}, State: "inactive", Used: size(5 << 20), Exclusive: size(0)},
		{Node: layer.Node{Name: "web1", Kind: layer.KindSnapshot, Parent: top, Size: 10 << 30, Created: at.Add(time.Minute), Labels: map[string]string{"owner": "anna", "x": ""}},
			State: "mounted", Device: "/dev/dm-3", Mountpoints: []string{"/run/dmlayer/mnt/default/web1", "/mnt"}, Used: size(6 << 20), Exclusive: size(1 << 20)},
		{Node: layer.Node{Name: "web2", Kind: layer.KindSnapshot, Parent: top, Size: 20 << 30, Created: at.Add(2 * time.Minute), Labels: map[string]string{"owner": "ben"}}, State: "active", Device: "/dev/dm-4"},
	}
}

func TestListAsJSON(t *testing.T) {
	a, out, _ := testApp(0, nil)
	a.format.json = true
	if err := printList(a, listNodes(testInfos(), nodeFilter{}, "name"), func(r nodeRecord) string { return r.Name }, a.nodeColumns(false)); err != nil {
		t.Fatal(err)
	}
	golden(t, "ls.json.golden", out.String())
	var list []map[string]any
	if err := json.Unmarshal(out.Bytes(), &list); err != nil {
		t.Fatal(err)
	}
	keys := slices.Sorted(maps.Keys(list[0]))
	if want := []string{"created", "device", "exclusive", "kind", "labels", "lost", "mountpoint", "mountpointBytes", "name", "parent", "size", "state", "used"}; !slices.Equal(keys, want) {
		t.Errorf("keys %q, want %q", keys, want)
	}
	out.Reset()
	if err := printList(a, []nodeRecord(nil), func(r nodeRecord) string { return r.Name }, nil); err != nil || out.String() != "[]\n" {
		t.Errorf("an empty list is %q, %v", out, err)
	}
}

// Names of any bytes can be told apart in JSON.
func TestNamesOfAnyBytes(t *testing.T) {
	node := testInfos()[2]
	node.Mountpoints = []string{"/m\xff", "/mnt"}
	d := newNodeDetails(node)
	text, err := marshal([]any{changeRecord{"A", "/a\xff", bytesOf("/a\xff")}, changeRecord{"A", "/ä", bytesOf("/ä")}, d})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`{"kind":"A","path":"/a\ufffd","pathBytes":"L2H/"}`, `{"kind":"A","path":"/ä","pathBytes":null}`,
		`"mountpointBytes":"L23/"`, `"mountpointsBytes":["L23/",null]`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
}

func TestWhatIsGone(t *testing.T) {
	gone := []goneImage{newGoneImage(image.Removed{Refs: []string{"a", "b"}, ID: "sha256:1"}), newGoneImage(image.Removed{ID: "sha256:2", Strays: []string{"x"}})}
	cause := errors.New("the rest is in use")
	for _, tc := range []struct {
		format string
		quiet  bool
		gone   []goneImage
		err    error
		want   string
	}{
		{"", false, gone, nil, "a\nb\nsha256:2\n"},
		{"json", true, gone, nil, "a\nb\nsha256:2\n"},
		{"{{.ID}} {{len .Refs}} {{len .KeptLayers}}", false, gone, nil, "sha256:1 2 0\nsha256:2 0 1\n"},
		{"json", false, gone[1:], cause, "[\n  {\n    \"id\": \"sha256:2\",\n    \"refs\": [],\n    \"keptLayers\": [\n      \"x\"\n    ]\n  }\n]\n"},
		{"json", false, nil, nil, "[]\n"},
		{"json", false, nil, cause, ""},
		{"", false, nil, nil, ""},
	} {
		a, out, _ := testApp(0, nil)
		var err error
		if a.format, err = parseFormat(tc.format); err != nil {
			t.Fatal(err)
		}
		a.flags.quiet = tc.quiet
		if err := printGone(a, tc.gone, goneImage.names, tc.err); !errors.Is(err, tc.err) || out.String() != tc.want {
			t.Errorf("%q: %q, %v, want %q", tc.format, out, err, tc.want)
		}
	}
}

func TestListFormats(t *testing.T) {
	list := func(format string, quiet bool) string {
		a, out, _ := testApp(0, nil)
		var err error
		if a.format, err = parseFormat(format); err != nil {
			t.Fatal(err)
		}
		a.flags.quiet = quiet
		if err := printList(a, listNodes(testInfos(), nodeFilter{}, ""), func(r nodeRecord) string { return r.Name }, a.nodeColumns(false)); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	golden(t, "ls.golden", list("", false))
	if got, want := list("table", true), "data\nsha256-"+hexes[2]+"\nweb1\nweb2\n"; got != want {
		t.Errorf("quiet: %q", got)
	}
	got := list(`{{.Name}} {{size .Size}} {{size .Used}} {{json .Labels}} {{index .Labels "owner"}}`, false)
	if !strings.Contains(got, "web1 10GiB 6MiB {\"owner\":\"anna\",\"x\":\"\"} anna\n") || !strings.Contains(got, "data 1GiB - {} \n") {
		t.Errorf("template: %q", got)
	}
	if got := list(`{{json .}}`, false); !strings.HasPrefix(got, `{"name":"data","kind":"volume","parent":"",`) {
		t.Errorf("json of a record: %q", got)
	}
}

func TestInspectFormats(t *testing.T) {
	a, out, _ := testApp(0, nil)
	for _, i := range testInfos() {
		d := newNodeDetails(i)
		if err := printRecord(a, d, d.Name, true, a.nodeFields(d)); err != nil {
			t.Fatal(err)
		}
		a.format.table = true
		if err := printRecord(a, d, d.Name, true, a.nodeFields(d)); err != nil {
			t.Fatal(err)
		}
		a.format.table = false
	}
	golden(t, "inspect.golden", out.String())
}

func TestFilterAndSort(t *testing.T) {
	for _, tc := range []struct {
		filters []string
		sort    string
		want    string
	}{
		{nil, "", "data sha256-… web1 web2"},
		{nil, "size", "web2 sha256-… web1 data"},
		{nil, "used", "web1 sha256-… data web2"},
		{nil, "exclusive", "web1 sha256-… data web2"},
		{nil, "created", "data web2 web1 sha256-…"},
		{[]string{"kind=snapshot"}, "", "web1 web2"},
		{[]string{"kind=snapshot", "kind=volume"}, "", "data web1 web2"},
		{[]string{"label=owner"}, "", "web1 web2"},
		{[]string{"label=owner=anna"}, "", "web1"},
		{[]string{"label=owner=anna", "label=x"}, "", "web1"},
		{[]string{"label=owner=anna", "label=owner=ben"}, "", ""},
		{[]string{"label=x="}, "", "web1"},
		{[]string{"parent=fedcba9876542"}, "", "web1 web2"},
		{[]string{"parent=web1"}, "", ""},
		{[]string{"kind=layer", "label=owner"}, "", ""},
	} {
		f, err := parseFilters(tc.filters)
		if err == nil {
			err = f.resolve(context.Background(), testFinder(nil))
		}
		if err != nil {
			t.Errorf("%q: %v", tc.filters, err)
		}
		var names []string
		for _, r := range listNodes(testInfos(), f, tc.sort) {
			names = append(names, strings.Replace(r.Name, hexes[2], "…", 1))
		}
		if got := strings.Join(names, " "); got != tc.want {
			t.Errorf("filter %q, sort %q: %q, want %q", tc.filters, tc.sort, got, tc.want)
		}
	}
}

func TestTree(t *testing.T) {
	infos := testInfos()
	infos = append(infos, layer.Info{Node: layer.Node{Name: "deep", Kind: layer.KindSnapshot, Parent: "web1", Size: 10 << 30}, State: "inactive"},
		layer.Info{Node: layer.Node{Name: "orphan", Kind: layer.KindSnapshot, Parent: "removed meanwhile", Size: 10 << 30}, State: "inactive"})
	tops := topLayers([]image.Image{
		{Ref: "app:latest", Layers: []image.Layer{{Name: "below"}, {Name: "sha256-" + hexes[2]}}},
		{Ref: "app:1", Layers: []image.Layer{{Name: "sha256-" + hexes[2]}}},
		{Ref: "scratch"}, {ID: "sha256:x", Layers: []image.Layer{{Name: "web1"}}},
	})
	a, out, _ := testApp(0, nil)
	if err := a.printTree(buildTree(infos, tops), false); err != nil {
		t.Fatal(err)
	}
	a.format.json = true
	if err := a.printTree(buildTree(infos, tops), false); err != nil {
		t.Fatal(err)
	}
	if err := a.printTree(buildTree(nil, nil), false); err != nil {
		t.Fatal(err)
	}
	golden(t, "tree.golden", out.String())
}

func TestImageRecords(t *testing.T) {
	a, out, _ := testApp(0, nil)
	images := []image.Image{
		{Ref: "app:latest", ID: "sha256:" + hexes[0], Refs: []string{"app:latest"}, Layers: []image.Layer{{Name: "sha256-" + hexes[1]}}, Size: 5 << 20,
			Created: time.Date(2026, 11, 19, 12, 0, 0, 0, time.UTC), Loaded: time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC), Platform: "linux/amd64", Config: []byte(`{"a":[1]}`)},
		{ID: "sha256:" + hexes[2], Config: []byte(`{}`)},
	}
	list := []imageRecord{newImageRecord(images[0]), newImageRecord(images[1])}
	for _, f := range []format{{}, {json: true}} {
		a.format = f
		if err := printList(a, list, imageRecord.name, a.imageColumns(false)); err != nil {
			t.Fatal(err)
		}
		if err := printRecord(a, newImageDetails(images[0]), "", true, nil); err != nil {
			t.Fatal(err)
		}
	}
	a.format, a.flags.quiet = format{}, true
	if err := printList(a, list, imageRecord.name, a.imageColumns(false)); err != nil {
		t.Fatal(err)
	}
	golden(t, "image.golden", out.String())
}

func TestPoolRecords(t *testing.T) {
	a, out, _ := testApp(0, nil)
	taken := uint64(7)
	running := pool.Status{Name: "default", State: pool.StateOutOfDataSpace, Backing: "loopback", FS: "ext4", BaseSize: 10 << 30, BlockSize: 64 << 10,
		DataUsed: size(3 << 30), DataTotal: size(100 << 30), MetadataUsed: size(1 << 20), MetadataTotal: size(128 << 20), SnapshotsTaken: &taken,
		SnapshotLimit: 16711680, IDsTaken: 9, IDLimit: 16777151, Layers: 2}
	percent, mode, over, full := 10, "nopassdown", 620.0, "error"
	running.SpaceStatus = pool.SpaceStatus{VirtualTotal: 620 << 30, Overcommit: &over, MinFree: &percent, TakesNodes: new(bool), GrowAt: &percent, GrowBy: &percent,
		GrowLimit: size(1 << 40), Served: new(bool), DataMax: size(200 << 30), MetadataMax: size(1 << 30), HostFree: size(97 << 30), DiscardMode: &mode,
		WhenFull: &full, DataFullIn: size(7300)}
	running.Discard = "passdown"
	for _, p := range []pool.Status{running, {Name: "fast", State: pool.StateInactive}} {
		if err := printRecord(a, p, p.Name, false, poolFields(p)); err != nil {
			t.Fatal(err)
		}
		if err := printRecord(a, poolRecord(p), p.Name, true, poolFields(p)); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "pool.golden", out.String())
}
