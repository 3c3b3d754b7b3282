package pool

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// look is how full a pool was at a moment. The last ones are kept in the run directory by whoever inspects the pool, so that the next one can tell
// how fast it fills. They are worth no lock: one that is lost is one that was not taken.
type look struct {
	Time     time.Time `json:"time"`
	Data     int64     `json:"data"`     // bytes in use
	Metadata int64     `json:"metadata"` // bytes in use
}

const (
	looksApart = 10 * time.Second // looks that are closer to the last one are not kept
	looksBack  = time.Hour        // how far back the present rate begins, where there is a look of that time
	looksOld   = 24 * time.Hour   // older ones say nothing of the present
	maxLooks   = 400              // of looksBack, and a few
)

func (p *Pool) looksFile() string { return filepath.Join(p.StateDir(), "looks") }

// looked keeps a look, and returns those that there were, the oldest first.
func (p *Pool) looked(now look) []look {
	var before []look
	text, err := os.ReadFile(p.looksFile())
	if err == nil && json.Unmarshal(text, &before) != nil {
		before = nil // somebody else wrote it: it begins anew
	}
	before = recent(before, now.Time)
	if n := len(before); n > 0 && now.Time.Sub(before[n-1].Time) < looksApart {
		return before
	}
	if err := writeLooks(p.looksFile(), append(slices.Clone(before), now)); err != nil {
		p.log.Debug("keep how full the pool is", "error", err)
	}
	return before
}

// recent leaves out what is not of the time before now in which a rate is of the present. Where all is older than that, the
// last one stays for a day.
func recent(looks []look, now time.Time) []look {
	past := slices.DeleteFunc(looks, func(l look) bool {
		age := now.Sub(l.Time)
		return age < 0 || age > looksOld || l.Data < 0 || l.Metadata < 0
	})
	slices.SortFunc(past, func(a, b look) int { return a.Time.Compare(b.Time) })
	for len(past) > 1 && (now.Sub(past[0].Time) > looksBack || len(past) > maxLooks) {
		past = past[1:]
	}
	return past
}

func writeLooks(path string, looks []look) error {
	text, err := json.Marshal(looks)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".looks-*")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// fullIn is in how many seconds all of total is used up at the rate since the oldest look; nil where that is not known, or it does
// not fill.
func fullIn(before []look, now look, used func(look) int64, total int64) *int64 {
	if len(before) == 0 {
		return nil
	}
	seconds, bytes := now.Time.Sub(before[0].Time).Seconds(), used(now)-used(before[0])
	if seconds < looksApart.Seconds() || bytes <= 0 {
		return nil
	}
	left := float64(max(total-used(now), 0)) / (float64(bytes) / seconds)
	const never = 100 * 365 * 24 * 3600
	if left > never {
		return nil
	}
	n := int64(left)
	return &n
}
