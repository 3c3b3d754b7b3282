package cli

import (
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/pool"
)

func TestCheckPoolSpace(t *testing.T) {
	no, yes := false, true
	percent := func(n int) *int { return &n }
	ratio := func(n float64) *float64 { return &n }
	word := func(s string) *string { return &s }
	for _, tc := range []struct {
		name   string
		change func(p *pool.Status)
		want   string // of the check's name; "" is nothing
	}{
		{"as it should be", func(*pool.Status) {}, ""},
		{"stopped", func(p *pool.Status) { *p = pool.Status{State: pool.StateInactive, Backing: "lvm"} }, ""},
		{"refuses", func(p *pool.Status) { p.TakesNodes = &no }, "new nodes"},
		{"full", func(p *pool.Status) { p.TakesNodes, p.State = &no, pool.StateOutOfDataSpace }, ""},
		{"full tomorrow", func(p *pool.Status) { p.DataFullIn = size(23 * 3600) }, "rate"},
		{"full next week", func(p *pool.Status) { p.DataFullIn = size(7 * 24 * 3600) }, ""},
		{"metadata full tomorrow", func(p *pool.Status) { p.MetadataFullIn = size(3600) }, "rate"},
		{"metadata low", func(p *pool.Status) { p.MetadataUsed = size(76) }, "metadata"},
		{"nobody serves", func(p *pool.Status) { p.Served = &no }, "growth"},
		{"nothing to grow into", func(p *pool.Status) { p.DataMax = size(100) }, "growth"},
		{"need not grow", func(p *pool.Status) { p.GrowAt, p.DataMax, p.Served = nil, size(100), &no }, ""},
		{"overcommitted, nothing to grow into", func(p *pool.Status) { p.Overcommit, p.VirtualTotal = ratio(5000), 5000 }, "over-commitment"},
		{"overcommitted, can grow", func(p *pool.Status) { p.Overcommit, p.VirtualTotal = ratio(150), 150 }, ""},
		{"overcommitted, with a ceiling", func(p *pool.Status) {
			p.Overcommit, p.VirtualTotal, p.OvercommitLimit = ratio(5000), 5000, percent(9000)
		}, ""},
		{"discards do not reach", func(p *pool.Status) { p.DiscardMode = word("nopassdown") }, "discards"},
		{"loopback", func(p *pool.Status) { p.Backing = "loopback" }, "backing"},
		{"host nearly full", func(p *pool.Status) { p.Backing, p.HostFree = "loopback", size(1<<20) }, "host"},
		{"the file keeps much", func(p *pool.Status) { p.DataAllocated = size(100 << 20) }, "kept"},
		{"the file keeps a little", func(p *pool.Status) {
			p.DataUsed, p.DataTotal, p.DataMax, p.DataAllocated = size(10<<30), size(20<<30), size(30<<30), size(11<<30)
		}, ""},
		{"host larger than the file", func(p *pool.Status) { p.HostFree = size(10 << 30) }, ""},
		{"host smaller than the file", func(p *pool.Status) {
			p.Backing, p.HostFree, p.DataTotal, p.DataUsed = "loopback", size(10<<30), size(50<<30), size(1<<30)
			p.DataMax = size(100 << 30)
		}, "host"},
	} {
		p := pool.Status{State: pool.StateActive, Backing: "lvm", Discard: "passdown", DataUsed: size(1), DataTotal: size(100), MetadataUsed: size(1), MetadataTotal: size(100)}
		p.VirtualTotal, p.Overcommit, p.TakesNodes, p.GrowAt, p.Served = 50, ratio(50), &yes, percent(80), &yes
		p.DataMax, p.HostFree, p.DiscardMode = size(200), size(10<<30), word("passdown")
		tc.change(&p)
		found := checkPoolSpace("p", p)
		if tc.want == "" {
			if len(found) > 0 {
				t.Errorf("%s: %+v", tc.name, found)
			}
			continue
		}
		there := false
		for _, c := range found {
			there = there || c.Check == "pool p: "+tc.want
			if c.Status != checkWarn || c.Detail == "" || c.Advice == "" || strings.Contains(c.Advice+c.Detail, "%!") {
				t.Errorf("%s: %+v", tc.name, c)
			}
		}
		if !there {
			t.Errorf("%s: %+v, want %s", tc.name, found, tc.want)
		}
	}
}

func TestRoughly(t *testing.T) {
	for seconds, want := range map[int64]string{0: "0 seconds", 119: "119 seconds", 120: "2 minutes", 7199: "119 minutes", 7200: "2 hours", 200_000: "2 days"} {
		if got := roughly(seconds); got != want {
			t.Errorf("%d: %q, want %q", seconds, got, want)
		}
	}
}
