package main

import (
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
	"time"
)

// notes say what the rows are.
const notes = `floor: sha256sum of the blobs of the layout (gzip layers, config, manifest); then, for each layer in order,
  tar -xpzf with --numeric-owner --xattrs --xattrs-include='*' --recursive-unlink, onto one empty ext4 on a thin
  device of the same pool, whiteouts unpacked as the files that they look like; then syncfs and unmount. Making and
  removing the device is not in it.
image load: the command, from its start to its end: read, checked, unpacked, a thin device per layer, recorded, durable.
  "again" is the same command once more, with all of the image there. "-" reads the archive from a pipe.
containerd: ctr images import --local --snapshotter, from its start to its end, unpacking included; its content store
  and overlayfs on one ext4 on a thin device of the same pool, its devmapper on a pool of its own beside it. Of the
  large image only the first six of eight layers, of which the last two are tiny: it cannot unpack the seventh.
Seconds are medians of rounds; what they are of the floor is the median of each round's ratio to its own floor.
All archives are read from memory. Peak memory is that of the largest process; of containerd, of the daemon since its start.
`

func (b *imagesBench) print(kinds []loadKind, results []loadResults) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "%s, seconds\tmedian\tleast\tmost\tof the floor\tpeak MiB\trounds\t\n", b.image)
	floor := results[0].rounds
	for i, k := range kinds {
		r := results[i]
		if len(r.names) == 1 {
			row(w, k.name+" "+r.names[0], r.rounds, floor, r.peaks.peaks[r.names[0]])
			continue
		}
		if i == 0 {
			row(w, k.name, r.rounds, floor, 0)
		}
		for _, step := range r.names {
			row(w, k.name+": "+step, r.steps[step], floor, r.peaks.peaks[step])
		}
	}
	_ = w.Flush()
	fmt.Print(notes)
}

// row prints the times of a step. What they are of the floor is the median of the rounds' own ratios: the machine's
// speed changes between rounds.
func row(w *tabwriter.Writer, name string, times, floor []time.Duration, bytes int64) {
	ratios := make([]float64, len(times))
	for i, t := range times {
		ratios[i] = float64(t) / float64(floor[i])
	}
	slices.Sort(ratios)
	peak := "-"
	if bytes > 0 {
		peak = fmt.Sprint(bytes >> 20)
	}
	fmt.Fprintf(w, "%s\t%.2f\t%.2f\t%.2f\t%.3f\t%s\t%d\t\n", name, median(times).Seconds(), slices.Min(times).Seconds(), slices.Max(times).Seconds(),
		ratios[len(ratios)/2], peak, len(times))
}
