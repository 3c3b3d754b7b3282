package lvm

import (
	"context"
	"errors"
	"math/rand"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// fake is a program that answers lvm2's commands from files in a folder, named after them, and notes what it was asked. A file
// NAME.exit has the exit code.
func fake(t *testing.T, answers map[string]string) (*Client, func() string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range answers {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	script := "#!/bin/sh\ncd " + dir + "\necho \"$*\" >>asked\n[ ! -f $1 ] || cat $1\n[ ! -f $1.exit ] || exit $(cat $1.exit)\n"
	program := filepath.Join(dir, "lvm")
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return &Client{program: program}, func() string {
		b, err := os.ReadFile(filepath.Join(dir, "asked"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
}

// somewhere sets what the machine is like.
func somewhere(t *testing.T, udev bool, uuids map[string]string) {
	t.Helper()
	dir := t.TempDir()
	oldUdev, oldSystem, oldCheck, oldSys := udevControl, systemDir, thinCheck, sysBlock
	t.Cleanup(func() { udevControl, systemDir, thinCheck, sysBlock = oldUdev, oldSystem, oldCheck, oldSys })
	udevControl, systemDir, thinCheck, sysBlock = filepath.Join(dir, "none"), dir, dir, dir
	if udev {
		udevControl = dir
	}
	for name, uuid := range uuids {
		if err := os.MkdirAll(filepath.Join(dir, name, "dm"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "dm", "uuid"), []byte(uuid+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

const vgReport = `{"report":[{"vg":[{"vg_name":"vg","vg_uuid":"UUID","vg_extent_size":"4194304","vg_size":"100","vg_free":"8388608","vg_missing_pv_count":"0","lv_count":"2","vg_tags":"a,b","vg_exported":"0"}]}]}`

func TestVGByName(t *testing.T) {
	somewhere(t, true, nil)
	ctx := t.Context()
	c, asked := fake(t, map[string]string{"vgs": vgReport})
	vg, err := c.VGByName(ctx, "vg")
	if err != nil || vg.Name != "vg" || vg.Free != 8<<20 || vg.ExtentSize != 4<<20 || !vg.HasTag("b") || vg.HasTag("c") {
		t.Errorf("%+v, %v", vg, err)
	}
	if a := asked(); strings.Contains(a, "--config") || !strings.Contains(a, `-S vg_name="vg"`) {
		t.Errorf("asked %s", a)
	}
	for name, answers := range map[string]map[string]string{
		"none":                 {"vgs": `{"report":[{"vg":[]}]}`},
		"broken":               {"vgs": `{"report":`},
		"no report":            {"vgs": `{}`},
		"a field is missing":   {"vgs": `{"report":[{"vg":[{"vg_name":"vg"}]}]}`},
		"a number is none":     {"vgs": strings.Replace(vgReport, `"8388608"`, `"8.00m"`, 1)},
		"failed, with nothing": {"vgs": `{"report":[{"vg":[]}]}`, "vgs.exit": "5"},
		"two":                  {"vgs": `{"report":[` + strings.TrimSuffix(strings.TrimPrefix(vgReport, `{"report":[`), `]}`) + `,` + strings.TrimPrefix(vgReport, `{"report":[`)},
	} {
		c, _ := fake(t, answers)
		_, err := c.VGByName(ctx, "vg")
		if err == nil || errors.Is(err, errs.ErrNotFound) != (name == "none") || errors.Is(err, errs.ErrDamaged) != (name == "two") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// One group of the machine cannot be read, and it is another.
	c, _ = fake(t, map[string]string{"vgs": vgReport, "vgs.exit": "5"})
	if _, err := c.VGByName(ctx, "vg"); err != nil {
		t.Error(err)
	}
	c = &Client{program: "dmlayer-no-such-lvm"}
	if _, err := c.VGByName(ctx, "vg"); !errors.Is(err, errs.ErrUnsupported) {
		t.Errorf("without lvm2: %v", err)
	}
	for _, name := range []string{"", "-vg", "v g", `v"g`, "..", strings.Repeat("v", 128)} {
		if _, err := c.VGByName(ctx, name); !errors.Is(err, errs.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

const lvRow = `{"lv_name":"[tp_tdata]","lv_uuid":"U1","vg_name":"vg","vg_uuid":"V-1","lv_size":"8192","lv_tags":"","segtype":"linear","lv_kernel_minor":"-1",` +
	`"lv_suspended":"-1","lv_health_status":"partial","seg_pe_ranges":"/dev/sdb:0-9","data_lv":"","metadata_lv":"","chunk_size":"0","zero":"-1","discards":"",` +
	`"lv_when_full":"","origin":"","transaction_id":"","thin_count":""}`

func TestLVs(t *testing.T) {
	somewhere(t, true, nil)
	second := strings.Replace(lvRow, "/dev/sdb:0-9", "/dev/sdc:3-4", 1)
	thin := strings.NewReplacer("[tp_tdata]", "tp", "U1", "U2", `"linear"`, `"thin-pool"`, `"data_lv":""`, `"data_lv":"[tp_tdata]"`, `"zero":"-1"`, `"zero":"1"`,
		`"chunk_size":"0"`, `"chunk_size":131072`, `"lv_kernel_minor":"-1"`, `"lv_kernel_minor":"3"`).Replace(lvRow)
	c, _ := fake(t, map[string]string{"lvs": `{"report":[{"lv":[` + lvRow + "," + second + "," + thin + `]}],"log":[]}`})
	lvs, err := c.LVs(t.Context(), "V-1")
	if err != nil || len(lvs) != 2 {
		t.Fatalf("%+v, %v", lvs, err)
	}
	if a := lvs[0]; a.Name != "tp_tdata" || len(a.Ranges) != 2 || a.Active || !a.Partial || a.DMUUID() != "LVM-V1U1" {
		t.Errorf("%+v", a)
	}
	if p := lvs[1]; !p.Active || !p.ThinPool.Zero || p.ThinPool.DataLV != "tp_tdata" || p.ThinPool.ChunkSize != 128<<10 {
		t.Errorf("%+v", p)
	}
}

// A group and its volumes are looked at at once; one without volumes is looked up.
func TestGroupWithLVs(t *testing.T) {
	somewhere(t, true, nil)
	both := strings.TrimSuffix(lvRow, "}") + `,"vg_extent_size":"4194304","vg_size":"100","vg_free":"8388608","vg_missing_pv_count":"1","lv_count":"2","vg_tags":"a,b","vg_exported":"0"}`
	c, asked := fake(t, map[string]string{"lvs": `{"report":[{"lv":[` + both + `]}]}`})
	vg, lvs, err := c.GroupWithLVs(t.Context(), "V-1")
	if err != nil || vg.Name != "vg" || vg.UUID != "V-1" || vg.MissingPVs != 1 || vg.Free != 8<<20 || len(lvs) != 1 || strings.Count(asked(), "\n") != 1 {
		t.Errorf("%+v, %+v, %v; asked %s", vg, lvs, err, asked())
	}
	c, _ = fake(t, map[string]string{"lvs": `{"report":[{"lv":[]}]}`, "vgs": vgReport})
	if vg, lvs, err = c.GroupWithLVs(t.Context(), "UUID"); err != nil || vg.Name != "vg" || len(lvs) != 0 {
		t.Errorf("without volumes: %+v, %+v, %v", vg, lvs, err)
	}
	c, _ = fake(t, map[string]string{"lvs": `{"report":[{"lv":[]}]}`, "vgs": `{"report":[{"vg":[]}]}`})
	if _, _, err = c.GroupWithLVs(t.Context(), "UUID"); !errors.Is(err, errs.ErrNotFound) {
		t.Errorf("without a group: %v", err)
	}
}

// Why a command has failed is found out by looking, never from what it says.
func TestWhyItFailed(t *testing.T) {
	somewhere(t, true, nil)
	vg := VG{Name: "vg", UUID: "UUID"}
	taken := strings.Replace(lvRow, "[tp_tdata]", "name", 1)
	for what, c := range map[string]struct {
		lvs   string
		size  int64
		class error
	}{
		"taken":          {taken, 4 << 20, errs.ErrExists},
		"no room":        {lvRow, 16 << 20, errs.ErrNoSpace},
		"something else": {lvRow, 4 << 20, nil},
	} {
		client, _ := fake(t, map[string]string{"lvcreate.exit": "5", "lvs": `{"report":[{"lv":[` + c.lvs + `]}]}`, "vgs": vgReport})
		err := client.CreateLV(t.Context(), vg, LVSpec{Name: "name", Size: c.size})
		if err == nil || errs.Class(err) != c.class {
			t.Errorf("%s: %v", what, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	client, _ := fake(t, nil)
	if err := client.CreateLV(ctx, vg, LVSpec{Name: "name"}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	client, _ = fake(t, map[string]string{"lvchange.exit": "5", "lvs": `{"report":[{"lv":[{"lv_name":"name"}]}]}`})
	if err := client.Deactivate(t.Context(), LV{Name: "name", VG: "vg", UUID: "U"}); !errors.Is(err, errs.ErrBusy) {
		t.Errorf("in use: %v", err)
	}
	client, asked := fake(t, nil)
	if err := errors.Join(client.Activate(t.Context()), client.Extend(t.Context(), LV{Size: 8}, 8)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(client.program), "asked")); err == nil {
		t.Errorf("nothing was to be done, and it ran %s", asked())
	}
}

// What lvm2 is told depends on the machine: without udev it must not wait for it, and it never looks into our own devices.
func TestConfig(t *testing.T) {
	somewhere(t, true, map[string]string{"dm-0": "LVM-abc"})
	c, asked := fake(t, map[string]string{"lvmconfig": "global_filter=[\"a|/dev/sd|\", \"r|.*|\"]\n"})
	if config, err := c.config(t.Context()); config != "" || err != nil {
		t.Errorf("with udev: %q, %v", config, err)
	}
	somewhere(t, false, map[string]string{"dm-0": "LVM-abc", "dm-7": "DMLAYER-abc-1", "dm-12": "DMLAYER-abc-pool"})
	config, err := c.config(t.Context())
	want := `devices/global_filter=["r#^/dev/dm-(12|7)$#","r#^/dev/mapper/dmlayer-#","r#^/dev/disk/by-id/dm-(name-dmlayer|uuid-DMLAYER)-#","a|/dev/sd|", "r|.*|"]`
	if err != nil || !strings.Contains(config, "udev_sync=0") || !strings.Contains(config, want) {
		t.Errorf("without udev: %q, %v\n%s", config, err, asked())
	}
	for filter, want := range map[string]string{"[]": "]", "": "]", `["a|.*|"]`: "]", `"a|.*|"`: `,"a|.*|"]`, `[ "a|x|" ]`: `,"a|x|"]`} {
		if got := reject([]string{"1"}, filter); !strings.HasSuffix(got, `-#"`+want) {
			t.Errorf("%q: %s", filter, got)
		}
	}
	c, _ = fake(t, map[string]string{"lvmconfig.exit": "5"})
	if _, err := c.VGByName(t.Context(), "vg"); err == nil {
		t.Error("without the machine's filter it went on")
	}
}

// What names our devices names no others, and fits into a word of a command line though many are active.
func TestAnyOf(t *testing.T) {
	for seed := range int64(20) {
		rnd := rand.New(rand.NewSource(seed))
		var all, own []string
		for i := range 2000 {
			if all = append(all, strconv.Itoa(i)); rnd.Int63n(20) < seed {
				own = append(own, strconv.Itoa(i))
			}
		}
		slices.Sort(own)
		pattern := regexp.MustCompile("^" + anyOf(own) + "$")
		for _, n := range all {
			if _, is := slices.BinarySearch(own, n); len(own) > 0 && pattern.MatchString(n) != is {
				t.Fatalf("%d: %s is one of them: %v", seed, n, is)
			}
		}
	}
	var half []string
	for i := range 60000 {
		if i%2 == 0 {
			half = append(half, strconv.Itoa(i))
		}
	}
	slices.Sort(half)
	if n := len(reject(half, "")); n > 100<<10 {
		t.Errorf("%d bytes", n)
	}
}

// What a disk had on it may have to be put back: lvm2 discards nothing that it gives up, whatever it is configured to.
func TestRemoveDiscardsNothing(t *testing.T) {
	somewhere(t, true, nil)
	c, asked := fake(t, nil)
	if err := c.RemoveLVs(t.Context(), LV{VG: "vg", Name: "lv", UUID: "U"}); err != nil {
		t.Error(err)
	}
	if a := asked(); !strings.HasPrefix(a, "lvremove --config devices/issue_discards=0 ") {
		t.Errorf("asked %s", a)
	}
}

func TestValidNames(t *testing.T) {
	for _, name := range []string{"pool", "a.b_c+d-e", strings.Repeat("a", 60)} {
		if err := ValidNames("vg", name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"-a", "a b", "a/b", ".", "x_tdata", "snapshot1", "pvmove0", "lvol0_pmspare", strings.Repeat("a", 128), strings.Repeat("-a", 40)} {
		if err := ValidNames("vg", name); !errors.Is(err, errs.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// A physical volume of a group without metadata is one that vgcreate or vgremove has left when it died, and can be taken down.
func TestLostPV(t *testing.T) {
	const report = `{"report":[{"pv":[{"pv_name":"/dev/x","pv_uuid":"U","vg_name":"[unknown]","dev_size":"4096","pv_missing":"0"}]}]}`
	c, _ := fake(t, map[string]string{"pvs": report})
	pv, err := c.PVByUUID(t.Context(), "U")
	if err != nil || !pv.Lost || pv.VG != "" {
		t.Errorf("%+v, %v", pv, err)
	}
}

func FuzzReport(f *testing.F) {
	f.Add([]byte(vgReport))
	f.Add([]byte(`{"report":[{"lv":[` + lvRow + `]}]}`))
	f.Add([]byte(`{"report":[{"pv":[{"pv_name":null,"dev_size":1e9,"pv_uuid":["a","b"]}]}]}`))
	f.Add([]byte(`{"report":[{"lv":[{"lv_size":{}}]}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, kind := range []string{"vg", "lv", "pv"} {
			rows, err := parseReport(text, kind, nil)
			if err != nil {
				continue
			}
			for _, r := range rows {
				if vg, err := r.vg(); err == nil && (vg.ExtentSize <= 0 || vg.Free < 0 || vg.Name == "") {
					t.Errorf("%+v", vg)
				}
				_, _ = r.pv()
			}
			lvs, err := parseLVs(rows)
			for _, lv := range lvs {
				if err == nil && (lv.Size < 0 || lv.UUID == "" || strings.HasPrefix(lv.Name, "[")) {
					t.Errorf("%+v", lv)
				}
			}
		}
	})
}
