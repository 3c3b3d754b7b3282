package service_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/service"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

func TestMain(m *testing.M) {
	pooltest.Main(m, pooltest.Operations{
		"serve":   childServe,
		"freeze":  childFreeze,
		"destroy": func(ctx context.Context, j pooltest.Job) error { return pool.Destroy(ctx, j.Dirs, j.Pool) },
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// childServe serves until it is killed.
func childServe(ctx context.Context, j pooltest.Job) error {
	return service.Run(ctx, service.Config{Dirs: j.Dirs, Pool: j.Pool, Ticks: make(chan time.Time)})
}

// childFreeze commits a snapshot in use.
func childFreeze(ctx context.Context, j pooltest.Job) error {
	s, err := layer.Open(ctx, layer.Config{Dirs: j.Dirs, Pool: j.Pool})
	if err != nil {
		return err
	}
	_, err = s.Commit(ctx, j.Args[0], j.Args[1], layer.CommitOptions{})
	return errors.Join(err, s.Close())
}

// served is a service that runs in this process.
type served struct {
	t     testing.TB
	ticks chan time.Time
	again chan struct{}
	logs  *logs
	stop  func() error
}

// serve runs the service for a pool until the test ends, or stop is called. It has looked at the pool once when it returns.
func serve(t testing.TB, e *pooltest.Env) *served {
	t.Helper()
	s := begin(t, e)
	s.until("serving")
	s.look()
	return s
}

// begin is serve that returns at once.
func begin(t testing.TB, e *pooltest.Env) *served {
	t.Helper()
	s := &served{t: t, ticks: make(chan time.Time), again: make(chan struct{}), logs: newLogs()}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- service.Run(ctx, service.Config{
			Dirs: e.Dirs, Pool: e.Name, Logger: slog.New(s.logs), Ticks: s.ticks, Again: s.again,
		})
		s.logs.end()
	}()
	s.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() {
		must(t, s.stop())
		if t.Failed() {
			t.Log(s.logs.String())
		}
	})
	return s
}

// look has everything looked at, and returns when that has been done.
func (s *served) look() {
	s.t.Helper()
	for range 2 { // the second is taken when the first has been dealt with
		select {
		case s.again <- struct{}{}:
		case <-pooltest.Context(s.t).Done():
			s.t.Fatalf("the service does not look\n%s", s.logs)
		}
	}
}

// until waits until something was logged that has all of the words.
func (s *served) until(words ...string) string {
	s.t.Helper()
	line, err := s.logs.until(pooltest.Context(s.t), words)
	if err != nil {
		s.t.Fatalf("%v: %q was not logged\n%s", err, words, s.logs)
	}
	return line
}

// logs keeps what is logged.
type logs struct {
	mu    sync.Mutex
	lines []string
	more  chan struct{} // closed with the next line
	over  bool
	begin time.Time
}

func newLogs() *logs { return &logs{more: make(chan struct{}), begin: time.Now()} }

func (l *logs) Enabled(context.Context, slog.Level) bool { return true }
func (l *logs) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logs) WithGroup(string) slog.Handler            { return l }

func (l *logs) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%.2f %s %s", time.Since(l.begin).Seconds(), r.Level, r.Message)
	r.Attrs(func(a slog.Attr) bool { b.WriteString(" " + a.String()); return true })
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, b.String())
	l.wakeLocked()
	return nil
}

func (l *logs) wakeLocked() {
	close(l.more)
	l.more = make(chan struct{})
}

func (l *logs) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	l.wakeLocked()
}

func (l *logs) until(ctx context.Context, words []string) (string, error) {
	for {
		l.mu.Lock()
		more, over := l.more, l.over
		for _, line := range l.lines {
			if hasAll(line, words) {
				l.mu.Unlock()
				return line, nil
			}
		}
		l.mu.Unlock()
		if over {
			return "", errors.New("the service has ended")
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-more:
		}
	}
}

func hasAll(line string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(line, w) {
			return false
		}
	}
	return true
}

// count tells how often something was logged.
func (l *logs) count(words ...string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if hasAll(line, words) {
			n++
		}
	}
	return n
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

// hook is a program that writes its environment to a file of its own, and returns what was written so far by event.
func hook(t testing.TB) (program string, called func() map[string]map[string]string) {
	t.Helper()
	dir := t.TempDir()
	program = filepath.Join(dir, "hook")
	must(t, os.WriteFile(program, []byte("#!/bin/sh\nenv >"+dir+"/$DMLAYER_EVENT-$DMLAYER_THRESHOLD.env\n"), 0o700))
	return program, func() map[string]map[string]string {
		files, err := filepath.Glob(filepath.Join(dir, "*.env"))
		must(t, err)
		all := map[string]map[string]string{}
		for _, f := range files {
			text, err := os.ReadFile(f)
			must(t, err)
			all[strings.TrimSuffix(filepath.Base(f), ".env")] = maps.Collect(func(yield func(string, string) bool) {
				for line := range strings.Lines(string(text)) {
					if k, v, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "="); ok && !yield(k, v) {
						return
					}
				}
			})
		}
		return all
	}
}
