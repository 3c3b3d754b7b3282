package main

import (
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
	"time"
)

// dockerSteps are what is measured, and which of the others dmlayer is held against, with what it may take of their time.
var dockerSteps = []struct {
	name    string
	targets map[string]float64
}{
	{"load", map[string]float64{"overlay2": 1, "devicemapper": 1}},
	{"create", nil},
	{"delete", nil},
	{"create+delete", map[string]float64{"overlay2": 1.2}},
	{"create, plugin", nil},
	{"delete, plugin", nil},
	{"start", nil},
	{"diff", map[string]float64{"devicemapper": 1}},
	{"commit", map[string]float64{"devicemapper": 1}},
}

// printDocker prints medians, with the least and the most, and what the first one takes of the others' time.
func printDocker(all []*daemon, c *dockerConfig) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "%s, ms, median (least to most)\t", c.image)
	for _, d := range all {
		fmt.Fprintf(w, "%s\t", d.name)
		for i, made := range d.times.steps["create"] {
			d.times.steps["create+delete"] = append(d.times.steps["create+delete"], made+d.times.steps["delete"][i])
		}
	}
	fmt.Fprintf(w, "%s is held against\t\n", all[0].name)
	for _, step := range dockerSteps {
		fmt.Fprintf(w, "%s\t", step.name)
		for _, d := range all {
			if times := d.times.steps[step.name]; len(times) == 0 {
				fmt.Fprint(w, "-\t")
			} else {
				fmt.Fprintf(w, "%.1f (%.1f to %.1f)\t", inMS(median(times)), inMS(slices.Min(times)), inMS(slices.Max(times)))
			}
		}
		for _, d := range all[1:] {
			target, ok := step.targets[d.name]
			if !ok || len(d.times.steps[step.name]) == 0 {
				continue
			}
			fmt.Fprintf(w, "%s %.2f of %.1f  ", d.name, inMS(median(all[0].times.steps[step.name]))/inMS(median(d.times.steps[step.name])), target)
		}
		fmt.Fprint(w, "\t\n")
	}
	_ = w.Flush()
}

func inMS(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
