package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
)

func TestExitCodes(t *testing.T) {
	for _, tc := range []struct {
		err, cause error
		code       int
		name       string
	}{
		{nil, nil, 0, ""},
		{errors.New("x"), nil, 1, "failed"},
		{usagef("x"), nil, 2, "usage"},
		{fmt.Errorf("x: %w", errs.ErrInvalid), nil, 2, "usage"},
		{fmt.Errorf("x: %w", errs.ErrNotFound), nil, 3, "not-found"},
		{fmt.Errorf("x: %w", errs.ErrExists), nil, 4, "exists"},
		{errs.WithHint(fmt.Errorf("x: %w", errs.ErrBusy), "h"), nil, 5, "busy"},
		{fmt.Errorf("x: %w", errs.ErrNoSpace), nil, 6, "no-space"},
		{fmt.Errorf("x: %w", errs.ErrDamaged), nil, 7, "damaged"},
		{fmt.Errorf("x: %w", errs.ErrUnsupported), nil, 8, "unsupported"},
		{multiError{fmt.Errorf("x: %w", errs.ErrBusy), fmt.Errorf("x: %w", errs.ErrNotFound)}, nil, 5, "busy"},
		{&rootNeeded{"ls"}, nil, 1, "failed"},
		{context.DeadlineExceeded, errTimeout, 1, "failed"},
		{fmt.Errorf("held by x: %w", errs.ErrBusy), errTimeout, 5, "busy"},
		{context.Canceled, interrupted{syscall.SIGINT}, 130, "interrupted"},
		{fmt.Errorf("x: %w", errs.ErrBusy), interrupted{syscall.SIGTERM}, 143, "interrupted"},
		{nil, interrupted{syscall.SIGTERM}, 0, ""}, // it was done before the signal mattered
	} {
		if code, name := exitCode(tc.err, tc.cause); code != tc.code || name != tc.name {
			t.Errorf("exitCode(%v, %v) = %d, %q, want %d, %q", tc.err, tc.cause, code, name, tc.code, tc.name)
		}
	}
}

func TestReport(t *testing.T) {
	busy := errs.WithHint(fmt.Errorf("remove node %q: mounted: %w", "a", errs.ErrBusy), "unmount it")
	gone := fmt.Errorf("node %q: %w", "b", errs.ErrNotFound)
	for _, tc := range []struct {
		name       string
		err, cause error
		json       bool
		want       string
	}{
		{"plain", busy, nil, false, "dmlayer: remove node \"a\": mounted: in use\nhint: unmount it\n"},
		{"no hint", gone, nil, false, "dmlayer: node \"b\": not found\n"},
		{"several", multiError{gone, busy, busy}, nil, false,
			"dmlayer: node \"b\": not found\ndmlayer: remove node \"a\": mounted: in use\ndmlayer: remove node \"a\": mounted: in use\nhint: unmount it\n"},
		{"json", busy, nil, true, `{"error":{"code":"busy","message":"remove node \"a\": mounted: in use","hint":"unmount it"}}` + "\n"},
		{"json several", multiError{gone, busy}, nil, true,
			`{"error":{"code":"not-found","message":"node \"b\": not found; remove node \"a\": mounted: in use","hint":""}}` + "\n"},
		{"lines", errors.Join(errors.New("x"), errors.New("y")), nil, false, "dmlayer: x; y\n"},
		{"signal", context.Canceled, interrupted{syscall.SIGINT}, false, "dmlayer: interrupted by SIGINT: context canceled\n"},
		{"markup", errors.New("<a> & b"), nil, true, `{"error":{"code":"failed","message":"<a> & b","hint":""}}` + "\n"},
		{"permission", fmt.Errorf("open x: %w", syscall.EACCES), nil, false, "dmlayer: open x: permission denied\nhint: run as root\n"},
	} {
		a, _, stderr := testApp(0, nil)
		a.report(tc.err, tc.cause, tc.json)
		if stderr.String() != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, stderr, tc.want)
		}
	}
	a, _, stderr := testApp(0, nil)
	if code := a.report(fmt.Errorf("open: %w", context.DeadlineExceeded), errTimeout, false); code != 1 {
		t.Errorf("timeout: exit code %d", code)
	}
	if s := stderr.String(); !strings.HasPrefix(s, "dmlayer: timed out: open: context deadline exceeded\nhint: ") {
		t.Errorf("timeout: %q", s)
	}
}

