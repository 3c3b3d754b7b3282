package pool

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestFullIn(t *testing.T) {
	at := func(after time.Duration, used int64) look {
		return look{Time: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(after), Data: used}
	}
	const gib = 1 << 30
	for _, c := range []struct {
		name   string
		before []look
		now    look
		want   int64 // -1: not known
	}{
		{"nothing known", nil, at(0, gib), -1},
		{"fills", []look{at(0, gib)}, at(time.Minute, 2*gib), 8 * 60},
		{"since the oldest", []look{at(0, gib), at(50*time.Second, 5*gib)}, at(100*time.Second, 6*gib), 80},
		{"stands still", []look{at(0, gib)}, at(time.Minute, gib), -1},
		{"becomes empty", []look{at(0, gib)}, at(time.Minute, 1), -1},
		{"too soon", []look{at(0, gib)}, at(time.Second, 2*gib), -1},
		{"full", []look{at(0, gib)}, at(time.Minute, 10*gib), 0},
		{"never", []look{at(0, gib)}, at(24*time.Hour, gib+1), -1},
	} {
		got := fullIn(c.before, c.now, func(l look) int64 { return l.Data }, 10*gib)
		if (got == nil) != (c.want < 0) || got != nil && *got != c.want {
			t.Errorf("%s: %v, want %d", c.name, got, c.want)
		}
	}
}

func TestRecentLooks(t *testing.T) {
	now := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) look { return look{Time: now.Add(-d)} }
	for _, c := range []struct {
		name   string
		looks  []look
		oldest time.Duration
		n      int
	}{
		{"of an hour", []look{ago(2 * time.Hour), ago(50 * time.Minute), ago(time.Minute)}, 50 * time.Minute, 2},
		{"none of an hour", []look{ago(5 * time.Hour), ago(3 * time.Hour)}, 3 * time.Hour, 1},
		{"out of order", []look{ago(time.Minute), ago(30 * time.Minute)}, 30 * time.Minute, 2},
		{"of yesterday", []look{ago(25 * time.Hour)}, 0, 0},
		{"of the future", []look{ago(-time.Hour)}, 0, 0},
	} {
		got := recent(c.looks, now)
		if len(got) != c.n || c.n > 0 && now.Sub(got[0].Time) != c.oldest {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	many := make([]look, 3*maxLooks)
	for i := range many {
		many[i] = ago(time.Duration(len(many)-i) * time.Second)
	}
	if got := recent(many, now); len(got) != maxLooks {
		t.Errorf("%d looks are kept", len(got))
	}
}

// Foreign bytes in the place of the looks are replaced, and a place where nothing can be kept is no error.
func TestLooked(t *testing.T) {
	p := &Pool{files: files{dirs: Dirs{Run: t.TempDir()}, name: "p"}, log: slog.New(slog.DiscardHandler)}
	now := look{Time: time.Now().UTC(), Data: 1}
	if got := p.looked(now); got != nil {
		t.Errorf("without a folder: %v", got)
	}
	must(t, os.MkdirAll(filepath.Dir(p.looksFile()), 0o700))
	must(t, os.WriteFile(p.looksFile(), []byte("[{"), 0o600))
	if got := p.looked(now); len(got) != 0 {
		t.Errorf("of foreign bytes: %v", got)
	}
	later := look{Time: now.Time.Add(time.Second), Data: 2}
	if got := p.looked(later); len(got) != 1 || got[0] != now {
		t.Errorf("one look: %v", got)
	}
	later.Time = now.Time.Add(time.Minute)
	p.looked(later)
	if got := p.looked(look{Time: later.Time.Add(time.Minute)}); len(got) != 2 || got[0] != now || got[1] != later {
		t.Errorf("two looks, and one too close to the first: %v", got)
	}
}

// FuzzLooks: nothing that lies in the run directory makes an inspection fail.
func FuzzLooks(f *testing.F) {
	f.Add([]byte(`[{"time":"2026-01-01T00:00:00Z","data":1,"metadata":2}]`))
	f.Add([]byte(`[{"time":"2262-01-01T00:00:00Z","data":-9223372036854775808}]`))
	f.Add([]byte(`{}`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte) {
		p := &Pool{files: files{dirs: Dirs{Run: dir}, name: "p"}, log: slog.New(slog.DiscardHandler)}
		must(t, os.MkdirAll(filepath.Dir(p.looksFile()), 0o700))
		must(t, os.WriteFile(p.looksFile(), text, 0o600))
		now := look{Time: time.Now().UTC(), Data: 5, Metadata: 5}
		for _, l := range p.looked(now) {
			if l.Data < 0 || l.Metadata < 0 || l.Time.After(now.Time) {
				t.Errorf("taken: %v", l)
			}
		}
	})
}
