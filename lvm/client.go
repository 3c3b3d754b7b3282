package lvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/run"
)

// program is the one that all the others are links to.
const program = "lvm"

// Places that say what this machine is like. Variables for the tests.
var (
	udevControl = "/run/udev/control" // there while udevd runs (systemd's own test)
	systemDir   = "/etc/lvm"
	thinCheck   = "/usr/sbin/thin_check" // what lvm2 is built with
	sysBlock    = "/sys/block"
)

// ownPrefix begins the dm UUIDs of what lvm2 must never look into: disks of guests, on which there may be volume groups.
const ownPrefix = "DMLAYER-"

// Client runs lvm2's programs.
type Client struct {
	program string
	guard   *Guard // or nil
}

// New returns a client.
func New() *Client { return &Client{program: program} }

// command runs one of lvm2's commands that change something and returns what it wrote to standard output. The output may be valid beside an error.
func (c *Client) command(ctx context.Context, name string, args ...string) ([]byte, error) {
	stdin, leave, err := c.guard.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	return c.configured(ctx, stdin, name, args...)
}

// ask runs one that only looks.
func (c *Client) ask(ctx context.Context, name string, args ...string) ([]byte, error) {
	if err := c.guard.settled(ctx); err != nil {
		return nil, err
	}
	return c.configured(ctx, nil, name, args...)
}

func (c *Client) configured(ctx context.Context, stdin *os.File, name string, args ...string) ([]byte, error) {
	config, err := c.config(ctx)
	if err != nil {
		return nil, err
	}
	if name == "lvremove" { // what lay there before is put back where a create is undone, and can be saved where it is not
		config += "devices/issue_discards=0 "
	}
	words := []string{name}
	if config != "" {
		words = append(words, "--config", config)
	}
	return c.start(ctx, stdin, append(words, args...)...)
}

func (c *Client) start(ctx context.Context, stdin *os.File, words ...string) ([]byte, error) {
	res, err := run.Do(ctx, run.Cmd{Program: c.program, Args: words, Env: environment(), Outlive: true, Stdin: stdin})
	return res.Stdout, err
}

// environment keeps lvm2 from complaining about our open files, and from failing where it was never installed properly, as in
// a container: without its folder it has no configuration and keeps no backups.
func environment() []string {
	env := []string{"LVM_SUPPRESS_FD_WARNINGS=1"}
	if _, set := os.LookupEnv("LVM_SYSTEM_DIR"); !set {
		if _, err := os.Stat(systemDir); errors.Is(err, os.ErrNotExist) {
			env = append(env, "LVM_SYSTEM_DIR=")
		}
	}
	return env
}

// withoutUdev is what lvm2 needs to be told where nobody answers its questions.
const withoutUdev = `activation { udev_sync=0 udev_rules=0 verify_udev_operations=0 monitoring=0 } ` +
	`global { use_lvmpolld=0 notify_dbus=0 } devices { obtain_device_list_from_udev=0 external_device_info_source="none" } `

// config is what is said to lvm2 beside the machine's own configuration.
func (c *Client) config(ctx context.Context) (string, error) {
	var b strings.Builder
	if _, err := os.Stat(udevControl); errors.Is(err, os.ErrNotExist) {
		b.WriteString(withoutUdev)
	}
	if _, err := os.Stat(thinCheck); errors.Is(err, os.ErrNotExist) {
		if path, err := run.Look("thin_check"); err == nil {
			fmt.Fprintf(&b, "global/thin_check_executable=%q ", path)
		}
	}
	own := ownDevices()
	if len(own) == 0 {
		return b.String(), nil
	}
	filter, err := c.filter(ctx)
	if err != nil {
		return "", err
	}
	fmt.Fprintf(&b, "devices/global_filter=%s ", reject(own, filter))
	return b.String(), nil
}

// ownDevices returns the numbers in the kernel's names of all active devices of dmlayer.
func ownDevices() []string {
	var own []string
	found, _ := filepath.Glob(filepath.Join(sysBlock, "dm-*", "dm", "uuid"))
	for _, path := range found {
		if uuid, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(uuid), ownPrefix) {
			own = append(own, strings.TrimPrefix(filepath.Base(filepath.Dir(filepath.Dir(path))), "dm-"))
		}
	}
	slices.Sort(own)
	return own
}

