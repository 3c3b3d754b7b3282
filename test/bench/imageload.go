package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/dmlayer/dmlayer/image"
)

// loadRound loads an archive with the command, twice, and removes it.
func (b *imagesBench) loadRound(source string) func(context.Context, *loadTimer) error {
	return func(ctx context.Context, t *loadTimer) error {
		for _, step := range []string{"first", "again"} {
			if err := b.load(ctx, t, step, source); err != nil {
				return err
			}
		}
		return program(b.dmlayer(ctx, "image", "rm", b.image+":latest"))
	}
}

func (b *imagesBench) load(ctx context.Context, t *loadTimer, step, source string) error {
	cmd := b.dmlayer(ctx, "image", "load", source)
	if source != "-" {
		return t.timed(step, cmd)
	}
	// A pipe, as from docker save: a file on standard input could be read out of order.
	cat := exec.CommandContext(ctx, "cat", b.tar)
	pipe, err := cat.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stdin = pipe
	if err := cat.Start(); err != nil {
		return err
	}
	err = t.timed(step, cmd)
	_ = pipe.Close()
	if werr := cat.Wait(); err == nil {
		err = werr
	}
	return err
}

func (b *imagesBench) dmlayer(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, b.command, append([]string{"--root", b.dirs.Root, "--run", b.dirs.Run, "--pool", imagesPool}, args...)...)
}

// profiled loads in this process and writes a profile of all loads but the first.
func (b *imagesBench) profiled(ctx context.Context) error {
	stop := func() {}
	defer func() { stop() }()
	var times []time.Duration
	for round := range b.rounds + 1 {
		if round == 1 {
			var err error
			if stop, err = startProfile(b.profile); err != nil {
				return err
			}
		}
		from := time.Now()
		loaded, err := image.Load(ctx, b.store, b.layout, image.LoadOptions{})
		if err != nil {
			return err
		}
		if round > 0 {
			times = append(times, time.Since(from))
		}
		for _, l := range loaded {
			if _, err := image.Remove(ctx, b.store, l.String()); err != nil {
				return err
			}
		}
	}
	_, err := fmt.Fprintf(os.Stdout, "%s, in one process, from the layout: median %.2f s of %d rounds; profile in %s\n",
		b.image, median(times).Seconds(), len(times), b.profile)
	return err
}
