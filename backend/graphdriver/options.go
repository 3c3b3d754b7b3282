package graphdriver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
)

// Options are what Docker was told with --storage-opt. They are kept with the pool: Docker gives them when it starts, and dmlayer may be started again
// while Docker runs.
type Options struct {
	BaseSize     int64    `json:"baseSize,omitempty"` // bytes; of layers without a parent, and the least of a container; 0 is the pool's
	MountOptions []string `json:"mountOptions,omitempty"`
}

// Where the options are.
const (
	docKind = "docker"
	docKey  = "options"
)

func loadOptions(ctx context.Context, store *layer.Store) (Options, error) {
	var o Options
	doc, err := store.Document(ctx, docKind, docKey)
	if errors.Is(err, errs.ErrNotFound) {
		return o, nil
	}
	if err == nil {
		if err = json.Unmarshal(doc.Data, &o); err != nil {
			err = fmt.Errorf("options of Docker: %w: %w", err, errs.ErrDamaged)
		}
	}
	return o, err
}

func (d *Driver) currentOptions() Options {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.options
}

func (d *Driver) setOptions(ctx context.Context, o Options) error {
	data, err := json.Marshal(o)
	if err != nil {
		return err
	}
	if before, err := json.Marshal(d.currentOptions()); err == nil && string(before) == string(data) {
		return nil
	}
	err = d.store.UpdateDocuments(ctx, func(tx *layer.DocTx) error {
		return tx.Put(layer.Document{Kind: docKind, Key: docKey, Data: data})
	})
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.options = o
	return nil
}

// setting is what a pool was made with and an option of the devicemapper driver may confirm.
type setting struct {
	value string // as the option says it
	flag  string // of dmlayer pool create
}

// poolSettings are the options of the devicemapper driver that dmlayer fixes when a pool is made. They are understood where they say what the pool is.
func (d *Driver) poolSettings() map[string]setting {
	r := d.store.Pool().Record()
	return map[string]setting{
		"dm.fs":             {r.FS, "--fs"},
		"dm.mkfsarg":        {strings.Join(r.MkfsOptions, " "), "--mkfs-option"},
		"dm.blocksize":      {strconv.FormatInt(r.BlockSize, 10), "--block-size"},
		"dm.blkdiscard":     {strconv.FormatBool(r.Discard == "passdown"), "--discard"},
		"dm.min_free_space": {strconv.Itoa(r.Space.MinFree) + "%", "--min-free"},
	}
}

// poolOptions are those that make a pool, which dmlayer does by a command of its own.
var poolOptions = map[string]string{
	"dm.thinpooldev":                "dmlayer pool create --vg VG --thin-pool POOL takes over an empty thin pool, and dmlayer serve --pool NAME serves it",
	"dm.datadev":                    "dmlayer pool create --data-device DEVICE",
	"dm.metadatadev":                "dmlayer pool create --metadata-device DEVICE",
	"dm.loopdatasize":               "dmlayer pool create --data-size SIZE",
	"dm.loopmetadatasize":           "dmlayer pool create --metadata-size SIZE",
	"dm.directlvm_device":           "dmlayer pool create --device DEVICE",
	"dm.directlvm_device_force":     "dmlayer pool create --force",
	"dm.thinp_percent":              "dmlayer pool create --data-percent PERCENT",
	"dm.thinp_metapercent":          "dmlayer pool create --metadata-size SIZE",
	"dm.thinp_autoextend_threshold": "dmlayer pool create --grow-at PERCENT",
	"dm.thinp_autoextend_percent":   "dmlayer pool create --grow-by PERCENT",
	"dm.libdm_log_level":            "dmlayer serve --log-level LEVEL",
}

// fixed are those that dmlayer has one answer to: nothing of libdm or udev is behind it, and nothing waits for a device or a full pool.
var fixed = map[string]answer{
	"dm.use_deferred_removal":     {"true", "a device goes with its last user"},
	"dm.use_deferred_deletion":    {"true", "what is removed is gone at once, and its blocks follow"},
	"dm.xfs_nospace_max_retries":  {"0", "xfs gives up at once when the pool is full"},
	"dm.override_udev_sync_check": {"", "nothing depends on udev"},
}

