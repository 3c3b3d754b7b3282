package thinmeta_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta/metagen"
)

// various is a pool with devices that have different numbers of blocks, snapshots as they were taken, and some that have none.
func various(snapshots uint64) *metagen.Pool {
	p := metagen.New(metagen.Options{MetadataBlocks: 4096})
	p.TransactionID = 7
	for i := range uint64(20) {
		p.Thin(i)
		p.Write(i, 0, i*37)
	}
	for i := range snapshots {
		p.Snap(100+i, 1+i%19)
	}
	p.Snap(1000, 5)
	p.Write(1000, 1000, 3)
	p.Thin(2000)
	p.Thin(2001)
	return p
}

func ofTree(tree string) func(metagen.Info) bool {
	return func(i metagen.Info) bool { return i.Tree == tree }
}

// wantAll wants all devices to be as they were.
func wantAll(t *testing.T, im *metagen.Image, before map[uint64][]keyed, r thinmeta.Repaired) {
	t.Helper()
	after := readable(t, im)
	for id, blocks := range before {
		if !slices.Equal(blocks, after[id]) {
			t.Errorf("device %d has %d blocks, before %d", id, len(after[id]), len(blocks))
		}
	}
	if len(after) != len(before) || len(r.Devices) != len(before) {
		t.Errorf("%d devices, before %d, told of %d", len(after), len(before), len(r.Devices))
	}
	accepted(t, im)
}

// The block that leads to all devices is lost: each is found again, where the numbers of blocks tell them apart.
func TestRepairFindsDevices(t *testing.T) {
	for _, snapshots := range []uint64{0, 40, 200} {
		im := various(snapshots).Image()
		before := readable(t, im)
		for _, b := range im.Find(ofTree("devices")) {
			garble(im, b)
		}
		r, _ := repairImage(t, im)
		wantAll(t, im, before, r)
		for _, d := range r.Devices {
			if d.Gone || d.Unproven || len(d.Lost) > 0 {
				t.Errorf("device %+v", d)
			}
		}
	}
}

// Of a device tree with more nodes the root is lost, or one leaf: what the others say is as good as before.
func TestRepairFindsDeviceTree(t *testing.T) {
	image := various(600).Image()
	before := readable(t, image)
	nodes := image.Find(ofTree("devices"))
	if len(nodes) < 4 {
		t.Fatalf("%d nodes", len(nodes))
	}
	for _, b := range nodes {
		im := image.Clone()
		garble(im, b)
		r, _ := repairImage(t, im)
		wantAll(t, im, before, r)
		for _, d := range r.Devices {
			if d.Gone || d.Unproven {
				t.Errorf("node %d: device %+v", b, d)
			}
		}
	}
}

// alike is a pool with devices that have as many blocks each, and not the same.
func alike() (*metagen.Image, uint64) {
	p := metagen.New(metagen.Options{MetadataBlocks: 1024})
	p.TransactionID = 7
	for i := range uint64(6) {
		p.Thin(1 + i)
		p.Write(1+i, 0, 300)
	}
	p.Thin(50)
	p.Write(50, 0, 10)
	im := p.Image()
	return im, im.Find(ofTree("devices"))[0]
}

// Devices that nothing tells apart but an earlier device tree get what that says, which is not said to be proven; without it they are lost, and the others are not.
func TestRepairFindsLikely(t *testing.T) {
	im, tree := alike()
	before := readable(t, im)
	earlier := bytes.Clone(im.Block(tree))
	garble(im, tree)
	without := im.Clone()
	const free = 1000
	copy(im.Block(free), earlier)
	im.Blocks[free] = metagen.Info{Kind: metagen.Node}
	im.Seal(free)
	delete(im.Blocks, free)
	r, _ := repairImage(t, im)
	wantAll(t, im, before, r)
	for _, d := range r.Devices {
		if d.Gone || d.Unproven != (d.ID != 50) {
			t.Errorf("device %+v", d)
		}
	}
	r, _ = repairImage(t, without)
	for _, d := range r.Devices {
		if d.Gone != (d.ID != 50) || d.Unproven {
			t.Errorf("device %+v", d)
		}
	}
	if got := readable(t, without); len(got) != 1 || !slices.Equal(got[50], before[50]) {
		t.Errorf("%d devices", len(got))
	}
}

// Without a space map, or with a snapshot of the metadata, nothing tells what is in use now, and nothing is guessed.
func TestRepairFindsNothing(t *testing.T) {
	for name, damage := range map[string]func(p *metagen.Pool) *metagen.Image{
		"space map": func(p *metagen.Pool) *metagen.Image {
			im := p.Image()
			garble(im, im.Find(ofTree("metadata bitmaps"))[0])
			return im
		},
		"metadata snapshot": func(p *metagen.Pool) *metagen.Image {
			p.Hold()
			return p.Image()
		},
		"details": func(p *metagen.Pool) *metagen.Image {
			im := p.Image()
			for _, b := range im.Find(ofTree("details")) {
				garble(im, b)
			}
			return im
		},
	} {
		im := damage(various(5))
		for _, b := range im.Find(ofTree("devices")) {
			garble(im, b)
		}
		if _, err := thinmeta.Repair(t.Context(), storage{im}, thinmeta.RepairOptions{}); !errors.Is(err, thinmeta.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whatever lies in free blocks, and whatever else is lost: a device that is not said to be anything but whole has what it had.
func TestRepairFindsTrue(t *testing.T) {
	proven, unproven := 0, 0
	for seed := range uint64(40) {
		rnd := rand.New(rand.NewPCG(seed, 11))
		im := aged(seed).Image()
		before := readable(t, im)
		trees := im.Find(ofTree("devices"))
		if len(trees) > 1 {
			continue
		}
		leaf := bytes.Clone(im.Block(trees[0]))
		garble(im, trees[0])
		for i := range 1 + rnd.IntN(3) { // with values of each other, some of them
			n := int(binary.LittleEndian.Uint32(leaf[16:]))
			for range rnd.IntN(6) {
				a, b := nodeValues+8*rnd.IntN(n), nodeValues+8*rnd.IntN(n)
				copy(leaf[a:a+8], leaf[b:b+8])
			}
			free := uint64(8000 + i)
			for im.Blocks[free].Kind != 0 || im.Blocks[free].References > 0 {
				free -= 10
			}
			copy(im.Block(free), leaf)
			im.Blocks[free] = metagen.Info{Kind: metagen.Node}
			im.Seal(free)
			delete(im.Blocks, free)
		}
		if nodes := im.Find(ofTree("mappings")); rnd.IntN(2) == 0 {
			garble(im, nodes[rnd.IntN(len(nodes))])
		}
		r, err := thinmeta.Repair(t.Context(), storage{im}, thinmeta.RepairOptions{})
		if errors.Is(err, thinmeta.ErrDamaged) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		inOrder(t, im)
		after := readable(t, im)
		for _, d := range r.Devices {
			switch {
			case d.Gone || len(d.Lost) > 0:
			case d.Unproven:
				unproven++
			case !slices.Equal(before[d.ID], after[d.ID]):
				t.Errorf("seed %d: device %+v has something else than before", seed, d)
			default:
				proven++
			}
		}
	}
	if proven < 200 || unproven < 20 {
		t.Errorf("%d devices are proven, %d not: the test says little", proven, unproven)
	}
}
