package cli

import (
	"testing"
	"time"
)

func TestParseUntil(t *testing.T) {
	local := time.Local
	time.Local = time.FixedZone("", 2*3600)
	t.Cleanup(func() { time.Local = local })
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	for s, want := range map[string]string{
		"24h": "2026-11-19T12:00:00Z", "1h30m": "2026-11-20T10:30:00Z", "0": "2026-11-20T12:00:00Z",
		"2026-01-31": "2026-01-30T22:00:00Z", "2026-01-31Z": "2026-01-31T00:00:00Z", "2026-01-31T15:00": "2026-01-31T13:00:00Z",
		"2026-01-31T15:00:01": "2026-01-31T13:00:01Z", "2026-01-31T15:00:01Z": "2026-01-31T15:00:01Z",
		"2026-01-31T15:00:01.5+01:00": "2026-01-31T14:00:01.5Z", "1700000000": "2023-11-14T22:13:20Z",
		"soon": "", "-1h": "", "2026-13-01": "", "-5": "", "": "", "99999999999999999999": "",
	} {
		got, err := parseUntil(s, now)
		if want == "" && err == nil || want != "" && (err != nil || got.UTC().Format(time.RFC3339Nano) != want) {
			t.Errorf("%q: %s (%v), want %q", s, got.UTC().Format(time.RFC3339Nano), err, want)
		}
	}
}
