package cli

import (
	"regexp"
	"slices"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"
)

// maxSize is far above what the kernel takes and far below where arithmetic in bytes overflows; the
// pool has the limits that mean something.
const maxSize = 1 << 60

// parseSize reads a size in binary units: 10G is 10 GiB. A + would be taken for that much more by who writes it,
// and so has no place where a size is one.
func parseSize(s string) (int64, error) {
	n, err := units.RAMInBytes(s)
	switch {
	case err == nil && strings.HasPrefix(s, "+"):
		return 0, usagef("size %q: must be a size, not how much more", s)
	case err != nil:
		return 0, usagef("size %q: must be a number with a unit, such as 512M or 10G", s)
	case n > maxSize, n < 0: // a float too large for an int64 converts to either, by architecture
		return 0, usagef("size %q: too large", s)
	case n == 0:
		return 0, usagef("size %q: must be more than 0", s)
	}
	return n, nil
}

// sizeFlag is a flag that takes a size.
type sizeFlag struct{ bytes *int64 }

var _ pflag.Value = sizeFlag{}

func (f sizeFlag) String() string {
	if f.bytes == nil || *f.bytes == 0 {
		return ""
	}
	return humanSize(*f.bytes)
}

func (f sizeFlag) Type() string { return "size" }

func (f sizeFlag) Set(s string) (err error) {
	*f.bytes, err = parseSize(s)
	return err
}

// autoSizeFlag is a size flag that also takes "auto", which is 0.
type autoSizeFlag struct{ sizeFlag }

func (f autoSizeFlag) String() string {
	if s := f.sizeFlag.String(); s != "" {
		return s
	}
	return "auto"
}

func (f autoSizeFlag) Set(s string) error {
	if s == "auto" {
		*f.bytes = 0
		return nil
	}
	return f.sizeFlag.Set(s)
}

// choiceFlag is a flag that takes one of a few words; "" until it is set.
type choiceFlag struct {
	value   *string
	choices []string
}

func (f choiceFlag) String() string {
	if f.value == nil {
		return ""
	}
	return *f.value
}

func (f choiceFlag) Type() string { return strings.Join(f.choices, "|") }

func (f choiceFlag) Set(s string) error {
	if !slices.Contains(f.choices, s) {
		return usagef("must be one of %s", strings.Join(f.choices, ", "))
	}
	*f.value = s
	return nil
}

var labelKey = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/-]{0,126}[A-Za-z0-9_])?$`)

// maxLabelValue bounds a label's value in bytes: a label is a note, not a file.
const maxLabelValue = 4096

func checkLabel(key, value string) error {
	if !labelKey.MatchString(key) {
		return usagef("label %q: a key has letters, digits and . _ / -, and begins and ends with a letter or digit", key)
	}
	if len(value) > maxLabelValue {
		return usagef("label %q: the value is longer than %d bytes", key, maxLabelValue)
	}
	if !utf8.ValidString(value) {
		return usagef("label %q: the value is not UTF-8", key)
	}
	if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return usagef("label %q: the value has control characters", key)
	}
	return nil
}

// parseLabels reads k=v words; a key without a value has the empty one.
func parseLabels(words []string) (map[string]string, error) {
	labels := map[string]string{}
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		if err := checkLabel(key, value); err != nil {
			return nil, err
		}
		if _, twice := labels[key]; twice {
			return nil, usagef("label %q: given twice", key)
		}
		labels[key] = value
	}
	return labels, nil
}

// formatLabels prints labels sorted by key.
func formatLabels(labels map[string]string) string {
	words := make([]string, 0, len(labels))
	for k, v := range labels {
		words = append(words, k+"="+v)
	}
	sort.Strings(words)
	return strings.Join(words, ",")
}
