package cli

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dmlayer/dmlayer/image"
)

// parseImageFilters reads the words of --filter, of which the command knows some keys.
func parseImageFilters(words []string, now time.Time, keys ...string) (image.Filter, error) {
	var f image.Filter
	for _, word := range words {
		key, value, ok := strings.Cut(word, "=")
		if !ok || value == "" || !slices.Contains(keys, key) {
			return f, usagef("--filter %q: must be one of %s= with a value", word, strings.Join(keys, "=, "))
		}
		if err := addImageFilter(&f, word, key, value, now); err != nil {
			return f, err
		}
	}
	return f, nil
}

func addImageFilter(f *image.Filter, word, key, value string, now time.Time) error {
	switch key {
	case "reference":
		f.References = append(f.References, value)
	case "dangling":
		yes, err := strconv.ParseBool(value)
		if err != nil || f.Dangling != nil && *f.Dangling != yes {
			return usagef("--filter %q: must be true or false, once", word)
		}
		f.Dangling = &yes
	case "label", "label!":
		l := image.Label{Not: key == "label!"}
		var has bool
		if l.Key, value, has = strings.Cut(value, "="); l.Key == "" {
			return usagef("--filter %q: the label has no key", word)
		}
		if has {
			l.Value = &value
		}
		f.Labels = append(f.Labels, l)
	case "before", "since":
		if err := checkRef(value); err != nil {
			return err
		}
		if key == "before" {
			f.Before = append(f.Before, value)
		} else {
			f.Since = append(f.Since, value)
		}
	case "until":
		t, err := parseUntil(value, now)
		if err != nil {
			return err
		}
		if f.Until.IsZero() || t.Before(f.Until) {
			f.Until = t
		}
	}
	return nil
}

// parseUntil reads a time as Docker's users write it: a date, with or without the time of the day and its
// zone, seconds since 1970, or a duration before now.
func parseUntil(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02", "2006-01-02Z07:00"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil && n >= 0 {
		return time.Unix(n, 0), nil
	}
	return time.Time{}, usagef("time %q: must be a date such as 2026-01-31 or 2026-01-31T15:00:00Z, seconds since 1970, or a duration such as 24h", s)
}
