package layer_test

import (
	"bufio"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/pool"
)

// foundCodes are the codes of all that the tests of this package have found so far.
var foundCodes = struct {
	mu    sync.Mutex
	codes map[string]bool
}{codes: map[string]bool{}}

func noteCodes(r pool.CheckReport) pool.CheckReport {
	foundCodes.mu.Lock()
	defer foundCodes.mu.Unlock()
	for _, f := range r.Findings {
		foundCodes.codes[f.Code] = true
	}
	return r
}

// madeElsewhere are the codes that tests of other packages make, and what says so in which file, from the root of the repository.
var madeElsewhere = map[string][2]string{
	pool.FoundMetadataLow:    {"pool/metasnap_test.go", "pool.FoundMetadataLow"},
	pool.FoundBackingMissing: {"pool/rawdevice_test.go", "pool.FoundBackingMissing"},
	pool.FoundBackingTwice:   {"pool/rawdevice_test.go", "pool.FoundBackingTwice"},
	pool.FoundPrepared:       {"pool/renewed_test.go", `"metadata-unfinished"`},
	pool.FoundSpareMissing:   {"cmd/dmlayer/testdata/script/check.txt", "harmless +spare-missing"},
	pool.FoundSideMissing:    {"cmd/dmlayer/testdata/script/check.txt", "needs-person +side-files-missing"},
	pool.FoundSnapshotRecord: {"cmd/dmlayer/testdata/script/badrecords.txt", "needs-person +snapshot-record"},
	pool.FoundImageRecord:    {"cmd/dmlayer/testdata/script/badrecords.txt", "needs-person +image-record"},
}

// documentedCodes reads the table of findings, which a test of package pool compares with the code.
func documentedCodes(t testing.TB) (codes []string) {
	t.Helper()
	f, err := os.Open("../docs/recovery.md")
	must(t, err)
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		for _, class := range []pool.FindingClass{pool.Harmless, pool.MendedOnOpen, pool.NeedsRepair, pool.NeedsPerson} {
			if rest, ok := strings.CutPrefix(lines.Text(), "| "+string(class)+" | `"); ok {
				code, _, _ := strings.Cut(rest, "`")
				codes = append(codes, code)
			}
		}
	}
	return codes
}

// TestZEveryFindingMade comes last. It fails for a finding of pool check that no test has made: nobody knows whether it can be found at all.
func TestZEveryFindingMade(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.ThinCheck)
	for _, name := range []string{"test.run", "test.skip"} {
		if flag.Lookup(name).Value.String() != "" {
			t.Skip("only some of the tests were asked for")
		}
	}
	codes := documentedCodes(t)
	if len(codes) == 0 {
		t.Fatal("the table of findings has none")
	}
	for _, code := range codes {
		where, elsewhere := madeElsewhere[code]
		switch {
		case foundCodes.codes[code]:
		case !elsewhere:
			t.Errorf("no test has made %s", code)
		default:
			if b, err := os.ReadFile(filepath.Join("..", where[0])); err != nil || !strings.Contains(string(b), where[1]) {
				t.Errorf("%s: %s does not make it: %v", code, where[0], err)
			}
		}
	}
	if unknown := slices.DeleteFunc(slices.Sorted(maps.Keys(madeElsewhere)), func(c string) bool { return slices.Contains(codes, c) }); len(unknown) > 0 {
		t.Errorf("not in the table: %q", unknown)
	}
}
