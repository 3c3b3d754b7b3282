package lvm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// VG is a volume group. Sizes are bytes.
type VG struct {
	Name, UUID string
	ExtentSize int64
	Size, Free int64
	MissingPVs int
	LVs        int // that people see
	Exported   bool
	Tags       []string
}

// LV is a logical volume. Sizes are bytes.
type LV struct {
	Name, UUID string // the name of a hidden one without brackets
	VG, VGUUID string
	Size       int64
	Tags       []string
	Type       string // lvm2's type of its (first) segment: "linear", "thin-pool", …
	Active     bool
	Suspended  bool
	Partial    bool     // a physical volume of it is missing
	Origin     string   // of which it is a snapshot, "" for none
	Ranges     []string // where it lies: "/dev/sdb:0-99", as commands take them
	ThinPool   ThinPool // of a thin pool
}

// ThinPool is what is special about a thin pool.
type ThinPool struct {
	DataLV, MetadataLV string
	ChunkSize          int64 // bytes
	Zero               bool
	Discards           string
	WhenFull           string // "error" or "queue"
	TransactionID      uint64
	Thins              int // volumes that lvm2 knows of
}

// PV is a physical volume.
type PV struct {
	Name, UUID string
	VG         string // "" for none
	Lost       bool   // it says that it is in a group, which has left no metadata: vgcreate or vgremove died
	Size       int64  // bytes, of the device
	Missing    bool
}

// DMUUID returns the UUID of the volume's dm device.
func (lv LV) DMUUID() string {
	return "LVM-" + strings.ReplaceAll(lv.VGUUID+lv.UUID, "-", "")
}

// VGPrefix begins the UUIDs of the dm devices of all volumes of a group.
func VGPrefix(vgUUID string) string { return "LVM-" + strings.ReplaceAll(vgUUID, "-", "") }

// HasTag tells whether a volume has a tag.
func (lv LV) HasTag(tag string) bool { return hasTag(lv.Tags, tag) }

// HasTag tells whether a volume group has a tag.
func (vg VG) HasTag(tag string) bool { return hasTag(vg.Tags, tag) }

func hasTag(tags []string, tag string) bool {
	for _, t := range tags {
		if t == tag {
			return true
		}
	}
	return false
}

// row is one object of a report: lvm2 quotes all values, newer versions not always.
type row map[string]value

// value is a string, or a number as text.
type value string

// UnmarshalJSON takes whatever is no list and no object.
func (v *value) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		var s string
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		*v = value(s)
		return nil
	}
	var list []string
	if json.Unmarshal(b, &list) == nil { // json_std has tags so; null is nothing
		*v = value(strings.Join(list, ","))
		return nil
	}
	var n json.Number
	if err := json.Unmarshal(b, &n); err != nil {
		return fmt.Errorf("a value that is no text and no number: %w", err)
	}
	*v = value(n)
	return nil
}

// parseReport returns the rows of one kind ("vg", "lv", "pv") of a report. A row without one of the fields is an error.
func parseReport(text []byte, kind string, fields []string) ([]row, error) {
	var all struct {
		Report []map[string][]row `json:"report"`
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&all); err != nil {
		return nil, fmt.Errorf("report of lvm2: %w", err)
	}
	if all.Report == nil {
		return nil, errors.New("report of lvm2: there is none in the output")
	}
	var rows []row
	for _, part := range all.Report {
		for _, r := range part[kind] {
			for _, f := range fields {
				if _, ok := r[f]; !ok {
					return nil, fmt.Errorf("report of lvm2: no field %q", f)
				}
			}
			rows = append(rows, r)
		}
	}
	return rows, nil
}

// number reads a field, of which "" and what lvm2 does not know (-1) are 0. The first bad one is kept in err.
func (r row) number(field string, err *error) int64 {
	text := string(r[field])
	if text == "" || text == "-1" || text == "unknown" {
		return 0
	}
	n, e := strconv.ParseInt(text, 10, 64)
	if (e != nil || n < 0) && *err == nil {
		*err = fmt.Errorf("report of lvm2: field %s is %q", field, text)
	}
	return max(n, 0)
}

func (r row) text(field string) string { return string(r[field]) }

func (r row) list(field string) []string {
	return strings.FieldsFunc(string(r[field]), func(c rune) bool { return c == ',' || c == ' ' })
}

func (r row) isSet(field string) bool { return r[field] == "1" }

