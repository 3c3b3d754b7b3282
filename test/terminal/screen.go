package terminal

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// screen is what is to be seen on a terminal that knows the few commands that progress bars need.
type screen struct {
	columns, rows int
	lines         [][]rune // the last rows of them can be reached, the others have scrolled away
	row, column   int      // of the cursor
	partial       []byte   // of a character or a command
}

func newScreen(columns, rows int) *screen {
	return &screen{columns: columns, rows: rows, lines: make([][]rune, 1)}
}

func (s *screen) write(p []byte) {
	s.partial = append(s.partial, p...)
	for len(s.partial) > 0 {
		n := s.next(s.partial)
		if n == 0 {
			return
		}
		s.partial = s.partial[n:]
	}
}

// next does what p begins with, and returns its length; 0 where the rest is still to come.
func (s *screen) next(p []byte) int {
	switch p[0] {
	case '\r':
		s.column = 0
		return 1
	case '\n':
		s.down()
		return 1
	case '\x1b':
		return s.command(p)
	}
	if !utf8.FullRune(p) {
		return 0
	}
	r, n := utf8.DecodeRune(p)
	s.put(r)
	return n
}

// command does ESC [ NUMBER LETTER.
func (s *screen) command(p []byte) int {
	end := 2
	for end < len(p) && p[end] >= '0' && p[end] <= '?' {
		end++
	}
	if end >= len(p) {
		return 0
	}
	number, err := strconv.Atoi(string(p[2:end]))
	if err != nil {
		number = 1
	}
	switch p[end] {
	case 'A':
		s.row = max(s.row-number, len(s.lines)-s.rows, 0)
	case 'J':
		s.lines = s.lines[:s.row+1]
		s.cut()
	case 'K':
		s.cut()
	default:
		s.put('�') // to be seen by the test
	}
	return end + 1
}

func (s *screen) cut() {
	s.lines[s.row] = s.lines[s.row][:min(s.column, len(s.lines[s.row]))]
}

func (s *screen) down() {
	if s.row++; s.row == len(s.lines) {
		s.lines = append(s.lines, nil)
	}
}

func (s *screen) put(r rune) {
	if s.column == s.columns {
		s.column = 0
		s.down()
	}
	for len(s.lines[s.row]) <= s.column {
		s.lines[s.row] = append(s.lines[s.row], ' ')
	}
	s.lines[s.row][s.column] = r
	s.column++
}

// String returns the lines without the spaces at their ends.
func (s *screen) String() string {
	lines := make([]string, len(s.lines))
	for i, l := range s.lines {
		lines[i] = strings.TrimRight(string(l), " ")
	}
	return strings.Join(lines, "\n")
}