func TestSignalsCancelAndFurtherOnesAreNoted(t *testing.T) {
	var stderr syncBuffer
	a := &app{err: &stderr}
	ctx, done := a.catchSignals(context.Background())
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
	if code, _ := exitCode(ctx.Err(), context.Cause(ctx)); code != 143 {
		t.Errorf("exit code %d, want 143", code)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	<-stderr.written()
	done()
	if s := stderr.String(); !strings.Contains(s, "SIGINT: already stopping") {
		t.Errorf("after the second signal: %q", s)
	}
}

func TestTimeoutBoundsTheContext(t *testing.T) {
	a, _, _ := testApp(0, nil)
	a.flags.timeout = time.Nanosecond
	root := a.newRoot()
	a.flags.timeout = time.Nanosecond
	root.SetContext(context.Background())
	a.bounded(root)
	defer a.stop()
	<-root.Context().Done()
	if cause := context.Cause(root.Context()); !errors.Is(cause, errTimeout) {
		t.Errorf("cause %v", cause)
	}
}

func TestForEachDoesAllItCan(t *testing.T) {
	var did []string
	err := forEach(context.Background(), []string{"a", "b", "c", "d"}, func(name string) error {
		did = append(did, name)
		switch name {
		case "b":
			return fmt.Errorf("b: %w", errs.ErrBusy)
		case "c":
			return fmt.Errorf("c: %w", errs.ErrNotFound)
		}
		return nil
	})
	if !slices.Equal(did, []string{"a", "b", "c", "d"}) {
		t.Errorf("did %q", did)
	}
	if code, _ := exitCode(err, nil); code != 5 {
		t.Errorf("exit code %d of %v, want that of the first failure", code, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	did = nil
	err = forEach(ctx, []string{"a", "b", "c"}, func(name string) error { did = append(did, name); cancel(); return nil })
	if !errors.Is(err, context.Canceled) || len(did) != 1 {
		t.Errorf("cancelled: did %q, %v", did, err)
	}
	ctx, cancel = context.WithCancel(context.Background())
	if err := forEach(ctx, []string{"a"}, func(string) error { cancel(); return nil }); err != nil {
		t.Errorf("cancelled after the last: %v", err)
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{"1": 1, "10G": 10 << 30, "10g": 10 << 30, "10GiB": 10 << 30, "512M": 512 << 20, "1.5K": 1536, "64 K": 64 << 10, "1024P": 1 << 60} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "0", "-1", "-0", "0.4", "G", "10X", "1e400", "1e30", "8192P", "1025P", "NaN", "Inf", "1 0", "10GG", "0x10", "１"} {
		if got, err := parseSize(s); !errors.Is(err, errs.ErrInvalid) {
			t.Errorf("parseSize(%q) = %d, %v, want a usage error", s, got, err)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"10G", "-1", "1e30", "9223372036854775807", "0x1p-2", " ", "1 "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseSize(s); err == nil && (n <= 0 || n > maxSize) {
			t.Errorf("parseSize(%q) = %d", s, n)
		}
	})
}

func TestLabels(t *testing.T) {
	got, err := parseLabels([]string{"a=1", "b.c/d-e=x=y", "empty=", "bare"})
	want := map[string]string{"a": "1", "b.c/d-e": "x=y", "empty": "", "bare": ""}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("parseLabels: %v, %v", got, err)
	}
	set, remove, err := parseLabelChanges([]string{"a=1", "b-", "c="})
	if err != nil || !maps.Equal(set, map[string]string{"a": "1", "c": ""}) || !slices.Equal(remove, []string{"b"}) {
		t.Errorf("parseLabelChanges: %v, %v, %v", set, remove, err)
	}
	if s := formatLabels(want); s != "a=1,b.c/d-e=x=y,bare=,empty=" {
		t.Errorf("formatLabels: %q", s)
	}
	for _, bad := range [][]string{{"k"}, {"k=v", "k-"}, {"-"}, {"=v"}, {"a b=c"}, {"k=" + strings.Repeat("v", maxLabelValue+1)}} {
		if _, _, err := parseLabelChanges(bad); !errors.Is(err, errs.ErrInvalid) {
			t.Errorf("parseLabelChanges(%.40q): %v", bad, err)
		}
	}
}

// hexes are chain ids of which two begin alike.
var hexes = []string{"0123456789ab" + strings.Repeat("0", 52), "0123456789ab" + strings.Repeat("1", 52), "fedcba987654" + strings.Repeat("2", 52)}

func testFinder(failing error) finder {
	nodes := []layer.Info{{Node: layer.Node{Name: "web1", Kind: layer.KindSnapshot}}, {Node: layer.Node{Name: "fedcba987654", Kind: layer.KindSnapshot}}}
	for _, h := range hexes {
		nodes = append(nodes, layer.Info{Node: layer.Node{Name: "sha256-" + h, Kind: layer.KindLayer}})
	}
	images := map[string]string{"app:latest": "top", "web1": "image-web1", "18": "x", "node:18": "node18", "ghcr.io/x/y:1": "y", "empty": ""}
	return finder{
		get: func(_ context.Context, name string) (layer.Node, error) {
			for _, n := range nodes {
				if n.Name == name {
					return n.Node, failing
				}
			}
			return layer.Node{}, errors.Join(fmt.Errorf("node %q: %w", name, errs.ErrNotFound), failing)
		},
		list: func(context.Context) ([]layer.Info, error) { return nodes, failing },
		image: func(_ context.Context, ref string) (string, error) {
			if top, ok := images[ref]; ok {
				return top, nil
			}
			return "", fmt.Errorf("image %q: %w", ref, errs.ErrNotFound)
		},
	}
}

func TestFindNode(t *testing.T) {
	for _, tc := range []struct {
		arg, want string
		class     error
		hint      string
	}{
		{"web1", "web1", nil, ""}, // the node before the image
		{"node:web1", "web1", nil, ""},
		{"image:web1", "image-web1", nil, ""},
		{"app:latest", "top", nil, ""},
		{"ghcr.io/x/y:1", "y", nil, ""},
		{"image:node:18", "node18", nil, ""},
		{"node:18", "", errs.ErrNotFound, "image:node:18"},
		{"fedcba987654", "fedcba987654", nil, ""}, // a whole name before the start of one
		{"fedcba9876542", "sha256-" + hexes[2], nil, ""},
		{"sha256-fedcba987654", "sha256-" + hexes[2], nil, ""},
		{hexes[2], "sha256-" + hexes[2], nil, ""},
		{"sha256-fedcba98765", "", errs.ErrNotFound, "dmlayer ls"}, // 11 digits
		{"sha256-0123456789ab", "", errs.ErrInvalid, ""},           // two
		{"sha256-0123456789ab1", "sha256-" + hexes[1], nil, ""},
		{"nosuch", "", errs.ErrNotFound, "dmlayer ls"},
		{"image:nosuch", "", errs.ErrNotFound, "dmlayer image ls"},
		{"nosuch:latest", "", errs.ErrNotFound, "dmlayer image ls"},
		{"empty", "", errs.ErrInvalid, "without --parent"},
	} {
		got, err := testFinder(nil).node(context.Background(), tc.arg)
		if got != tc.want || !errors.Is(err, tc.class) {
			t.Errorf("node(%q) = %q, %v, want %q, %v", tc.arg, got, err, tc.want, tc.class)
		}
		if hint := hintOf(orNone(err), nil); !strings.Contains(hint, tc.hint) {
			t.Errorf("node(%q): hint %q, want one with %q", tc.arg, hint, tc.hint)
		}
	}
	// Verbs that change a node take no image.
	if got, err := testFinder(nil).name(context.Background(), "app"); !errors.Is(err, errs.ErrNotFound) {
		t.Errorf("name(app) = %q, %v", got, err)
	}
	// What fails for another reason is no missing node.
	damaged := fmt.Errorf("x: %w", errs.ErrDamaged)
	f := testFinder(nil)
	f.get = func(context.Context, string) (layer.Node, error) { return layer.Node{}, damaged }
	if _, err := f.node(context.Background(), "web1"); !errors.Is(err, damaged) {
		t.Errorf("a damaged store: %v", err)
	}
}

func orNone(err error) error {
	if err == nil {
		return errors.New("none")
	}
	return err
}

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
	if want := []string{"created", "device", "exclusive", "kind", "labels", "mountpoint", "name", "parent", "size", "state", "used"}; !slices.Equal(keys, want) {
		t.Errorf("keys %q, want %q", keys, want)
	}
	out.Reset()
	if err := printList(a, []nodeRecord(nil), func(r nodeRecord) string { return r.Name }, nil); err != nil || out.String() != "[]\n" {
		t.Errorf("an empty list is %q, %v", out, err)
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
		if err := printList(a, list, imageRecord.name, a.imageColumns()); err != nil {
			t.Fatal(err)
		}
		if err := printRecord(a, newImageDetails(images[0]), "", true, nil); err != nil {
			t.Fatal(err)
		}
	}
	a.format, a.flags.quiet = format{}, true
	if err := printList(a, list, imageRecord.name, a.imageColumns()); err != nil {
		t.Fatal(err)
	}
	golden(t, "image.golden", out.String())
}

func TestPoolRecords(t *testing.T) {
	a, out, _ := testApp(0, nil)
	taken := uint64(7)
	running := pool.Status{Name: "default", State: pool.StateOutOfDataSpace, Backing: "loopback", FS: "ext4", BaseSize: 10 << 30, BlockSize: 64 << 10,
		DataUsed: size(3 << 30), DataTotal: size(100 << 30), MetadataUsed: size(1 << 20), MetadataTotal: size(128 << 20), SnapshotsTaken: &taken, Layers: 2}
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

func TestSameLineage(t *testing.T) {
	nodes := map[string]layer.Node{
		"base": {Name: "base", Kind: layer.KindLayer}, "top": {Name: "top", Kind: layer.KindLayer, Parent: "base"},
		"s": {Name: "s", Kind: layer.KindSnapshot, Parent: "top"}, "s2": {Name: "s2", Kind: layer.KindSnapshot, Parent: "s"},
		"other": {Name: "other", Kind: layer.KindLayer, Parent: "base"},
	}
	get := func(_ context.Context, name string) (layer.Node, error) {
		if n, ok := nodes[name]; ok {
			return n, nil
		}
		return layer.Node{}, errs.ErrNotFound
	}
	for _, tc := range []struct {
		lower, upper string
		want         bool
	}{
		{"top", "s", true}, {"base", "s", true}, {"top", "s2", true}, {"base", "top", true},
		{"s", "s2", false}, // s can have changed since
		{"other", "s", false}, {"s", "top", false}, {"top", "base", false}, {"", "base", false},
	} {
		if got, err := sameLineage(context.Background(), get, tc.lower, tc.upper); err != nil || got != tc.want {
			t.Errorf("sameLineage(%q, %q) = %v, %v", tc.lower, tc.upper, got, err)
		}
	}
	if _, err := sameLineage(context.Background(), get, "nosuch", "s"); !errors.Is(err, errs.ErrNotFound) {
		t.Errorf("a missing node: %v", err)
	}
}

func TestPrintablePath(t *testing.T) {
	for path, want := range map[string]string{"/a b": "/a b", "/ä": "/ä", "/a\nD /etc": `"/a\nD /etc"`, "/\x1b[2J": `"/\x1b[2J"`, `/"x"`: `/"x"`} {
		if got := printablePath(path); got != want {
			t.Errorf("printablePath(%q) = %q, want %q", path, got, want)
		}
	}
}

func TestLoadProgress(t *testing.T) {
	events := []image.Event{
		{Stage: image.StageVerify, Layer: "blobs/x", Done: 1 << 20, Total: 2 << 20}, {Stage: image.StageExists, Layer: "sha256-" + hexes[0]},
		{Stage: image.StageUnpack, Layer: "sha256-" + hexes[2], Done: 1 << 20, Total: 2 << 20}, {Stage: image.StageUnpack, Layer: "sha256-" + hexes[2], Done: 2 << 20, Total: 2 << 20},
		{Stage: image.StageUnpack, Layer: "sha256-" + hexes[2], Warnings: []string{"socket left out"}},
	}
	show := func(p *loadProgress) string {
		var b bytes.Buffer
		p.out, p.now = &b, time.Now
		for _, e := range events {
			p.show(e)
		}
		p.end()
		return b.String()
	}
	if got, want := show(&loadProgress{}), "sha256-0123456789ab: exists\nsha256-fedcba987654: unpacked 2MiB\nsha256-fedcba987654: warning: socket left out\n"; got != want {
		t.Errorf("plain: %q, want %q", got, want)
	}
	if got := show(&loadProgress{terminal: true}); !strings.Contains(got, "\r\x1b[Kblobs/x: verifying 1MiB (50.0%)\r\x1b[K") {
		t.Errorf("terminal: %q", got)
	}
	if got := show(&loadProgress{silent: true, terminal: true}); got != "" {
		t.Errorf("quiet: %q", got)
	}
}

func TestStreamEndsWithTheContext(t *testing.T) {
	if b, err := io.ReadAll(newStream(context.Background(), strings.NewReader("whole"))); string(b) != "whole" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	silent, w := io.Pipe() // gives nothing until it is closed
	defer w.Close()
	ctx, cancel := context.WithCancelCause(context.Background())
	s := newStream(ctx, silent)
	go cancel(interrupted{syscall.SIGINT})
	if _, err := io.ReadAll(s); !errors.As(err, &interrupted{}) {
		t.Errorf("read ended with %v", err)
	}
}

func TestFailingStandardOutput(t *testing.T) {
	for _, line := range []string{"version", "version --format json", "version -q", "completion bash"} {
		a, _, stderr := testApp(1000, nil)
		a.out = fullWriter{}
		if code := a.run(context.Background(), words(line)); code != 1 || !strings.Contains(stderr.String(), "write to standard output") {
			t.Errorf("%q: exit code %d, %s", line, code, stderr)
		}
	}
}

type fullWriter struct{}

func (fullWriter) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestAnswerBeforeNodesAreLost(t *testing.T) {
	a, _, stderr := testApp(0, nil)
	err := a.mayLose("default", 3)
	if code, _ := exitCode(err, nil); code != 1 || !strings.Contains(err.Error(), "3 nodes would be lost") || !strings.Contains(errs.Hint(err), "--force") {
		t.Errorf("without a terminal: %v", err)
	}
	if stderr.Len() > 0 {
		t.Errorf("asked without a terminal: %q", stderr)
	}
	for answer, yes := range map[string]bool{"default\n": true, "default": true, " default \n": true, "y\n": false, "\n": false, "": false, "fast\ndefault\n": false} {
		a, out, stderr := testApp(0, nil)
		a.in = strings.NewReader(answer)
		if err := a.confirm("default", 1); (err == nil) != yes {
			t.Errorf("answer %q: %v", answer, err)
		}
		if out.Len() > 0 || !strings.HasPrefix(stderr.String(), "1 node of pool \"default\" will be lost") {
			t.Errorf("asked %q, %q", out, stderr)
		}
	}
}

func TestCompletion(t *testing.T) {
	none := []string{"--root", t.TempDir() + "/none", "--run", t.TempDir() + "/none"}
	a, out, _ := testApp(1000, nil)
	if code := a.run(context.Background(), append([]string{cobra.ShellCompRequestCmd}, append(none, "mount", "")...)); code != 0 || out.String() != ":4\n" {
		t.Errorf("mount: %d, %q", code, out)
	}
	a, out, _ = testApp(1000, nil)
	if code := a.run(context.Background(), []string{cobra.ShellCompRequestCmd, "completion", ""}); code != 0 || !strings.HasPrefix(out.String(), "bash\nzsh\nfish\npowershell\n") {
		t.Errorf("completion: %d, %q", code, out)
	}
}

func TestRecordsHaveJSONNamesForEveryField(t *testing.T) {
	for _, r := range []any{nodeDetails{}, imageDetails{}, treeNode{}, checkRecord{}, versionRecord{}, changeRecord{}, pool.Status{}} {
		for _, f := range reflect.VisibleFields(reflect.TypeOf(r)) {
			if tag := f.Tag.Get("json"); !f.Anonymous && (tag == "" || strings.ToLower(tag[:1]) != tag[:1] || strings.ContainsAny(tag, "_,")) {
				t.Errorf("%T.%s: JSON name %q", r, f.Name, tag)
			}
		}
	}
}
