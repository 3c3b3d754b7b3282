package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"
	"unicode/utf8"

	"github.com/docker/go-units"
)

// format is what --format asked for. The zero value leaves the choice to the command.
type format struct {
	table, json bool
	tmpl        *template.Template
}

var templateFuncs = template.FuncMap{
	"json": func(v any) (string, error) {
		b, err := marshal(v)
		return strings.TrimSuffix(string(b), "\n"), err
	},
	"size": templateSize,
	"join": strings.Join,
}

func parseFormat(s string) (format, error) {
	switch {
	case s == "":
		return format{}, nil
	case s == "table":
		return format{table: true}, nil
	case s == "json":
		return format{json: true}, nil
	case !strings.Contains(s, "{{"):
		return format{}, usagef("--format %q: must be table, json or a Go template", s)
	}
	tmpl, err := template.New("format").Funcs(templateFuncs).Parse(s)
	if err != nil {
		return format{}, usagef("--format: %s", err)
	}
	return format{tmpl: tmpl}, nil
}

// column is one column of a table.
type column[T any] struct {
	title string
	cell  func(T) string
}

// printList prints records: the names with --quiet, a JSON list, a line per record from a template,
// or a table.
func printList[T any](a *app, records []T, name func(T) string, columns []column[T]) error {
	switch {
	case a.format.tmpl != nil:
		for _, r := range records {
			if err := a.printTemplate(r); err != nil {
				return err
			}
		}
		return nil
	case a.flags.quiet:
		for _, r := range records {
			if err := a.println(name(r)); err != nil {
				return err
			}
		}
		return nil
	case a.format.json:
		if records == nil {
			records = []T{}
		}
		return a.printJSON(records)
	}
	return a.printTable(func(w io.Writer) {
		titles := make([]string, len(columns))
		for i, c := range columns {
			titles[i] = c.title
		}
		fmt.Fprintln(w, strings.Join(titles, "\t"))
		for _, r := range records {
			cells := make([]string, len(columns))
			for i, c := range columns {
				cells[i] = c.cell(r)
			}
			fmt.Fprintln(w, strings.Join(cells, "\t"))
		}
	})
}

// field is one line of a record that is printed for people.
type field struct{ title, value string }

// printRecord prints one record; where no format was asked for, as JSON if jsonByDefault.
func printRecord[T any](a *app, record T, name string, jsonByDefault bool, fields []field) error {
	switch {
	case a.format.tmpl != nil:
		return a.printTemplate(record)
	case a.flags.quiet:
		return a.println(name)
	case a.format.json, jsonByDefault && !a.format.table:
		return a.printJSON(record)
	}
	return a.printTable(func(w io.Writer) {
		for _, f := range fields {
			fmt.Fprintf(w, "%s:\t%s\n", f.title, f.value)
		}
	})
}

func (a *app) printTable(write func(w io.Writer)) error {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 8, 3, ' ', 0)
	write(w)
	if err := w.Flush(); err != nil {
		return err
	}
	lines := strings.Split(b.String(), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimRight(line, " ")
	}
	return a.print(strings.Join(lines, "\n"))
}

func (a *app) printTemplate(record any) error {
	var b strings.Builder
	if err := a.format.tmpl.Execute(&b, record); err != nil {
		var exec template.ExecError
		if errors.As(err, &exec) {
			return usagef("--format: %s", err)
		}
		return err
	}
	return a.println(b.String())
}

func (a *app) printJSON(v any) error {
	b, err := marshalIndent(v)
	if err != nil {
		return err
	}
	return a.print(string(b))
}

func (a *app) println(s string) error { return a.print(s + "\n") }

// print writes to standard output, in one write: a reader never sees half a record.
func (a *app) print(s string) error {
	if _, err := io.WriteString(a.out, s); err != nil {
		return fmt.Errorf("write to standard output: %w", err)
	}
	return nil
}

func marshal(v any) ([]byte, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return []byte(escapeControls(b.String())), err
}

func marshalIndent(v any) ([]byte, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(v)
	return []byte(escapeControls(b.String())), err
}

// escapeControls escapes the control characters that JSON may have in strings as they are: a terminal
// takes some of them for the beginning of a sequence.
func escapeControls(text string) string {
	if !strings.ContainsFunc(text, jsonControl) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if jsonControl(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// bytesOf returns a name for a JSON field of its own, which has it in base64, where it is not UTF-8 and a string of JSON
// would lose some of it; else nil, which JSON has as null.
func bytesOf(name string) []byte {
	if utf8.ValidString(name) {
		return nil
	}
	return []byte(name)
}

func jsonControl(r rune) bool { return r >= 0x7f && r < 0xa0 }

// humanSize prints bytes in binary units, in which sizes are also read.
func humanSize(n int64) string { return units.BytesSize(float64(n)) }

func humanSizeOr(n *int64, unknown string) string {
	if n == nil {
		return unknown
	}
	return humanSize(*n)
}

func templateSize(v any) (string, error) {
	switch n := v.(type) {
	case int64:
		return humanSize(n), nil
	case *int64:
		return humanSizeOr(n, "-"), nil
	case uint64:
		return units.BytesSize(float64(n)), nil
	case int:
		return humanSize(int64(n)), nil
	case nil:
		return "-", nil
	}
	return "", fmt.Errorf("size: %T is no number of bytes", v)
}

// used prints a share of a total, such as "1.2GiB (12%)".
func used(part, total *int64) string {
	if part == nil {
		return "-"
	}
	if total == nil || *total <= 0 {
		return humanSize(*part)
	}
	return fmt.Sprintf("%s (%.1f%%)", humanSize(*part), 100*float64(*part)/float64(*total))
}

func (a *app) age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return units.HumanDuration(a.now().Sub(t)) + " ago"
}

func (a *app) ageOf(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return a.age(*t)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