var (
	vgFields = []string{"vg_name", "vg_uuid", "vg_extent_size", "vg_size", "vg_free", "vg_missing_pv_count", "lv_count", "vg_tags", "vg_exported"}
	lvFields = []string{
		"lv_name", "lv_uuid", "vg_name", "vg_uuid", "lv_size", "lv_tags", "segtype", "lv_kernel_minor", "lv_suspended", "lv_health_status",
		"origin", "seg_pe_ranges", "data_lv", "metadata_lv", "chunk_size", "zero", "discards", "lv_when_full", "transaction_id", "thin_count",
	}
	pvFields = []string{"pv_name", "pv_uuid", "vg_name", "dev_size", "pv_missing"}
)

func (r row) vg() (vg VG, err error) {
	vg = VG{
		Name: r.text("vg_name"), UUID: r.text("vg_uuid"), ExtentSize: r.number("vg_extent_size", &err), Size: r.number("vg_size", &err),
		Free: r.number("vg_free", &err), MissingPVs: int(r.number("vg_missing_pv_count", &err)), LVs: int(r.number("lv_count", &err)), Tags: r.list("vg_tags"),
		Exported: r.isSet("vg_exported"),
	}
	if err == nil && (vg.Name == "" || vg.UUID == "" || vg.ExtentSize == 0) {
		err = errors.New("report of lvm2: a volume group without name, UUID or extents")
	}
	return vg, err
}

func (r row) lv() (lv LV, err error) {
	lv = LV{
		Name: unbracket(r.text("lv_name")), UUID: r.text("lv_uuid"), VG: r.text("vg_name"), VGUUID: r.text("vg_uuid"),
		Size: r.number("lv_size", &err), Tags: r.list("lv_tags"), Type: r.text("segtype"),
		Active:    r["lv_kernel_minor"] != "" && r["lv_kernel_minor"] != "-1",
		Suspended: r.isSet("lv_suspended"), Partial: r.text("lv_health_status") == "partial", Origin: unbracket(r.text("origin")), Ranges: r.list("seg_pe_ranges"),
	}
	if lv.Type == "thin-pool" {
		lv.ThinPool = ThinPool{
			DataLV: unbracket(r.text("data_lv")), MetadataLV: unbracket(r.text("metadata_lv")), ChunkSize: r.number("chunk_size", &err),
			Zero: r.isSet("zero"), Discards: r.text("discards"), WhenFull: r.text("lv_when_full"),
			TransactionID: uint64(r.number("transaction_id", &err)), Thins: int(r.number("thin_count", &err)),
		}
	}
	if err == nil && (lv.Name == "" || lv.UUID == "") {
		err = errors.New("report of lvm2: a volume without name or UUID")
	}
	return lv, err
}

// unknownVG is what lvm2 calls a group that a physical volume is in, and of which it finds no metadata.
const unknownVG = "[unknown]"

func (r row) pv() (pv PV, err error) {
	pv = PV{Name: r.text("pv_name"), UUID: r.text("pv_uuid"), VG: r.text("vg_name"), Size: r.number("dev_size", &err), Missing: r.isSet("pv_missing")}
	if pv.VG == unknownVG {
		pv.VG, pv.Lost = "", true
	}
	return pv, err
}

// unbracket takes away what marks a hidden volume.
func unbracket(name string) string {
	return strings.TrimSuffix(strings.TrimPrefix(name, "["), "]")
}

// parseLVs puts the rows of a volume's segments together.
func parseLVs(rows []row) ([]LV, error) {
	var lvs []LV
	at := map[string]int{}
	for _, r := range rows {
		lv, err := r.lv()
		if err != nil {
			return nil, err
		}
		if i, ok := at[lv.VGUUID+lv.UUID]; ok {
			lvs[i].Ranges = append(lvs[i].Ranges, lv.Ranges...)
			continue
		}
		at[lv.VGUUID+lv.UUID] = len(lvs)
		lvs = append(lvs, lv)
	}
	return lvs, nil
}

// report asks for all objects that are selected. lvm2 fails where any volume group of the machine is not readable: then what was
// found counts, and that nothing was found does not.
func (c *Client) report(ctx context.Context, command, kind, selection string, fields []string, more ...string) ([]row, error) {
	args := []string{"--reportformat", "json", "--units", "b", "--nosuffix", "--binary", "-o", strings.Join(fields, ","), "-S", selection}
	if kind == "lv" {
		args = append(args, "-a")
	}
	out, failed := c.ask(ctx, command, append(args, more...)...)
	if ctx.Err() != nil {
		return nil, failed
	}
	rows, err := parseReport(out, kind, fields)
	if failed != nil && (err != nil || len(rows) == 0) {
		return nil, failed
	}
	return rows, err
}

