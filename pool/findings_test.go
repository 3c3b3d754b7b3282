package pool

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// Every code is in the document, with its class, and nothing else is.
func TestFindingsAreDocumented(t *testing.T) {
	b, err := os.ReadFile("../docs/recovery.md")
	must(t, err)
	for code, kind := range findingKinds {
		if row := fmt.Sprintf("| %s | `%s` | %s |", kind.class, code, kind.means); !strings.Contains(string(b), row) {
			t.Errorf("docs/recovery.md has no row %q", row)
		}
	}
	rows := 0
	for _, class := range []FindingClass{Harmless, MendedOnOpen, NeedsRepair, NeedsPerson} {
		rows += strings.Count(string(b), fmt.Sprintf("\n| %s | `", class))
	}
	if rows != len(findingKinds) {
		t.Errorf("docs/recovery.md has %d rows, there are %d codes", rows, len(findingKinds))
	}
}

func TestCheckReport(t *testing.T) {
	r := CheckReport{Pool: "p"}
	r.Add(NewFinding(FoundMetadataLeak, "m", "x"), NewFinding(FoundInFlight, "thin device 7", "x"))
	must(t, r.Err())
	r.Add(NewFinding(FoundNodeMissing, "layer", "x"))
	if err := r.Err(); errs.Class(err) != errs.ErrDamaged || strings.Contains(errs.Hint(err), "--repair") {
		t.Errorf("%v (%s)", err, errs.Hint(err))
	}
	r.Add(NewFinding(FoundDeviceOrphan, "thin device 8", "x"))
	if err := r.Err(); !strings.Contains(errs.Hint(err), "--repair") {
		t.Errorf("%v (%s)", err, errs.Hint(err))
	}
	if r.Findings[0].Code != FoundNodeMissing || r.Findings[3].Class != Harmless {
		t.Errorf("order: %+v", r.Findings)
	}
	if r.MetadataDamaged() {
		t.Error("the metadata is not damaged")
	}
}