// answer is the only value of an option, "" for any truth value.
type answer struct{ value, why string }

// confirm is nil where an option says what is so anyway.
func (a answer) confirm(value string) error {
	_, notNumber := strconv.Atoi(a.value)
	b, notBool := strconv.ParseBool(value)
	switch {
	case notNumber == nil && value == a.value:
		return nil
	case notNumber != nil && notBool != nil:
		return fmt.Errorf("not true or false: %w", errs.ErrInvalid)
	case notNumber != nil && (a.value == "" || strconv.FormatBool(b) == a.value):
		return nil
	}
	return errs.WithHint(fmt.Errorf("always %s: %w", a.value, errs.ErrInvalid), a.why+"; leave the option out")
}

// parseOptions reads the options that Docker was started with: each understood under its old name, or refused with what takes its place.
func (d *Driver) parseOptions(list []string) (Options, error) {
	var o Options
	settings := d.poolSettings()
	for _, text := range list {
		key, value, ok := strings.Cut(text, "=")
		key, value = strings.ToLower(strings.TrimSpace(key)), strings.TrimSpace(value)
		if !ok {
			return o, fmt.Errorf("storage option %q: no value: %w", text, errs.ErrInvalid)
		}
		if err := d.parseOption(&o, settings, key, value); err != nil {
			return o, fmt.Errorf("storage option %q: %w", text, err)
		}
	}
	return o, nil
}

func (d *Driver) parseOption(o *Options, settings map[string]setting, key, value string) error {
	switch key {
	case "dm.basesize":
		size, err := parseSize(value)
		o.BaseSize = size
		return err
	case "dm.mountopt":
		o.MountOptions = append(o.MountOptions, value)
		return d.store.CheckMountOptions(value)
	}
	if s, ok := settings[key]; ok {
		return s.confirm(key, value, d.store.Pool().Name())
	}
	if hint, ok := poolOptions[key]; ok {
		return errs.WithHint(fmt.Errorf("not an option of Docker's any more: %w", errs.ErrInvalid), hint)
	}
	if f, ok := fixed[key]; ok {
		return f.confirm(value)
	}
	return errs.WithHint(fmt.Errorf("unknown: %w", errs.ErrInvalid), "the options are those of the devicemapper driver; see docs/docker.md")
}

// confirm is nil where an option says what the pool is.
func (s setting) confirm(key, value, pool string) error {
	same := value == s.value
	switch key {
	case "dm.blocksize":
		size, err := parseSize(value)
		if err != nil {
			return err
		}
		same = strconv.FormatInt(size, 10) == s.value
	case "dm.blkdiscard":
		b, err := strconv.ParseBool(value)
		if err != nil {
			return fmt.Errorf("not true or false: %w", errs.ErrInvalid)
		}
		same = strconv.FormatBool(b) == s.value
	case "dm.mkfsarg":
		same = slices.Contains(strings.Fields(s.value), value) || value == s.value
	}
	if same {
		return nil
	}
	err := fmt.Errorf("pool %q has %q: %w", pool, s.value, errs.ErrInvalid)
	return errs.WithHint(err, "it is fixed when the pool is made: dmlayer pool create "+s.flag)
}

func parseSize(value string) (int64, error) {
	size, err := units.RAMInBytes(value)
	if err != nil || size <= 0 || strings.HasPrefix(value, "+") {
		return 0, errs.WithHint(fmt.Errorf("size %q: %w", value, errs.ErrInvalid), "a number and a unit, such as 20G")
	}
	return size, nil
}

// sizeOf reads the options of one container.
func sizeOf(storage map[string]string) (size int64, err error) {
	for key, value := range storage {
		if strings.ToLower(key) != "size" {
			return 0, errs.WithHint(fmt.Errorf("storage option %q: unknown: %w", key, errs.ErrInvalid), "a container has size=SIZE")
		}
		if size, err = parseSize(value); err != nil {
			return 0, fmt.Errorf("storage option %q: %w", key, err)
		}
	}
	return size, nil
}