// equals is a selection. No value that is asked for has a quote: names are of the grammar, UUIDs of lvm2.
func equals(field, v string) string { return field + "=\"" + strings.ReplaceAll(v, `"`, "") + "\"" }

// VGByName looks a volume group up. None is ErrNotFound; two of one name, which lvm2 cannot tell apart, are ErrDamaged.
func (c *Client) VGByName(ctx context.Context, name string) (VG, error) {
	if err := ValidNames(name, ""); err != nil {
		return VG{}, err
	}
	return c.oneVG(ctx, fmt.Sprintf("volume group %q", name), equals("vg_name", name))
}

// VGByUUID looks a volume group up, whatever its name is now. None is ErrNotFound.
func (c *Client) VGByUUID(ctx context.Context, uuid string) (VG, error) {
	return c.oneVG(ctx, "volume group "+uuid, equals("vg_uuid", uuid))
}

// VGByTag looks for the volume group with a tag. None is ErrNotFound.
func (c *Client) VGByTag(ctx context.Context, tag string) (VG, error) {
	return c.oneVG(ctx, "volume group with the tag "+tag, equals("vg_tags", tag))
}

// HostOf returns the system id of the host whose volume group it is, of one that lvm2 keeps from this machine. None is ErrNotFound.
func (c *Client) HostOf(ctx context.Context, name string) (string, error) {
	rows, err := c.report(ctx, "vgs", "vg", equals("vg_name", name), []string{"vg_systemid"}, "--foreign")
	if err != nil {
		return "", fmt.Errorf("volume group %q of another host: %w", name, err)
	}
	if len(rows) == 0 || rows[0].text("vg_systemid") == "" {
		return "", fmt.Errorf("volume group %q of another host: %w", name, errs.ErrNotFound)
	}
	return rows[0].text("vg_systemid"), nil
}

func (c *Client) oneVG(ctx context.Context, what, selection string) (VG, error) {
	rows, err := c.report(ctx, "vgs", "vg", selection, vgFields)
	if err != nil {
		return VG{}, fmt.Errorf("%s: %w", what, err)
	}
	switch len(rows) {
	case 0:
		return VG{}, fmt.Errorf("%s: %w", what, errs.ErrNotFound)
	case 1:
		return rows[0].vg()
	}
	return VG{}, errs.WithHint(fmt.Errorf("%s: there are %d: %w", what, len(rows), errs.ErrDamaged), "rename one (vgrename UUID NAME)")
}

// LVs returns all volumes of a group, the hidden ones too. None is no error.
func (c *Client) LVs(ctx context.Context, vgUUID string) ([]LV, error) {
	rows, err := c.report(ctx, "lvs", "lv", equals("vg_uuid", vgUUID), lvFields)
	if err != nil {
		return nil, fmt.Errorf("volumes of volume group %s: %w", vgUUID, err)
	}
	return parseLVs(rows)
}

// GroupWithLVs returns a volume group and all its volumes, the hidden ones too, in one look where it has any. None is ErrNotFound.
func (c *Client) GroupWithLVs(ctx context.Context, vgUUID string) (VG, []LV, error) {
	fields := append(slices.Clone(lvFields), vgFields[2:]...) // name and UUID are in both
	rows, err := c.report(ctx, "lvs", "lv", equals("vg_uuid", vgUUID), fields)
	if err == nil && len(rows) == 0 {
		vg, err := c.VGByUUID(ctx, vgUUID)
		return vg, nil, err
	}
	if err != nil {
		return VG{}, nil, fmt.Errorf("volume group %s: %w", vgUUID, err)
	}
	vg, err := rows[0].vg()
	if err != nil {
		return vg, nil, err
	}
	lvs, err := parseLVs(rows)
	return vg, lvs, err
}

// PVByUUID looks a physical volume up. None is ErrNotFound.
func (c *Client) PVByUUID(ctx context.Context, uuid string) (PV, error) {
	rows, err := c.report(ctx, "pvs", "pv", equals("pv_uuid", uuid), pvFields)
	if err != nil {
		return PV{}, fmt.Errorf("physical volume %s: %w", uuid, err)
	}
	if len(rows) == 0 {
		return PV{}, fmt.Errorf("physical volume %s: %w", uuid, errs.ErrNotFound)
	}
	return rows[0].pv()
}
