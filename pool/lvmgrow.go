package pool

import (
	"context"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/lvm"
	"github.com/dmlayer/dmlayer/thinpool"
)

var (
	pointLVMGrownMetadata = fault.New("pool.lvm.grown-metadata")
	pointLVMGrownData     = fault.New("pool.lvm.grown-data")
)

// room tells what the volumes have, and what the volume group has left for them.
func (v volumes) room(ctx context.Context) (Room, error) {
	h, err := v.settled(ctx)
	if err != nil {
		return Room{}, err
	}
	extent := h.vg.ExtentSize
	free := h.vg.Free / extent * extent
	r := Room{DataSize: h.data[0].Size, MetadataSize: h.metadata[0].Size, Free: h.vg.Free}
	r.DataMax = r.DataSize + free
	r.MetadataMax = max(r.MetadataSize, min(r.MetadataSize+free, int64(thinpool.MaxMetadataSize)/extent*extent))
	return r, nil
}

// holds tells whether the volumes, as the kernel has them, are as large as they were when somebody asked for their room. What is free in
// the group may be less by now: whoever takes of it is told by lvm2.
func (v volumes) holds(r Room) bool {
	data, meta := v.dmUUIDs()
	return v.kernelSize(data) == r.DataSize && v.kernelSize(meta) == r.MetadataSize
}

// kernelSize returns the size of a volume's device, -1 of one that is not there.
func (v volumes) kernelSize(uuid devmapper.UUID) int64 {
	targets, err := v.p.dm.Table(devmapper.ByUUID(uuid))
	if err != nil || uuid == "" {
		return -1
	}
	var size devmapper.Sectors
	for _, t := range targets {
		size += t.Length
	}
	return int64(size.Bytes())
}

// grow makes the volumes larger.
func (v volumes) grow(ctx context.Context, data, metadata int64) error {
	h, err := v.settled(ctx)
	if err != nil {
		return err
	}
	if data > h.data[0].Size || metadata > h.metadata[0].Size { // else the devices are only to be what they are said to be, whatever the group misses
		if err := complete(h.vg); err != nil {
			return err
		}
	}
	if err := v.growOne(ctx, h, h.metadata[0], metadata); err != nil {
		return err
	}
	if err := pointLVMGrownMetadata.Hit(); err != nil {
		return err
	}
	if err := v.growOne(ctx, h, h.data[0], data); err != nil {
		return err
	}
	return pointLVMGrownData.Hit()
}

func (v volumes) growOne(ctx context.Context, h holding, lv lvm.LV, size int64) error {
	extent := h.vg.ExtentSize
	return v.lvm.Extend(ctx, lv, (size+extent-1)/extent*extent)
}
