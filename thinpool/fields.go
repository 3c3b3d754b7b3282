package thinpool

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/dmlayer/dmlayer/devmapper"
)

// fields reads a line word by word. The first thing that is wrong is kept in
// err, and everything after it reads as zero.
type fields struct {
	what  string
	words []string
	at    int
	err   error
}

func fieldsOf(what, line string) *fields {
	return &fields{what: what, words: strings.Fields(line)}
}

func (f *fields) done() bool { return f.err != nil || f.at == len(f.words) }

func (f *fields) next(name string) string {
	if f.err != nil {
		return ""
	}
	if f.at == len(f.words) {
		f.err = fmt.Errorf("thinpool: %s: field %d (%s) is missing: %w", f.what, f.at+1, name, ErrInvalid)
		return ""
	}
	f.at++
	return f.words[f.at-1]
}

// unexpected complains about the word read last.
func (f *fields) unexpected(name, word string) {
	if f.err == nil {
		f.err = fmt.Errorf("thinpool: %s: field %d (%s): unexpected %q: %w", f.what, f.at, name, word, ErrInvalid)
	}
}

// end complains about words that are left.
func (f *fields) end() {
	if !f.done() {
		f.at++
		f.unexpected("nothing", f.words[f.at-1])
	}
}

func (f *fields) uint(name string, bits int) uint64 {
	return f.number(name, f.next(name), bits)
}

func (f *fields) number(name, word string, bits int) uint64 {
	if f.err != nil {
		return 0
	}
	n, err := strconv.ParseUint(word, 10, bits)
	if err != nil {
		f.unexpected(name, word)
		return 0
	}
	return n
}

// ratio reads "used/total".
func (f *fields) ratio(name string) (used, total uint64) {
	word := f.next(name)
	if f.err != nil {
		return 0, 0
	}
	u, t, ok := strings.Cut(word, "/")
	if !ok {
		f.unexpected(name, word)
		return 0, 0
	}
	return f.number(name, u, 64), f.number(name, t, 64)
}

func (f *fields) dev(name string) devmapper.DevNum {
	word := f.next(name)
	if f.err != nil {
		return devmapper.DevNum{}
	}
	d, err := devmapper.ParseDevNum(word)
	if err != nil {
		f.unexpected(name, word)
	}
	return d
}
