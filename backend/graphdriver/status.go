package graphdriver

import (
	"context"
	"fmt"
	"strings"

	"github.com/docker/go-units"
)

// loopWarning is what docker info says of a pool on files. Docker itself warns where it sees a "Data loop file", in words of the devicemapper driver.
const loopWarning = "a pool on files is slow and for trying things out; for production: dmlayer pool create --vg VG, see docs/docker.md"

// Status tells what docker info shows of the pool: names of the devicemapper driver where they say the same, so that what reads them goes on working.
func (d *Driver) Status(ctx context.Context) ([][2]string, error) {
	st, err := d.store.PoolStatus(ctx)
	if err != nil {
		return nil, err
	}
	var list [][2]string
	add := func(key, value string) { list = append(list, [2]string{key, value}) }
	space := func(what string, used, total *int64) {
		if used == nil || total == nil {
			return
		}
		add(what+" Space Used", human(*used))
		add(what+" Space Total", human(*total))
		add(what+" Space Available", human(max(*total-*used, 0)))
	}
	add("Pool Name", st.Name)
	add("Pool UUID", st.UUID)
	add("Pool State", st.State)
	add("Pool Blocksize", human(st.BlockSize))
	add("Base Device Size", human(max(st.BaseSize, d.currentOptions().BaseSize)))
	add("Backing", st.Backing)
	add("Backing Filesystem", st.FS)
	space("Data", st.DataUsed, st.DataTotal)
	space("Metadata", st.MetadataUsed, st.MetadataTotal)
	if free := d.store.Pool().Record().Space.MinFree; free > 0 && st.DataTotal != nil {
		add("Thin Pool Minimum Free Space", fmt.Sprintf("%s (%d%%)", human(*st.DataTotal*int64(free)/100), free))
	}
	if options := append(append([]string{}, st.MountOptions...), d.currentOptions().MountOptions...); len(options) > 0 {
		add("Mount Options", strings.Join(options, ","))
	}
	add("Layers", fmt.Sprint(st.Layers))
	add("Snapshots", fmt.Sprint(st.Snapshots))
	add("Volumes", fmt.Sprint(st.Volumes))
	if st.Backing == "loopback" {
		add("Data loop file", st.DataFile)
		add("Metadata loop file", st.MetadataFile)
		add("WARNING", loopWarning)
	}
	return list, nil
}

func human(bytes int64) string { return units.BytesSize(float64(bytes)) }
