package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/pool"
)

func TestExitCodes(t *testing.T) {
	for _, tc := range []struct {
		err, cause error
		code       int
		name       string
	}{
		{nil, nil, 0, ""},
		{errors.New("x"), nil, 1, "failed"},
		{usagef("x"), nil, 2, "usage"},
		{fmt.Errorf("x: %w", errs.ErrInvalid), nil, 2, "usage"},
		{fmt.Errorf("x: %w", errs.ErrNotFound), nil, 3, "not-found"},
		{fmt.Errorf("x: %w", errs.ErrExists), nil, 4, "exists"},
		{errs.WithHint(fmt.Errorf("x: %w", errs.ErrBusy), "h"), nil, 5, "busy"},
		{fmt.Errorf("x: %w", errs.ErrNoSpace), nil, 6, "no-space"},
		{fmt.Errorf("x: %w", errs.ErrDamaged), nil, 7, "damaged"},
		{fmt.Errorf("x: %w", errs.ErrUnsupported), nil, 8, "unsupported"},
		{multiError{fmt.Errorf("x: %w", errs.ErrBusy), fmt.Errorf("x: %w", errs.ErrNotFound)}, nil, 5, "busy"},
		{&rootNeeded{"ls"}, nil, 1, "failed"},
		{context.DeadlineExceeded, errTimeout, 1, "failed"},
		{fmt.Errorf("held by x: %w", errs.ErrBusy), errTimeout, 5, "busy"},
		{context.Canceled, interrupted{syscall.SIGINT}, 130, "interrupted"},
		{fmt.Errorf("x: %w", errs.ErrBusy), interrupted{syscall.SIGTERM}, 143, "interrupted"},
		{nil, interrupted{syscall.SIGTERM}, 0, ""}, // it was done before the signal mattered
	} {
		if code, name := exitCode(tc.err, tc.cause); code != tc.code || name != tc.name {
			t.Errorf("exitCode(%v, %v) = %d, %q, want %d, %q", tc.err, tc.cause, code, name, tc.code, tc.name)
		}
	}
}

func TestReport(t *testing.T) {
	busy := errs.WithHint(fmt.Errorf("remove node %q: mounted: %w", "a", errs.ErrBusy), "unmount it")
	gone := fmt.Errorf("node %q: %w", "b", errs.ErrNotFound)
	for _, tc := range []struct {
		name       string
		err, cause error
		json       bool
		want       string
	}{
		{"plain", busy, nil, false, "dmlayer: remove node \"a\": mounted: in use\nhint: unmount it\n"},
		{"no hint", gone, nil, false, "dmlayer: node \"b\": not found\n"},
		{"several", multiError{gone, busy, busy}, nil, false,
			"dmlayer: node \"b\": not found\ndmlayer: remove node \"a\": mounted: in use\ndmlayer: remove node \"a\": mounted: in use\nhint: unmount it\n"},
		{"json", busy, nil, true, `{"error":{"code":"busy","message":"remove node \"a\": mounted: in use","hint":"unmount it"}}` + "\n"},
		{"json several", multiError{gone, busy}, nil, true,
			`{"error":{"code":"not-found","message":"node \"b\": not found; remove node \"a\": mounted: in use","hint":""}}` + "\n"},
		{"lines", errors.Join(errors.New("x"), errors.New("y")), nil, false, "dmlayer: x; y\n"},
		{"signal", context.Canceled, interrupted{syscall.SIGINT}, false, "dmlayer: interrupted by SIGINT: context canceled\n"},
		{"markup", errors.New("<a> & b"), nil, true, `{"error":{"code":"failed","message":"<a> & b","hint":""}}` + "\n"},
		{"permission", fmt.Errorf("open x: %w", syscall.EACCES), nil, false, "dmlayer: open x: permission denied\nhint: run as root\n"},
	} {
		a, _, stderr := testApp(0, nil)
		a.report(tc.err, tc.cause, tc.json)
		if stderr.String() != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, stderr, tc.want)
		}
	}
	a, _, stderr := testApp(0, nil)
	if code := a.report(fmt.Errorf("open: %w", context.DeadlineExceeded), errTimeout, false); code != 1 {
		t.Errorf("timeout: exit code %d", code)
	}
	if s := stderr.String(); !strings.HasPrefix(s, "dmlayer: timed out: open: context deadline exceeded\nhint: ") {
		t.Errorf("timeout: %q", s)
	}
}

