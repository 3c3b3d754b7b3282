package pool

import (
	"errors"
	"fmt"

	"github.com/dmlayer/dmlayer/devmapper"
)

// activateLinear puts linear devices over what the pool's table names: over the metadata, less the part that is held back, and
// over data that does not begin where its device begins.
func (p *Pool) activateLinear(a attached, held int64) (meta, data devmapper.DevNum, err error) {
	data = a.data
	if a.dataStart > 0 {
		if data, err = p.linear(suffixData, dataTarget(a)); err != nil {
			return meta, data, err
		}
	}
	if meta, err = p.linear(suffixMetadata, metadataTarget(a, held)); err != nil {
		err = errors.Join(err, p.removeLinear())
	}
	return meta, data, err
}

// dataTarget is the linear target over the data of a backing whose data does not begin with its device.
func dataTarget(a attached) devmapper.Target { return linearTarget(a.data, a.dataStart, a.dataSize) }

// metadataTarget is the linear target over the metadata, of which held bytes at the end stay outside.
func metadataTarget(a attached, held int64) devmapper.Target {
	return linearTarget(a.metadata, a.metadataStart, (a.metadataSize-held)&^4095)
}

func linearTarget(dev devmapper.DevNum, start, size int64) devmapper.Target {
	return devmapper.Target{
		Length: devmapper.SectorsOf(uint64(size)), Type: "linear",
		Params: fmt.Sprintf("%s %d", dev, devmapper.SectorsOf(uint64(start))),
	}
}

// linear makes one of the pool's linear devices.
func (p *Pool) linear(suffix string, t devmapper.Target) (devmapper.DevNum, error) {
	uuid := deviceUUID(p.record.UUID, suffix)
	if _, err := p.dm.Create(deviceName(p.record.UUID, suffix), uuid); err != nil {
		return devmapper.DevNum{}, err
	}
	ref := devmapper.ByUUID(uuid)
	err := p.dm.Load(ref, devmapper.LoadOptions{}, t)
	var info devmapper.Info
	if err == nil {
		info, err = p.dm.Resume(ref, devmapper.ResumeOptions{})
	}
	if err != nil {
		return devmapper.DevNum{}, errors.Join(err, p.removeDevice(uuid))
	}
	return info.Dev, nil
}

// removeLinear removes the linear devices; what is not there is no error.
func (p *Pool) removeLinear() error {
	return errors.Join(p.removeDevice(deviceUUID(p.record.UUID, suffixMetadata)), p.removeDevice(deviceUUID(p.record.UUID, suffixData)))
}
