package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "write the golden files anew")

// result is what one command line gave.
type result struct {
	code        int
	out, stderr string
}

// testApp is an invocation without the kernel, as a user with the given id.
func testApp(euid int, env map[string]string) (*app, *bytes.Buffer, *bytes.Buffer) {
	var out, stderr bytes.Buffer
	a := &app{
		in: strings.NewReader(""), out: &out, err: &stderr,
		env:  func(name string) string { return env[name] },
		now:  func() time.Time { return time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC) },
		euid: func() int { return euid },
	}
	return a, &out, &stderr
}

// runAs runs a command line. Directories that do not exist keep it from everything on the machine.
func runAs(t *testing.T, euid int, args ...string) result {
	t.Helper()
	none := filepath.Join(t.TempDir(), "none")
	a, out, stderr := testApp(euid, map[string]string{"DMLAYER_ROOT": none, "DMLAYER_RUN": none})
	code := a.run(context.Background(), args)
	if _, err := os.Stat(none); err == nil {
		t.Errorf("%q made the root or run directory", args)
	}
	return result{code, strings.ReplaceAll(out.String(), none, "NONE"), strings.ReplaceAll(stderr.String(), none, "NONE")}
}

// commands returns the words of every command, such as "pool create".
func commands() []string {
	a, _, _ := testApp(0, nil)
	var all []string
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		all = append(all, strings.TrimSpace(strings.TrimPrefix(c.CommandPath(), "dmlayer")))
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(a.newRoot())
	return all
}

func words(s string, more ...string) []string { return append(strings.Fields(s), more...) }

func TestTheCommandsOfTheContract(t *testing.T) {
	have := map[string]bool{}
	for _, c := range commands() {
		have[c] = true
	}
	for _, want := range strings.Split("pool create,pool ls,pool inspect,pool status,pool start,pool stop,pool check,pool import,pool extend,pool set,pool trim,pool renew,pool destroy,"+
		"snapshot,mount,unmount,attach,detach,commit,reset,resize,rename,label,rm,prune,ls,inspect,tree,diff,fsck,trim,"+
		"image load,image ls,image inspect,image tag,image rm,image history,image tree,image prune,serve,doctor,version,completion,help", ",") {
		if !have[want] {
			t.Errorf("no command %q", want)
		}
	}
	// What nobody asked for yet is absent, not stubbed.
	for _, absent := range []string{"export", "import", "send", "receive", "volume", "image save", "image pull", "image push", "image commit", "events"} {
		if have[absent] {
			t.Errorf("there is a command %q", absent)
		}
		if r := runAs(t, 0, words(absent)...); r.code != exitUsage {
			t.Errorf("%q: exit code %d, want %d", absent, r.code, exitUsage)
		}
	}
}

func TestHelpOfEveryCommand(t *testing.T) {
	var all strings.Builder
	for _, c := range commands() {
		a, out, stderr := testApp(1000, nil)
		if code := a.run(context.Background(), words(c, "--help")); code != 0 {
			t.Errorf("%q --help: exit code %d", c, code)
		}
		if stderr.Len() > 0 {
			t.Errorf("%q --help: on stderr: %s", c, stderr)
		}
		for _, part := range []string{"Usage:\n", "Example:\n", "Exit codes:\n"} {
			if !strings.Contains(out.String(), part) {
				t.Errorf("%q --help: no %q", c, part)
			}
		}
		fmt.Fprintf(&all, "$ dmlayer %s\n%s\n", strings.Join(words(c, "--help"), " "), out)
	}
	golden(t, "help.golden", all.String())
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs from what is printed now; look at the difference, then run go test -update\ngot:\n%s", file, got)
	}
}

func TestHelpCommand(t *testing.T) {
	if a, b := runAs(t, 0, "help", "pool", "create"), runAs(t, 0, "pool", "create", "--help"); a != b || a.code != 0 {
		t.Errorf("help pool create: %+v, pool create --help: %+v", a, b)
	}
	if r := runAs(t, 0, "help", "hedgehogs"); r.code != exitUsage || r.out != "" {
		t.Errorf("help hedgehogs: %+v", r)
	}
}

func TestUnknownFlagIsRefusedEverywhere(t *testing.T) {
	for _, c := range commands() {
		r := runAs(t, 0, words(c, "--hedgehogs-only")...)
		if r.code != exitUsage || r.out != "" || !strings.Contains(r.stderr, "--hedgehogs-only") || !strings.Contains(r.stderr, "\nhint: ") {
			t.Errorf("%q: %+v", c, r)
		}
	}
}

