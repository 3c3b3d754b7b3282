package layertar_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer/layertar"
)

// TestApplyRemovesWhatLinksNeed removes what the way of an entry through symbolic links depends on: the record
// would not find its content.
func TestApplyRemovesWhatLinksNeed(t *testing.T) {
	testenv.Need(t, testenv.Root)
	lower := archive(t, dir("d"), dir("d/e"), dir("other"), dir("t"), symlink("d/e/l", "/t"), symlink("in", "/d/e/l"), symlink("up", "/d/../t"))
	many := []entry{symlink("a", "t")}
	for i := range 1100 {
		many = append(many, symlink(fmt.Sprint("l", i), "/t"), file(fmt.Sprintf("l%d/%d", i, i), "1"))
	}
	for _, tt := range []struct {
		name    string
		entries []entry
		want    bool
	}{
		{"the link's directory", []entry{file("d/e/l/x", "1"), file("d/.wh.e", "")}, true},
		{"one above", []entry{file("d/e/l/x", "1"), file(".wh.d", "")}, true},
		{"replaced", []entry{file("d/e/l/x", "1"), file("d", "")}, true},
		{"with all around it", []entry{file("d/e/l/x", "1"), file("d/.wh..wh..opq", "")}, true},
		{"a link on the way", []entry{file("in/x", "1"), file("d/.wh.e", "")}, true},
		{"a directory that a link leads out of", []entry{file("up/x", "1"), file(".wh.d", "")}, true},
		{"too many links to remember", append(many, file(".wh.other", "")), true},
		{"another directory", []entry{file("d/e/l/x", "1"), file("up/y", "1"), file(".wh.other", "")}, false},
		{"a directory of a link that led nowhere", []entry{file("t/x", "1"), file(".wh.d", "")}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root, data := t.TempDir(), archive(t, tt.entries...)
			apply(t, root, lower)
			var record, again bytes.Buffer
			rec := layertar.NewRecorder(bytes.NewReader(data), &record)
			stats, err := layertar.Apply(context.Background(), root, rec, layertar.ApplyOptions{})
			if cerr := rec.Close(); err != nil || cerr != nil {
				t.Fatal(err, cerr)
			}
			if stats.Rewritten != tt.want {
				t.Errorf("rewritten is %v", stats.Rewritten)
			}
			if stats.Rewritten {
				return
			}
			if err := layertar.Rebuild(context.Background(), root, &record, &again); err != nil || !bytes.Equal(again.Bytes(), data) {
				t.Errorf("rebuilt %d bytes of %d: %v", again.Len(), len(data), err)
			}
		})
	}
}
