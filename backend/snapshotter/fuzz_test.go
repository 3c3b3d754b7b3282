package snapshotter

import (
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/filters"

	"github.com/dmlayer/dmlayer/layer"
)

// FuzzRecord reads documents that somebody else may have written: an error or a record, never a panic.
func FuzzRecord(f *testing.F) {
	f.Add(`{"kind":"active","parent":"p","labels":{"a":"b"},"created":"2026-01-01T00:00:00Z","updated":"2026-01-01T00:00:00Z"}`)
	f.Add(`{"kind":"gone"}`)
	f.Add(`[]`)
	f.Fuzz(func(t *testing.T, data string) {
		r, err := decode(layer.Document{Kind: kindSnapshot, Key: "k", Layers: []string{"n"}, Data: []byte(data)})
		if err != nil {
			return
		}
		if r.key != "k" || r.kind() == snapshots.KindUnknown {
			t.Errorf("%+v", r)
		}
		for _, at := range r.index() {
			if !strings.HasSuffix(at.key, " k") {
				t.Errorf("%+v leads elsewhere", at)
			}
		}
	})
}

// FuzzWanted compares the short cut for filters with the filters: what they let pass, it must not have left out.
func FuzzWanted(f *testing.F) {
	f.Add(`name==p`, "p")
	f.Add(`name=="a,b",kind==active`, "a,b")
	f.Add(`name==p,labels.x`, "p")
	f.Add(`name==p|x`, "p")
	f.Add("name==`a`", "a")
	f.Fuzz(func(t *testing.T, filter, name string) {
		only, ok := wanted(filter, "name")
		if !ok || only == name {
			return
		}
		parsed, err := filters.ParseAll(filter)
		if err == nil && parsed.Match(adapted(snapshots.Info{Name: name})) {
			t.Errorf("filter %q takes %q, of which only %q was looked at", filter, name, only)
		}
	})
}