func TestArgumentCounts(t *testing.T) {
	long := strings.Split("a b c d e f", " ")
	for _, c := range commands() {
		switch c {
		case "rm", "image rm", "label", "help": // any number, tested below
		default:
			if r := runAs(t, 0, words(c, long...)...); r.code != exitUsage || r.out != "" {
				t.Errorf("%q with too many arguments: %+v", c, r)
			}
		}
	}
	for _, c := range []string{
		"", "pool", "image", "snapshot", "mount", "unmount", "umount", "attach", "detach", "commit", "commit s", "reset", "resize",
		"resize n", "rename", "rename n", "label", "label n", "rm", "inspect", "diff", "fsck", "trim", "image load", "image rm",
		"image inspect", "image tag", "image tag a", "image history", "completion", "pool import",
	} {
		r := runAs(t, 0, words(c)...)
		if r.code != exitUsage || r.out != "" || !strings.Contains(r.stderr, "missing") {
			t.Errorf("%q with too few arguments: %+v", c, r)
		}
	}
}

// badUsage are command lines that must be refused before anything is touched.
var badUsage = []string{
	"hedgehog", "pool hedgehog", "image hedgehog", "completion tcsh",
	// Names.
	"snapshot ../x", "snapshot .x", "snapshot -- -x", "snapshot a/b", "snapshot " + strings.Repeat("a", 129), "snapshot ä",
	"pool create a/b", "pool create ..", "pool start a/b", "pool stop a:b", "pool destroy a/b", "pool inspect a/b", "pool status a/b",
	"--pool a/b ls", "rename a b/c", "rename a/b c", "commit s a/b", "commit a/b l", "rm a/b", "rm ok a/b", "label a/b k=v",
	"resize a/b 1G", "reset a/b", "fsck a/b", "trim a/b", "mount a/UPPER", "mount node:a/b", "mount image:a/UPPER",
	"attach .x", "detach .x", "inspect .x", "diff .x", "diff a .x", "reset a --to .x", "snapshot --parent .x a", "unmount .x",
	"snapshot --parent node: a", "image rm a/UPPER", "image rm ok a/UPPER", "image inspect a/UPPER", "image load ", "image load --platform a/b/c/d f.tar",
	"image history a/UPPER", "image tag a/UPPER b", "image tag a a/UPPER", "image tag a b:", "image tag a b@sha256:" + strings.Repeat("0", 64),
	"image tag a sha256:" + strings.Repeat("0", 64), "image tag a " + strings.Repeat("0", 64), "image tag a deadbeefcafe", "image tag a ",
	// Filters of images.
	"image ls --filter colour=red", "image ls --filter dangling", "image ls --filter dangling=perhaps",
	"image ls --filter dangling=true --filter dangling=false", "image ls --filter label==v", "image ls --filter before=a/UPPER",
	"image ls --filter until=soon", "image ls --filter until=-1h", "image ls --filter label!env", "image prune --filter dangling=true",
	"image prune --filter reference=a", "image prune --filter until=", "image prune a",
	// Sizes.
	"resize n 0", "resize n -1G", "resize n 10X", "resize n G", "resize n ten", "resize n 1e30", "resize n 9000000P", "resize n 0.1",
	"resize n 16777216T", "snapshot --size 0 n", "snapshot --size -5 n", "snapshot --size=-5G n", "pool create --data-size 0",
	"pool create --metadata-size none", "pool create --base-size 99999999999999999999", "pool create --block-size 32K",
	"resize n ++1G", "resize n +", "resize n +0", "resize n +-1G", "snapshot --size +1G n", "pool create --data-size +1G", "pool create --grow-limit +1G", "pool set --grow-limit +1G",
	"pool extend --data ++1G", "pool create --block-size 100K", "pool create --block-size 2G", "pool create --block-size 0",
	"pool set --overcommit 0", "pool set --grow-at 0", "pool set --grow-at 0%", "pool create --min-free -0", "pool set --grow-by 000", "pool set --grow-at 100",
	"pool set --grow-at +80", "pool set --grow-at -1", "pool set --grow-at 80%%", "pool create --grow-limit 0",
	// Choices.
	"pool create --fs btrfs", "pool create --discard maybe", "pool create --loopback=false", "pool create --loopback=perhaps",
	"pool create --mkfs-option=", "ls --sort colour", "ls --filter kind", "ls --filter kind=", "ls --filter kind=image",
	"ls --filter colour=red", "ls --filter parent=.x",
	// Labels.
	"snapshot --label =v n", "snapshot --label a=1 --label a=2 n", "label n k", "label n =v", "label n k=v k-", "label n -=v",
	"snapshot --label k=a\x01b n", "snapshot --label k\x01=a n", "label n k=\xff", "snapshot --label k=a\xc3 n",
	// Global flags.
	"--timeout -1s ls", "--timeout soon ls", "--log-level loud ls", "--format xml ls", "--format {{ ls", "--format {{.Name}} rm a",
	"--format {{.Name}} -q ls", "--root= ls", "--run= ls", "ls --pool", "diff --tar --format {{.Path}} a",
	"pool start --pool a b", "pool create --pool a b", "pool destroy --pool a b", "--pool a pool status b",
	"pool import --name a/b dir", "pool import --pool a --name b dir", "pool import ", "pool import --vg=", "pool import --vg a dir", "pool import --vg a/_tdata/b",
}