// filter returns the machine's own filter, in the language of lvm2's configuration.
func (c *Client) filter(ctx context.Context) (string, error) {
	// 2.03.16 has no --valuesonly, and fails where there is no setting at all: one is said that is the default.
	out, err := c.start(ctx, nil, "lvmconfig", "--config", `devices/dir="/dev"`, "--typeconfig", "full", "devices/global_filter")
	if err != nil {
		return "", fmt.Errorf("read the filter of lvm2: %w", err)
	}
	_, value, found := strings.Cut(string(out), "=")
	if !found {
		return "", errors.New("read the filter of lvm2: there is none in the output")
	}
	return strings.TrimSpace(value), nil
}

// anyOf is an expression for numbers, which are sorted: digit by digit, as a word on a command line has 128 KiB at most, and thousands may be active.
func anyOf(numbers []string) string {
	var tails []string
	digits := map[string]string{} // by what may follow
	ends := false
	for i := 0; i < len(numbers); {
		if numbers[i] == "" {
			ends = true
			i++
			continue
		}
		first := numbers[i][:1]
		var rest []string
		for ; i < len(numbers) && numbers[i][:1] == first; i++ {
			rest = append(rest, numbers[i][1:])
		}
		tail := anyOf(rest)
		if digits[tail] == "" {
			tails = append(tails, tail)
		}
		digits[tail] += first
	}
	for i, tail := range tails {
		if tails[i] = digits[tail] + tail; len(digits[tail]) > 1 {
			tails[i] = "[" + digits[tail] + "]" + tail
		}
	}
	switch {
	case len(tails) == 0:
		return ""
	case ends:
		return "(" + strings.Join(tails, "|") + ")?"
	case len(tails) == 1:
		return tails[0]
	}
	return "(" + strings.Join(tails, "|") + ")"
}

// acceptAll is lvm2's own filter, which says nothing.
const acceptAll = `["a|.*|"]`

// reject puts patterns that reject devices before those of a filter. A device is taken if any of its names is accepted, so
// that all of its names have to be rejected.
func reject(own []string, filter string) string {
	patterns := []string{
		`"r#^/dev/dm-` + anyOf(own) + `$#"`,
		`"r#^/dev/mapper/dmlayer-#"`,
		`"r#^/dev/disk/by-id/dm-(name-dmlayer|uuid-DMLAYER)-#"`,
	}
	rest, list := strings.CutPrefix(filter, "[")
	switch {
	case filter == "" || filter == acceptAll || list && strings.TrimSpace(rest) == "]":
	case list:
		patterns = append(patterns, strings.TrimSpace(strings.TrimSuffix(rest, "]")))
	default:
		patterns = append(patterns, filter)
	}
	return "[" + strings.Join(patterns, ",") + "]"
}

// lvm2's grammar of the names of volume groups and logical volumes, and what it keeps for itself.
var (
	nameGrammar = regexp.MustCompile(`^[A-Za-z0-9+_.][A-Za-z0-9+_.-]*$`)
	reserved    = regexp.MustCompile(`_(cdata|cmeta|corig|cpool|cvol|imeta|iorig|mimage|mlog|pmspare|rimage|rmeta|tdata|tmeta|vdata|vorigin|wcorig)|^(pvmove|snapshot)`)
)

// maxNames is how long the two names may be together in a dm device's name of at most 127 bytes, in which '-' is written twice, with
// room for a layer's suffix.
const maxNames = 127 - len("-_tdata-real")

// ValidNames tells whether a volume of that name can be in that volume group. The error is ErrInvalid. An empty volume's name asks
// for the group's alone.
func ValidNames(vg, lv string) error {
	long := func(s string) int { return len(s) + strings.Count(s, "-") }
	switch {
	case !nameGrammar.MatchString(vg) || vg == "." || vg == ".." || len(vg) > 127:
		return fmt.Errorf("volume group name %q: %w", vg, errs.ErrInvalid)
	case lv == "":
	case !nameGrammar.MatchString(lv) || lv == "." || lv == ".." || len(lv) > 127 || reserved.MatchString(lv):
		return fmt.Errorf("logical volume name %q: %w", lv, errs.ErrInvalid)
	case long(vg)+long(lv) > maxNames:
		return fmt.Errorf("logical volume name %s/%s: too long: %w", vg, lv, errs.ErrInvalid)
	}
	return nil
}
