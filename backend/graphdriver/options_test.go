package graphdriver_test

import (
	"os"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/pool"
)

// TestOptions: the options of the devicemapper driver are understood, or refused with what takes their place.
func TestOptions(t *testing.T) {
	d := newDocker(t, pool.Spec{})
	for _, good := range []string{
		"dm.basesize=20G", "dm.fs=ext4", "dm.blocksize=64K", "dm.blkdiscard=true", "dm.min_free_space=10%", "dm.mountopt=nodev",
		"dm.use_deferred_removal=true", "dm.use_deferred_removal=1", "dm.use_deferred_deletion=true", "DM.FS = ext4", "dm.xfs_nospace_max_retries=0", "dm.override_udev_sync_check=false",
	} {
		d.init(good)
	}
	for bad, want := range map[string]string{
		"dm.fs=xfs": "--fs", "dm.blocksize=512K": "--block-size", "dm.blkdiscard=false": "--discard", "dm.min_free_space=20%": "--min-free", "dm.mkfsarg=-Ox": "--mkfs-option",
		"dm.thinpooldev=/dev/mapper/x": "--vg", "dm.datadev=/dev/x": "--data-device", "dm.metadatadev=/dev/x": "--metadata-device",
		"dm.loopdatasize=1G": "--data-size", "dm.loopmetadatasize=1G": "--metadata-size", "dm.directlvm_device=/dev/x": "--device",
		"dm.directlvm_device_force=true": "--force", "dm.thinp_percent=95": "--data-percent", "dm.thinp_metapercent=1": "--metadata-size",
		"dm.thinp_autoextend_threshold=80": "--grow-at", "dm.thinp_autoextend_percent=20": "--grow-by", "dm.libdm_log_level=7": "--log-level",
		"dm.use_deferred_removal=false": "always true", "dm.use_deferred_deletion=0": "always true", "dm.use_deferred_removal=yes": "not true or false",
		"dm.xfs_nospace_max_retries=5": "always 0", "dm.override_udev_sync_check=maybe": "not true or false",
		"dm.basesize=-1": "such as 20G", "dm.basesize=+1G": "such as 20G", "dm.basesize": "no value", "overlay2.size=1G": "unknown", "dm.blocksize=x": "such as 20G", "dm.blkdiscard=x": "not true or false",
	} {
		_, err := d.try("Init", map[string]any{"Opts": []string{bad}})
		mustFail(t, err, want)
	}
	_, err := d.try("Init", map[string]any{"UIDMaps": []map[string]int{{"container_id": 0, "host_id": 1000, "size": 1}}})
	mustFail(t, err, "userns-remap")
	// Nothing of what was refused is kept.
	if _, err := d.try("Init", map[string]any{"Opts": []string{"dm.basesize=30G", "dm.fs=btrfs"}}); err == nil {
		t.Error("a pool of ext4 takes dm.fs=btrfs")
	}
	d.call("CreateReadWrite", graphRequest{ID: "c"})
	if m := d.call("GetMetadata", graphRequest{ID: "c"}).Metadata; m["DeviceSize"] != "1073741824" {
		t.Errorf("metadata %v", m)
	}
}

// TestOptionsOfPool: what a pool was made with is confirmed under the old names.
func TestOptionsOfPool(t *testing.T) {
	d := newDocker(t, pool.Spec{FS: "xfs", MkfsOptions: []string{"-m", "bigtime=1"}, BlockSize: 128 << 10, Discard: "nopassdown", Space: pool.Space{MinFree: 20}})
	d.init("dm.fs=xfs", "dm.mkfsarg=-m", "dm.mkfsarg=bigtime=1", "dm.mkfsarg=-m bigtime=1", "dm.blocksize=128k", "dm.blkdiscard=false", "dm.min_free_space=20%")
	for bad, want := range map[string]string{"dm.fs=ext4": `has "xfs"`, "dm.blocksize=64K": `has "131072"`, "dm.blkdiscard=true": `has "false"`, "dm.min_free_space=10%": `has "20%"`} {
		_, err := d.try("Init", map[string]any{"Opts": []string{bad}})
		mustFail(t, err, want)
	}
}

// TestEveryOption: each option that Docker's devicemapper driver had has an answer, and a row in the document.
func TestEveryOption(t *testing.T) {
	d := newDocker(t, pool.Spec{})
	text, err := os.ReadFile("../../docs/docker.md")
	must(t, err)
	for _, name := range []string{ // deviceset.go of Docker 24, the last with the driver
		"dm.basesize", "dm.loopdatasize", "dm.loopmetadatasize", "dm.fs", "dm.mkfsarg", "dm.mountopt", "dm.metadatadev", "dm.datadev", "dm.thinpooldev", "dm.blkdiscard",
		"dm.blocksize", "dm.override_udev_sync_check", "dm.use_deferred_removal", "dm.use_deferred_deletion", "dm.min_free_space", "dm.xfs_nospace_max_retries",
		"dm.directlvm_device", "dm.directlvm_device_force", "dm.thinp_percent", "dm.thinp_metapercent", "dm.thinp_autoextend_percent", "dm.thinp_autoextend_threshold",
		"dm.libdm_log_level",
	} {
		if _, err := d.try("Init", map[string]any{"Opts": []string{name + "=?"}}); err != nil && strings.Contains(err.Error(), "unknown") {
			t.Errorf("%s is not known: %v", name, err)
		}
		if !strings.Contains(string(text), "`"+name+"`") {
			t.Errorf("docs/docker.md has no %s", name)
		}
	}
}
