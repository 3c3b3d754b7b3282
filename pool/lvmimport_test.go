package pool_test

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// vgOn makes a volume group of loop disks that can be taken away and come back.
func vgOn(t *testing.T, name string, sizes ...int64) (disks []*pooltest.LoopDisk) {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.Ext4, testenv.LVM, testenv.ThinCheck)
	args := []string{"vgcreate", "-y", name}
	for _, size := range sizes {
		d := pooltest.NewLoopDisk(t, size, 0)
		disks = append(disks, d)
		args = append(args, d.Path)
	}
	pooltest.LVM(t, args...)
	return disks
}

// importRefused wants an import to fail, with a class and some words in error and hint, before anything is asked or made.
func importRefused(t *testing.T, what string, dirs pool.Dirs, o pool.ImportOptions, class error, words ...string) {
	t.Helper()
	o.Confirm = func(pool.ImportReport) error { return errors.New("it was going to") }
	_, err := pool.Import(pooltest.Context(t), dirs, o)
	if !errors.Is(err, class) {
		t.Errorf("%s: %v", what, err)
		return
	}
	for _, w := range words {
		if text := err.Error() + " " + errs.Hint(err); !strings.Contains(text, w) {
			t.Errorf("%s: %q does not say %q", what, text, w)
		}
	}
}

// The root directory of a pool on volumes is lost, or its disks are in another host: the records are in the pool. Whatever could be
// another pool, or somebody's who uses it, is refused.
func TestVolumesImported(t *testing.T) {
	disks := vgOn(t, "testvg", 160<<20)
	ctx := pooltest.Context(t)
	a := &pooltest.Env{Dirs: pooltest.Dirs(t), Name: pooltest.PoolName}
	spec := onVolumes("testvg")
	spec.DataSize = 64 << 20
	must(t, pool.Create(ctx, a.Dirs, spec))
	fillPool(t, a)
	b := &pooltest.Env{Dirs: pooltest.Dirs(t), Name: pooltest.PoolName}
	from := func(vg string) pool.ImportOptions { return pool.ImportOptions{VG: vg} }

	// While it runs, for a root directory that is there.
	importRefused(t, "a pool of another run directory", b.Dirs, from("testvg"), errs.ErrBusy, "run directory")
	importRefused(t, "a pool of another root", pool.Dirs{Root: b.Dirs.Root, Run: a.Dirs.Run}, from("testvg"), errs.ErrBusy, a.Dirs.Root)
	importRefused(t, "a pool that is well", a.Dirs, from("testvg"), errs.ErrExists)
	must(t, pool.Stop(ctx, a.Dirs, a.Name)) // which puts a copy of the records into it
	must(t, pool.Start(ctx, a.Dirs, a.Name))
	// Its root is lost while it runs.
	must(t, os.RemoveAll(a.Dirs.Root))
	r := imported(t, a.Dirs, from("testvg"))
	if r.Name != a.Name || r.SideFiles {
		t.Errorf("imported with %+v", r)
	}
	wantPool(t, a)
	must(t, pool.Stop(ctx, a.Dirs, a.Name))
	importRefused(t, "a pool that is well", a.Dirs, from("testvg"), errs.ErrExists)

	refuseGroups(t, b.Dirs)
	refuseTwo(t, b.Dirs)

	// In another host, where everything has another name.
	disks[0].Detach(t)
	importRefused(t, "no disk", b.Dirs, from("testvg"), errs.ErrNotFound)
	disks[0].Attach(t)
	pooltest.LVM(t, "vgrename", "testvg", "carried")
	pooltest.LVM(t, "lvrename", "carried", "dmlayer-test-data", "renamed")
	r = imported(t, b.Dirs, from("carried/renamed"))
	if r.Name != b.Name || r.Nodes != 4 {
		t.Errorf("imported with %+v", r)
	}
	wantPool(t, b)
	must(t, b.Check(ctx))
	if st := state(t, b); st.State != pool.StateInactive {
		t.Errorf("after the check: %+v", st)
	}
	destroy(t, b)
	if left := volumesOf(t, "carried"); left != "" {
		t.Errorf("left by destroy: %s", left)
	}
	pooltest.LVM(t, "vgremove", "-f", "-y", "carried")
}

// asElsewhere is what lvm2 is configured with on another host.
const asElsewhere = `global { system_id_source="lvmlocal" use_lvmpolld=0 notify_dbus=0 } local/system_id="elsewhere" ` +
	`activation { udev_sync=0 udev_rules=0 verify_udev_operations=0 monitoring=0 } devices/obtain_device_list_from_udev=0 backup { backup=0 archive=0 }`

