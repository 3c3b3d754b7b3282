package cli

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// unit is a unit file: the values of each setting, by section and name.
func unit(t *testing.T, name string) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../../../systemd", name))
	if err != nil {
		t.Fatal(err)
	}
	settings, section := map[string][]string{}, ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch key, value, ok := strings.Cut(line, "="); {
		case line == "" || line[0] == '#':
		case line[0] == '[':
			section = strings.Trim(line, "[]")
		case !ok:
			t.Errorf("%s: %q is no setting", name, line)
		default:
			settings[section+"."+key] = append(settings[section+"."+key], strings.Fields(value)...)
		}
	}
	return settings
}

// The units start a command that there is, before whoever needs the pool, and leave mounts alone.
func TestUnits(t *testing.T) {
	for name, pool := range map[string]string{"dmlayer.service": "default", "dmlayer@.service": "%i"} {
		u := unit(t, name)
		has := func(setting string, values ...string) {
			t.Helper()
			for _, v := range values {
				if !strings.Contains(" "+strings.Join(u[setting], " ")+" ", " "+v+" ") {
					t.Errorf("%s: %s=%s, without %s", name, setting, strings.Join(u[setting], " "), v)
				}
			}
		}
		has("Service.Type", "notify")
		has("Unit.Before", "containerd.service", "docker.service")
		has("Unit.After", "local-fs.target", "blk-availability.service")
		has("Unit.RequiresMountsFor", "/var/lib/dmlayer")
		has("Service.KillMode", "process")
		has("Service.RuntimeDirectoryPreserve", "yes")
		has("Service.OOMScoreAdjust", "-900")
		has("Unit.ConditionPathExists", "/var/lib/dmlayer/pools/"+pool+"/records.db")
		for setting := range u {
			for _, private := range []string{"Private", "Protect", "ReadOnly", "ReadWrite", "Inaccessible", "Temporary", "Bind", "Mount", "RootDirectory"} {
				if strings.HasPrefix(setting, "Service."+private) {
					t.Errorf("%s: %s gives it a mount name space of its own", name, setting)
				}
			}
		}
		start := u["Service.ExecStart"]
		if len(start) < 4 || !strings.HasSuffix(start[0], "/dmlayer") || start[1] != "serve" || start[2] != "--pool" || start[3] != pool {
			t.Fatalf("%s: ExecStart=%s", name, strings.Join(start, " "))
		}
		a, _, stderr := testApp(0, nil)
		if code := a.run(context.Background(), append(start[1:3:3], append([]string{"x"}, append(start[4:], "--help")...)...)); code != 0 {
			t.Errorf("%s: dmlayer does not understand %q: %s", name, start[1:], stderr)
		}
		if pool == "%i" {
			for _, e := range endpoints { // of one pool only
				has("Service.ExecStart", "--"+e.flag+"=")
			}
		}
	}
}