func TestSignalsCancelAndFurtherOnesAreNoted(t *testing.T) {
	var stderr syncBuffer
	a := &app{err: &stderr}
	ctx, done := a.catchSignals(context.Background())
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
	if code, _ := exitCode(ctx.Err(), context.Cause(ctx)); code != 143 {
		t.Errorf("exit code %d, want 143", code)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	<-stderr.written()
	done()
	if s := stderr.String(); !strings.Contains(s, "SIGINT: already stopping") {
		t.Errorf("after the second signal: %q", s)
	}
}

func TestTimeoutBoundsTheContext(t *testing.T) {
	a, _, _ := testApp(0, nil)
	a.flags.timeout = time.Nanosecond
	root := a.newRoot()
	a.flags.timeout = time.Nanosecond
	root.SetContext(context.Background())
	a.bounded(root)
	defer a.stop()
	<-root.Context().Done()
	if cause := context.Cause(root.Context()); !errors.Is(cause, errTimeout) {
		t.Errorf("cause %v", cause)
	}
}

func TestForEachDoesAllItCan(t *testing.T) {
	var did []string
	err := forEach(context.Background(), []string{"a", "b", "c", "d"}, func(name string) error {
		did = append(did, name)
		switch name {
		case "b":
			return fmt.Errorf("b: %w", errs.ErrBusy)
		case "c":
			return fmt.Errorf("c: %w", errs.ErrNotFound)
		}
		return nil
	})
	if !slices.Equal(did, []string{"a", "b", "c", "d"}) {
		t.Errorf("did %q", did)
	}
	if code, _ := exitCode(err, nil); code != 5 {
		t.Errorf("exit code %d of %v, want that of the first failure", code, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	did = nil
	err = forEach(ctx, []string{"a", "b", "c"}, func(name string) error { did = append(did, name); cancel(); return nil })
	if !errors.Is(err, context.Canceled) || len(did) != 1 {
		t.Errorf("cancelled: did %q, %v", did, err)
	}
	ctx, cancel = context.WithCancel(context.Background())
	if err := forEach(ctx, []string{"a"}, func(string) error { cancel(); return nil }); err != nil {
		t.Errorf("cancelled after the last: %v", err)
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{"1": 1, "10G": 10 << 30, "10g": 10 << 30, "10GiB": 10 << 30, "512M": 512 << 20, "1.5K": 1536, "64 K": 64 << 10, "1024P": 1 << 60} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "0", "-1", "-0", "0.4", "G", "10X", "1e400", "1e30", "8192P", "1025P", "NaN", "Inf", "1 0", "10GG", "0x10", "１", "+1G", "+", "++1"} {
		if got, err := parseSize(s); !errors.Is(err, errs.ErrInvalid) {
			t.Errorf("parseSize(%q) = %d, %v, want a usage error", s, got, err)
		}
	}
}

func TestPercentages(t *testing.T) {
	for s, want := range map[string]int{"1": 1, "80%": 80, "99": 99, "none": none} {
		var got int
		f := percentFlag{&got, maxPart}
		if err := f.Set(s); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", s, got, err, want)
		}
	}
	var got int
	if err := (percentFlag{&got, maxPart}).Set("0"); !errors.Is(err, errs.ErrInvalid) || !strings.Contains(err.Error(), "none") {
		t.Errorf("0: %v, which does not say how to switch it off", err)
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"10G", "-1", "1e30", "9223372036854775807", "0x1p-2", " ", "1 "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseSize(s); err == nil && (n <= 0 || n > maxSize) {
			t.Errorf("parseSize(%q) = %d", s, n)
		}
	})
}

func TestLabels(t *testing.T) {
	got, err := parseLabels([]string{"a=1", "b.c/d-e=x=y", "empty=", "bare"})
	want := map[string]string{"a": "1", "b.c/d-e": "x=y", "empty": "", "bare": ""}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("parseLabels: %v, %v", got, err)
	}
	set, remove, err := parseLabelChanges([]string{"a=1", "b-", "c="})
	if err != nil || !maps.Equal(set, map[string]string{"a": "1", "c": ""}) || !slices.Equal(remove, []string{"b"}) {
		t.Errorf("parseLabelChanges: %v, %v, %v", set, remove, err)
	}
	if s := formatLabels(want); s != "a=1,b.c/d-e=x=y,bare=,empty=" {
		t.Errorf("formatLabels: %q", s)
	}
	for _, bad := range [][]string{{"k"}, {"k=v", "k-"}, {"-"}, {"=v"}, {"a b=c"}, {"k=" + strings.Repeat("v", maxLabelValue+1)}} {
		if _, _, err := parseLabelChanges(bad); !errors.Is(err, errs.ErrInvalid) {
			t.Errorf("parseLabelChanges(%.40q): %v", bad, err)
		}
	}
}

