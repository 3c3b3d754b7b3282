package vmexec

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
)

// config is what the user asked for.
type config struct {
	args    []string
	env     []string // of the job
	dir     string
	slots   string // folder of the slots
	cache   string // .cache of the repository, with the kernel and the tools
	kind    string // which virtual machine
	timeout time.Duration
	memory  int64   // bytes
	disks   []int64 // bytes each
	cpus    int
	modules []string
	rw      []string
}

const (
	kindUML    = "uml"
	kindQEMU   = "qemu"
	kindNative = "none"
)

// defaultModules are loaded before every job. ext4 and xfs are part of the UML kernel, and
// modprobe is content with that.
var defaultModules = []string{"dm-thin-pool", "dm-flakey", "dm-delay", "dm-log-writes", "dm-bufio", "loop", "ext4", "xfs"}

// configFrom reads the user's wishes from the environment and takes args for the job. No args
// ask for a shell.
func configFrom(environ, args []string) (*config, error) {
	get := func(name, def string) string {
		if v := lookupEnv(environ, name); v != "" {
			return v
		}
		return def
	}
	c := &config{kind: get("DMLAYER_VM", kindUML), args: args, modules: defaultModules, cpus: 1}
	if c.kind != kindUML && c.kind != kindQEMU && c.kind != kindNative {
		return nil, fmt.Errorf("DMLAYER_VM=%s: want %s, %s or %s", c.kind, kindUML, kindQEMU, kindNative)
	}
	c.slots = get("DMLAYER_VM_SLOTS", slotDir)
	var err error
	if c.dir, err = os.Getwd(); err != nil {
		return nil, err
	}
	if c.cache, err = cacheDir(get("DMLAYER_CACHE", "")); err != nil {
		return nil, err
	}
	if len(args) == 0 {
		c.args = []string{"/bin/bash", "--norc"}
	}
	if err := checkProgram(c.args[0]); err != nil {
		return nil, err
	}
	if c.timeout, err = timeoutOf(get("DMLAYER_VM_TIMEOUT", ""), args); err != nil {
		return nil, fmt.Errorf("DMLAYER_VM_TIMEOUT: %w", err)
	}
	if c.memory, err = units.RAMInBytes(get("DMLAYER_VM_MEM", "2G")); err != nil {
		return nil, fmt.Errorf("DMLAYER_VM_MEM: %w", err)
	}
	for _, size := range fields(get("DMLAYER_VM_DISKS", "")) {
		n, err := units.RAMInBytes(size)
		if err != nil {
			return nil, fmt.Errorf("DMLAYER_VM_DISKS: %w", err)
		}
		c.disks = append(c.disks, n)
	}
	if c.kind == kindQEMU {
		if c.cpus, err = strconv.Atoi(get("DMLAYER_VM_CPUS", "2")); err != nil || c.cpus < 1 {
			return nil, fmt.Errorf("DMLAYER_VM_CPUS=%s: want a number of CPUs", get("DMLAYER_VM_CPUS", "2"))
		}
	}
	c.modules = append(c.modules, fields(get("DMLAYER_VM_MODULES", ""))...)
	c.rw = filepath.SplitList(get("DMLAYER_VM_RW", ""))
	c.rw = append(c.rw, outputDirs(c.args, c.dir)...)
	c.env = jobEnv(environ, c)
	return c, nil
}

// timeoutOf returns how long the machine may run, 0 for as long as it likes: what was asked for; for
// a test binary a little more than its own limit, which says better what hangs; else 15 minutes. A
// person at a shell may take their time.
func timeoutOf(asked string, args []string) (time.Duration, error) {
	const margin = 2 * time.Minute // boot, the listing of all goroutines, leak check
	if asked != "" {
		return time.ParseDuration(asked)
	}
	if len(args) == 0 {
		return 0, nil
	}
	for _, a := range args[1:] {
		v, ok := strings.CutPrefix(a, "-test.timeout=")
		if !ok || !isTestBinary(args[0]) {
			continue
		}
		limit, err := time.ParseDuration(v)
		if err != nil || limit == 0 {
			return 0, err
		}
		return limit + margin, nil
	}
	return 15 * time.Minute, nil
}

func fields(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}

// cacheDir finds the repository's cache: this program lives in its folder bin.
func cacheDir(asked string) (string, error) {
	if asked != "" {
		return filepath.Abs(asked)
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	return filepath.Dir(filepath.Dir(self)), nil
}

// isTestBinary goes by the name that go test gives.
func isTestBinary(path string) bool { return strings.HasSuffix(path, ".test") }

// checkProgram refuses a test binary that needs the host's dynamic linker: it would tie the tests
// to the C library of this host.
func checkProgram(path string) error {
	if !isTestBinary(path) {
		return nil
	}
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("open test binary: %w", err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New(path + " is dynamically linked; build it with CGO_ENABLED=0 (CGO_ENABLED=0 go test -exec …)")
		}
	}
	return nil
}

// outputDirs returns the folders that flags of a test binary name for its results, such as
// the coverage profile that go test asks for.
func outputDirs(args []string, cwd string) []string {
	if !isTestBinary(args[0]) {
		return nil
	}
	var dirs []string
	add := func(dir string) {
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(cwd, dir)
		}
		for _, d := range dirs {
			if d == dir {
				return
			}
		}
		dirs = append(dirs, dir)
	}
	outputDir := cwd
	for _, a := range args[1:] {
		if v, ok := strings.CutPrefix(a, "-test.outputdir="); ok {
			outputDir = v
		}
	}
	for _, a := range args[1:] {
		name, value, _ := strings.Cut(a, "=")
		switch name {
		case "-test.gocoverdir", "-test.fuzzcachedir":
			add(value)
		case "-test.coverprofile", "-test.cpuprofile", "-test.memprofile", "-test.blockprofile", "-test.mutexprofile", "-test.trace":
			if filepath.IsAbs(value) {
				add(filepath.Dir(value))
			} else {
				add(filepath.Dir(filepath.Join(outputDir, value)))
			}
		}
	}
	return dirs
}

// jobEnv builds the job's environment: what concerns the project, Go and the terminal comes from
// the caller, the rest is the same on every machine.
func jobEnv(environ []string, c *config) []string {
	var env []string
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		switch {
		case name == "DMLAYER_VM", name == "DMLAYER_VM_GUEST", name == "DMLAYER_TEST_REQUIRE":
		case strings.HasPrefix(name, "DMLAYER_"), strings.HasPrefix(name, "GO"),
			name == "TERM", name == "NO_COLOR", name == "LANG", strings.HasPrefix(name, "LC_"):
			env = append(env, kv)
		}
	}
	tools := filepath.Join(c.cache, "tools")
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, sub := range []string{"usr/bin", "usr/sbin"} {
		path = filepath.Join(tools, sub) + ":" + path
	}
	env = append(env, "PATH="+path, "DMLAYER_VM="+c.kind, "DM_DISABLE_UDEV=1")
	if c.kind != kindNative {
		env = append(env, "DMLAYER_VM_GUEST=1", "HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/bash", `PS1=vm:\w\$ `,
			"MODPROBE_OPTIONS=-d "+filepath.Join(c.cache, c.kind))
	}
	require := lookupEnv(environ, "DMLAYER_TEST_REQUIRE")
	if require == "" {
		require = "root,dm,loop,ext4,xfs,thin_check,images,graphtest,docker"
		if c.kind != kindNative {
			require += ",flakey,log_writes,delay,dmsetup,lvm,guest"
		}
	}
	return append(env, "DMLAYER_TEST_REQUIRE="+require)
}
