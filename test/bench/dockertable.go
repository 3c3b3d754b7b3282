package main

import (
	"fmt"
	"os"
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
	{"start", nil},
	{"diff", map[string]float64{"devicemapper": 1}},
	{"commit", map[string]float64{"devicemapper": 1}},
}

// printDocker prints medians, with what the fastest tenth stays below, and what the first one takes of the others' time.
func printDocker(all []*daemon, c *dockerConfig) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "%s, ms, median (fastest tenth)\t", c.image)
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
				fmt.Fprintf(w, "%.1f (%.1f)\t", inMS(median(times)), inMS(percentile(times, 10)))
			}
		}
		for _, d := range all[1:] {
			target, ok := step.targets[d.name]
			if !ok || len(d.times.steps[step.name]) == 0 {
				continue
			}
			mine, theirs := all[0].times.steps[step.name], d.times.steps[step.name]
			fmt.Fprintf(w, "%s %.2f (%.2f) of %.1f  ", d.name, inMS(median(mine))/inMS(median(theirs)), inMS(percentile(mine, 10))/inMS(percentile(theirs, 10)), target)
		}
		fmt.Fprint(w, "\t\n")
	}
	_ = w.Flush()
}

func inMS(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// printRequests prints what each request of a container costs at the plugins.
func printRequests(all []*daemon) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	defer w.Flush()
	var columns []*series
	fmt.Fprint(w, "request, ms, median (fastest tenth)\t")
	for _, d := range all {
		if d.plugin != nil {
			fmt.Fprintf(w, "%s\t", d.name)
			columns = append(columns, &d.requests)
		}
	}
	fmt.Fprintln(w)
	for _, c := range append(pluginCalls, pluginCall{name: "files init"}) {
		fmt.Fprintf(w, "%s\t", c.name)
		for _, s := range columns {
			fmt.Fprintf(w, "%.2f (%.2f)\t", inMS(median(s.steps[c.name])), inMS(percentile(s.steps[c.name], 10)))
		}
		fmt.Fprintln(w)
	}
	fmt.Fprint(w, "all\t")
	for _, s := range columns {
		fmt.Fprintf(w, "%.2f (%.2f)\t", inMS(median(s.rounds)), inMS(percentile(s.rounds, 10)))
	}
	fmt.Fprintln(w)
}
