package service

import (
	"context"
	"log/slog"
	"strconv"
	"time"

	"github.com/dmlayer/dmlayer/internal/run"
	"github.com/dmlayer/dmlayer/pool"
)

// The events that a hook is told of, in DMLAYER_EVENT.
const (
	eventData     = "data-threshold"     // the data in use has come to DMLAYER_THRESHOLD percent
	eventMetadata = "metadata-threshold" // the same of the metadata
	eventGrown    = "grown"              // the pool is larger, by DMLAYER_DATA_ADDED and DMLAYER_METADATA_ADDED bytes
	eventStuck    = "grow-failed"        // it should be larger and cannot; DMLAYER_ERROR says why
)

const (
	hookTimeout = time.Minute
	hooksQueued = 16
)

// hookCall is one start of a hook.
type hookCall struct {
	program string
	event   string
	detail  string // the threshold, where the event has one
	env     []string
}

// hooks starts the programs that want to know how a pool is, one after the other.
type hooks struct {
	log   *slog.Logger
	calls chan hookCall
}

func newHooks(log *slog.Logger) *hooks { return &hooks{log, make(chan hookCall, hooksQueued)} }

// call has a program started soon. Where too many are waiting already, it is not, and that is logged.
func (h *hooks) call(c hookCall) {
	if c.program == "" {
		return
	}
	select {
	case h.calls <- c:
	default:
		h.log.Warn("hook not started: those before it have not ended", "hook", c.program, "event", c.event, "threshold", c.detail)
	}
}

// run is the task that starts them.
func (h *hooks) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case c := <-h.calls:
			h.start(ctx, c)
		}
	}
}

func (h *hooks) start(ctx context.Context, c hookCall) {
	ctx, cancel := context.WithTimeout(ctx, hookTimeout)
	defer cancel()
	h.log.Debug("hook", "hook", c.program, "event", c.event, "threshold", c.detail)
	if _, err := run.Do(ctx, run.Cmd{Program: c.program, Env: c.env}); err != nil {
		h.log.Warn("hook failed", "hook", c.program, "event", c.event, "threshold", c.detail, "error", err)
		return
	}
	h.log.Debug("hook has ended", "hook", c.program, "event", c.event, "threshold", c.detail)
}

// hookEnv is what a hook gets to know.
func (c Config) hookEnv(uuid, event string, t pool.Tended, more ...string) []string {
	n := func(v int64) string { return strconv.FormatInt(v, 10) }
	return append([]string{
		"DMLAYER_EVENT=" + event,
		"DMLAYER_POOL=" + c.Pool,
		"DMLAYER_POOL_UUID=" + uuid,
		"DMLAYER_STATE=" + t.State,
		"DMLAYER_DATA_USED=" + n(t.DataUsed),
		"DMLAYER_DATA_TOTAL=" + n(t.DataTotal),
		"DMLAYER_DATA_PERCENT=" + strconv.Itoa(t.DataPercent()),
		"DMLAYER_METADATA_USED=" + n(t.MetadataUsed),
		"DMLAYER_METADATA_TOTAL=" + n(t.MetadataTotal),
		"DMLAYER_METADATA_PERCENT=" + strconv.Itoa(t.MetadataPercent()),
		"DMLAYER_ROOT=" + c.Dirs.Root,
		"DMLAYER_RUN=" + c.Dirs.Run,
	}, more...)
}

// level is the highest threshold that has been reached, 0 for none.
func level(percent int) int {
	reached := 0
	for _, t := range pool.Thresholds {
		if percent >= t {
			reached = max(reached, t)
		}
	}
	return reached
}