func TestPrintablePath(t *testing.T) {
	for path, want := range map[string]string{"/a b": "/a b", "/ä": "/ä", "/a\nD /etc": `"/a\nD /etc"`, "/\x1b[2J": `"/\x1b[2J"`, `/"x"`: `/"x"`} {
		if got := printablePath(path); got != want {
			t.Errorf("printablePath(%q) = %q, want %q", path, got, want)
		}
	}
}

func TestFailingStandardOutput(t *testing.T) {
	for _, line := range []string{"version", "version --format json", "version -q", "completion bash"} {
		a, _, stderr := testApp(1000, nil)
		a.out = fullWriter{}
		if code := a.run(context.Background(), words(line)); code != 1 || !strings.Contains(stderr.String(), "write to standard output") {
			t.Errorf("%q: exit code %d, %s", line, code, stderr)
		}
	}
}

type fullWriter struct{}

func (fullWriter) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestAnswerBeforeNodesAreLost(t *testing.T) {
	a, _, stderr := testApp(0, nil)
	err := a.mayLose("default", 3)
	if code, _ := exitCode(err, nil); code != 1 || !strings.Contains(err.Error(), "3 nodes would be lost") || !strings.Contains(errs.Hint(err), "--force") {
		t.Errorf("without a terminal: %v", err)
	}
	if stderr.Len() > 0 {
		t.Errorf("asked without a terminal: %q", stderr)
	}
	for answer, yes := range map[string]bool{"default\n": true, "default": true, " default \n": true, "y\n": false, "\n": false, "": false, "fast\ndefault\n": false} {
		a, out, stderr := testApp(0, nil)
		a.in = strings.NewReader(answer)
		if err := a.confirm("default", 1); (err == nil) != yes {
			t.Errorf("answer %q: %v", answer, err)
		}
		if out.Len() > 0 || !strings.HasPrefix(stderr.String(), "1 node of pool \"default\" will be lost") {
			t.Errorf("asked %q, %q", out, stderr)
		}
	}
}

func TestCompletion(t *testing.T) {
	none := []string{"--root", t.TempDir() + "/none", "--run", t.TempDir() + "/none"}
	a, out, _ := testApp(1000, nil)
	if code := a.run(context.Background(), append([]string{cobra.ShellCompRequestCmd}, append(none, "mount", "")...)); code != 0 || out.String() != ":4\n" {
		t.Errorf("mount: %d, %q", code, out)
	}
	a, out, _ = testApp(1000, nil)
	if code := a.run(context.Background(), []string{cobra.ShellCompRequestCmd, "completion", ""}); code != 0 || !strings.HasPrefix(out.String(), "bash\nzsh\nfish\npowershell\n") {
		t.Errorf("completion: %d, %q", code, out)
	}
}

func TestRecordsHaveJSONNamesForEveryField(t *testing.T) {
	for _, r := range []any{nodeDetails{}, imageDetails{}, stepRecord{}, branchRecord{}, imageEnd{}, treeNode{}, checkRecord{}, versionRecord{}, changeRecord{}, goneLayer{}, goneImage{}, pool.Status{}} {
		for _, f := range reflect.VisibleFields(reflect.TypeOf(r)) {
			if tag := f.Tag.Get("json"); !f.Anonymous && (tag == "" || strings.ToLower(tag[:1]) != tag[:1] || strings.ContainsAny(tag, "_,")) {
				t.Errorf("%T.%s: JSON name %q", r, f.Name, tag)
			}
		}
	}
}