func TestBadUsage(t *testing.T) {
	for _, line := range badUsage {
		line := strings.Split(line, " ")
		for i := range line {
			line[i] = strings.ReplaceAll(line[i], "\x01", "\n")
		}
		r := runAs(t, 0, line...)
		if r.code != exitUsage || r.out != "" || !strings.HasPrefix(r.stderr, "dmlayer: ") {
			t.Errorf("%q: %+v", line, r)
		}
		j := runAs(t, 0, append([]string{"--format", "json"}, line...)...)
		if strings.Contains(strings.Join(line, " "), "--format") {
			continue
		}
		e := decodeError(t, j.stderr)
		if j.code != exitUsage || j.out != "" || e.Code != "usage" || e.Message == "" {
			t.Errorf("%q with JSON: %+v", line, j)
		}
	}
}

type jsonError struct{ Code, Message, Hint string }

// decodeError reads exactly one error, and no other key, from stderr.
func decodeError(t *testing.T, stderr string) jsonError {
	t.Helper()
	var e struct{ Error *jsonError }
	d := json.NewDecoder(strings.NewReader(stderr))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil || e.Error == nil || d.More() {
		t.Fatalf("stderr is no JSON error (%v): %q", err, stderr)
	}
	return *e.Error
}

func TestJSONErrorWhereFlagsCannotBeParsed(t *testing.T) {
	for _, line := range []string{"ls --hedgehogs-only --format json", "ls --hedgehogs-only --format=json", "--format=json hedgehog"} {
		if e := decodeError(t, runAs(t, 0, words(line)...).stderr); e.Code != "usage" || e.Hint == "" {
			t.Errorf("%q: %+v", line, e)
		}
	}
	// After -- it is an argument.
	if r := runAs(t, 0, "rm", "--hedgehogs-only", "--", "--format=json"); !strings.HasPrefix(r.stderr, "dmlayer: ") {
		t.Errorf("an argument was taken for a flag: %+v", r)
	}
}

func TestWithoutRoot(t *testing.T) {
	for _, c := range []string{
		"pool create", "pool ls", "pool inspect", "pool status", "pool start", "pool stop", "pool import dir", "pool destroy", "snapshot n", "mount n",
		"unmount n", "unmount /mnt", "attach n", "detach n", "commit s l", "reset s", "resize n 1G", "rename a b", "label n k=v", "rm n",
		"prune", "ls", "inspect n", "tree", "diff n", "fsck n", "trim n", "image load f.tar", "image ls", "image inspect a", "image tag a b",
		"image rm a", "image history a", "image tree", "image prune",
	} {
		r := runAs(t, 1000, words(c)...)
		if r.code != exitFailed || r.out != "" || !strings.HasSuffix(r.stderr, ": needs root\nhint: run as root\n") {
			t.Errorf("%q: %+v", c, r)
		}
		if e := decodeError(t, runAs(t, 1000, words(c, "--format=json")...).stderr); e.Code != "failed" || e.Hint != "run as root" {
			t.Errorf("%q: %+v", c, e)
		}
	}
	for _, c := range []string{"version", "--version", "completion bash", "completion zsh", "completion fish", "completion powershell", "help"} {
		if r := runAs(t, 1000, words(c)...); r.code != 0 || r.out == "" || r.stderr != "" {
			t.Errorf("%q: %+v", c, r)
		}
	}
	if r := runAs(t, 1000, "doctor"); r.code != 0 && r.code != 8 || !strings.Contains(r.out, "warn  root: ") {
		t.Errorf("doctor: %+v", r)
	}
}

func TestVersionFormats(t *testing.T) {
	var v map[string]any
	r := runAs(t, 1000, "version", "--format", "json")
	if err := json.Unmarshal([]byte(r.out), &v); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"version", "revision", "go", "platform", "kernel", "deviceMapper"} {
		if _, ok := v[key]; !ok {
			t.Errorf("no %q in %s", key, r.out)
		}
	}
	if r := runAs(t, 0, "version", "--format", "{{.Go}}"); r.out != fmt.Sprintln(v["go"]) {
		t.Errorf("template: %+v", r)
	}
	if r := runAs(t, 0, "version", "--format", "{{.Hedgehog}}"); r.code != exitUsage || r.out != "" {
		t.Errorf("unknown field: %+v", r)
	}
	if r := runAs(t, 0, "version", "-q"); r.out != fmt.Sprintln(v["version"]) {
		t.Errorf("quiet: %+v", r)
	}
}
