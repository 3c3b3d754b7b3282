package torture_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// orders are what a child is told: an actor works as a process of its own, and writes down what it is about
// to do and what it has done, so that both are known when it is killed.
type orders struct {
	Actor      int
	Base       int64 // size
	Seed       uint64
	Operations int
	Dir        string        // of its state, its ledger and its archives
	Shared     bool          // it also works on nodes of everybody
	Kill       time.Duration // 0: it is left to its end
}

func (o orders) stateFile() string  { return filepath.Join(o.Dir, fmt.Sprintf("state-%d", o.Actor)) }
func (o orders) ledgerFile() string { return filepath.Join(o.Dir, fmt.Sprintf("ledger-%d", o.Actor)) }
func (o orders) eventFile() string  { return filepath.Join(o.Dir, fmt.Sprintf("events-%d", o.Actor)) }

// entry is a line of the ledger: an operation that is begun, or the word that it was done.
type entry struct {
	Done    bool
	Text    string
	Refused bool
	States  []state
	Mixed   bool
}

func start(t testing.TB, e *pooltest.Env, o orders) *pooltest.Child {
	t.Helper()
	text, err := json.Marshal(o)
	must(t, err)
	return pooltest.Start(t, pooltest.Job{Op: "actor", Dirs: e.Dirs, Pool: e.Name, Args: []string{string(text)}})
}

// childActor lets an actor go on from the state that its file says.
func childActor(ctx context.Context, j pooltest.Job) error {
	var o orders
	if err := json.Unmarshal([]byte(j.Args[0]), &o); err != nil {
		return err
	}
	return o.act(ctx, j.Dirs, j.Pool)
}

func (o orders) act(ctx context.Context, dirs pool.Dirs, name string) error {
	if err := killSelfAfter(o.Kill); err != nil {
		return err
	}
	a := newActor(o.Actor, o.Base, o.Seed, o.Dir)
	if err := readJSON(o.stateFile(), &a.state); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ledger, err := os.OpenFile(o.ledgerFile(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer ledger.Close()
	s, err := layer.Open(ctx, layer.Config{Dirs: dirs, Pool: name})
	if err != nil {
		return err
	}
	defer s.Close()
	h := &sharer{rnd: rand.New(rand.NewPCG(o.Seed, uint64(o.Actor)+100)), file: o.eventFile()}
	for k := range o.Operations {
		if o.Shared {
			if err := h.do(ctx, s); err != nil {
				return fmt.Errorf("operation %d: %w", k, err)
			}
		}
		op := a.next()
		if err := writeEntry(ledger, entry{Text: op.text, Refused: op.want != nil, States: op.states, Mixed: op.mixed}); err != nil {
			return err
		}
		if err := a.do(ctx, s, op); err != nil {
			return fmt.Errorf("operation %d: %w", k, err)
		}
		if err := writeEntry(ledger, entry{Done: true}); err != nil {
			return err
		}
	}
	return nil
}

func writeEntry(f *os.File, e any) error {
	b, err := json.Marshal(e)
	if err == nil {
		_, err = f.Write(append(b, '\n'))
	}
	return err
}

func readJSON(path string, into any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

// killSelfAfter has the kernel kill this process in a while, wherever it is then.
func killSelfAfter(d time.Duration) error {
	if d == 0 {
		return nil
	}
	event := struct { // struct sigevent
		value  uint64
		signal int32
		notify int32 // SIGEV_SIGNAL
		_      [48]byte
	}{signal: int32(unix.SIGKILL)}
	var id int32
	_, _, errno := unix.Syscall(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&event)), uintptr(unsafe.Pointer(&id)))
	if errno != 0 {
		return errno
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}
	if _, _, errno := unix.Syscall6(unix.SYS_TIMER_SETTIME, uintptr(id), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// follow returns the state after what a ledger says, the operation that was under way at its end, if any,
// and the last operations for people.
func (o orders) follow() (before state, under *operation, lines []string, err error) {
	before = emptyState()
	if err := readJSON(o.stateFile(), &before); err != nil && !errors.Is(err, os.ErrNotExist) {
		return before, nil, nil, err
	}
	f, err := os.Open(o.ledgerFile())
	if errors.Is(err, os.ErrNotExist) {
		return before, nil, nil, nil
	}
	if err != nil {
		return before, nil, nil, err
	}
	defer f.Close()
	scan := bufio.NewScanner(f)
	scan.Buffer(nil, 1<<24)
	for scan.Scan() {
		var e entry
		if json.Unmarshal(scan.Bytes(), &e) != nil {
			break // half a line, of an operation that was not begun
		}
		if e.Done {
			before, under = under.done(before), nil
			continue
		}
		under = &operation{text: e.Text, states: e.States, mixed: e.Mixed}
		if e.Refused {
			under.want = errRefused
		}
		lines = append(lines, e.Text)
	}
	return before, under, lines, scan.Err()
}

var errRefused = errors.New("refused")