// refuseGroups tries volume groups that this machine may not use, or that cannot be told apart.
func refuseGroups(t *testing.T, dirs pool.Dirs) {
	t.Helper()
	from := func(vg string) pool.ImportOptions { return pool.ImportOptions{VG: vg} }
	importRefused(t, "no group", dirs, from("none"), errs.ErrNotFound, "vgs")
	importRefused(t, "no volume", dirs, from("testvg/none"), errs.ErrNotFound, "lvs -o+tags")
	importRefused(t, "no name", dirs, from("a b"), errs.ErrInvalid)
	pooltest.LVM(t, "vgexport", "testvg")
	importRefused(t, "an exported group", dirs, from("testvg"), errs.ErrBusy, "vgimport testvg")
	pooltest.LVM(t, "vgimport", "testvg")
	pooltest.LVM(t, "vgchange", "-y", "--systemid", "elsewhere", "testvg")
	importRefused(t, "another host's group", dirs, from("testvg"), errs.ErrBusy, "elsewhere", "--systemid")
	cmd := testenv.Tool(pooltest.Context(t), "lvm", "vgchange", "-y", "--config", asElsewhere, "--systemid", "", "testvg")
	cmd.Env = append(cmd.Env, "LVM_SUPPRESS_FD_WARNINGS=1", "LVM_SYSTEM_DIR=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("take the group back: %v\n%s", err, out)
	}

	// Somebody's group of the same name.
	uuid := reported(t, pooltest.LVM(t, "vgs", "--noheadings", "-o", "vg_uuid", "testvg"), likeUUID)
	disks := vgOn(t, "foreign", 16<<20)
	importRefused(t, "a group without a pool", dirs, from("foreign"), errs.ErrNotFound, "tags")
	foreign := reported(t, pooltest.LVM(t, "vgs", "--noheadings", "-o", "vg_uuid", "foreign"), likeUUID)
	disks[0].Detach(t)
	pooltest.LVM(t, "vgrename", "testvg", "foreign")
	disks[0].Attach(t)
	importRefused(t, "two groups", dirs, from("foreign"), errs.ErrDamaged, "vgrename")
	pooltest.LVM(t, "vgrename", uuid, "testvg")
	pooltest.LVM(t, "vgremove", "-f", "-y", "--select", "vg_uuid="+foreign)
}

// refuseTwo tries a group with the volumes of two pools, with two of one, and without one.
func refuseTwo(t *testing.T, dirs pool.Dirs) {
	t.Helper()
	ctx := pooltest.Context(t)
	from := func(vg string) pool.ImportOptions { return pool.ImportOptions{VG: vg} }
	other := pooltest.Dirs(t)
	spec := onVolumes("testvg")
	spec.Name, spec.DataSize, spec.MetadataSize, spec.BaseSize = "second", 16<<20, 4<<20, 16<<20
	must(t, pool.Create(ctx, other, spec))
	must(t, pool.Stop(ctx, other, "second"))
	importRefused(t, "two pools", dirs, from("testvg"), errs.ErrInvalid, "dmlayer-second-data", "dmlayer-test-data", "--vg testvg/dmlayer-")
	must(t, os.RemoveAll(other.Root))
	r := imported(t, other, from("testvg/dmlayer-second-metadata"))
	if r.Name != "second" {
		t.Errorf("imported with %+v", r)
	}
	o := from("testvg/dmlayer-test-data")
	o.Name = "second"
	importRefused(t, "the name of another", other, o, errs.ErrExists, "--name")
	must(t, pool.Destroy(ctx, other, "second"))

	tag := reported(t, pooltest.LVM(t, "lvs", "--noheadings", "-o", "lv_tags", "testvg/dmlayer-test-data"), "dmlayer.*")
	pooltest.LVM(t, append([]string{"lvcreate", "-an", "-Zn", "-Wn", "-L", "4m", "-n", "copy", "testvg"}, tags(tag, "--addtag")...)...)
	importRefused(t, "two volumes of one pool", dirs, from("testvg"), errs.ErrDamaged, "copy")
	pooltest.LVM(t, "lvremove", "-f", "-y", "testvg/copy")
	pooltest.LVM(t, append([]string{"lvchange", "testvg/dmlayer-test-data"}, tags(tag, "--deltag")...)...)
	importRefused(t, "a volume without tags", dirs, from("testvg"), errs.ErrDamaged, "missing", "lvs")
	pooltest.LVM(t, append([]string{"lvchange", "testvg/dmlayer-test-data"}, tags(tag, "--addtag")...)...)
}

// reported is the first word like that of what lvm2 says, between whatever it warns of.
func reported(t *testing.T, out, like string) string {
	t.Helper()
	for _, w := range strings.Fields(out) {
		if regexp.MustCompile("^" + like + "$").MatchString(w) {
			return w
		}
	}
	t.Fatalf("nothing like %s in %s", like, out)
	return ""
}

const likeUUID = `\w{6}(-\w{4}){5}-\w{6}`

func tags(list, option string) (args []string) {
	for _, tag := range strings.Split(list, ",") {
		args = append(args, option, tag)
	}
	return args
}

// One of two disks is missing at first: nothing is imported, started or destroyed until it is there.
func TestVolumesDiskMissing(t *testing.T) {
	disks := vgOn(t, "testvg", 48<<20, 48<<20)
	ctx := pooltest.Context(t)
	e := &pooltest.Env{Dirs: pooltest.Dirs(t), Name: pooltest.PoolName}
	spec := onVolumes("testvg")
	spec.DataSize, spec.BaseSize = 60<<20, 16<<20
	must(t, pool.Create(ctx, e.Dirs, spec))
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	for i, d := range disks {
		d.Detach(t)
		other := pooltest.Dirs(t)
		importRefused(t, "a disk is missing", other, pool.ImportOptions{VG: "testvg"}, errs.ErrDamaged, "missing")
		said(t, pool.Start(ctx, e.Dirs, e.Name), errs.ErrDamaged, "missing")
		said(t, pool.Destroy(ctx, e.Dirs, e.Name), errs.ErrDamaged, "missing")
		if i == 0 { // late, and under another name
			taken := pooltest.NewLoopDisk(t, 1<<20, 0)
			d.Attach(t)
			taken.Detach(t)
		} else {
			d.Attach(t)
		}
		must(t, pool.Start(ctx, e.Dirs, e.Name))
		must(t, e.Check(ctx))
	}
	destroy(t, e)
	pooltest.LVM(t, "vgremove", "-f", "-y", "testvg")
}
