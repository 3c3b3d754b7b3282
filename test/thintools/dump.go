package thintools

import (
	"bufio"
	"context"
	"fmt"
	"io"

	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// Dump writes metadata as thin_dump 0.9 does.
func Dump(ctx context.Context, m *thinmeta.Metadata, to io.Writer) error {
	w := bufio.NewWriter(to)
	s := m.Superblock()
	fmt.Fprintf(w, "<superblock uuid=\"\" time=\"%d\" transaction=\"%d\" flags=\"%d\" version=\"%d\" data_block_size=\"%d\" nr_data_blocks=\"%d\">\n",
		s.Time, s.TransactionID, s.Flags, s.Version, s.DataBlockSize, s.DataSpace.Blocks)
	for d, err := range m.Devices(ctx) {
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "  <device dev_id=\"%d\" mapped_blocks=\"%d\" transaction=\"%d\" creation_time=\"%d\" snap_time=\"%d\">\n",
			d.ID, d.MappedBlocks, d.TransactionID, d.CreationTime, d.SnapshotTime)
		for r, err := range m.Mappings(ctx, d.ID) {
			if err != nil {
				return err
			}
			dumpMapping(w, r)
		}
		fmt.Fprintf(w, "  </device>\n")
	}
	fmt.Fprintf(w, "</superblock>\n")
	return w.Flush()
}

func dumpMapping(w io.Writer, r thinmeta.Mapping) {
	if r.Length == 1 {
		fmt.Fprintf(w, "    <single_mapping origin_block=\"%d\" data_block=\"%d\" time=\"%d\"/>\n", r.Begin, r.Data, r.Time)
		return
	}
	fmt.Fprintf(w, "    <range_mapping origin_begin=\"%d\" data_begin=\"%d\" length=\"%d\" time=\"%d\"/>\n", r.Begin, r.Data, r.Length, r.Time)
}

// sameLines compares two texts line by line, in memory for a line of each.
func sameLines(a, b io.Reader) error {
	x, y := bufio.NewScanner(a), bufio.NewScanner(b)
	for n := 1; ; n++ {
		more := x.Scan()
		if more != y.Scan() || x.Text() != y.Text() {
			return fmt.Errorf("line %d: %q, and %q", n, x.Text(), y.Text())
		}
		if !more {
			if err := x.Err(); err != nil {
				return err
			}
			return y.Err()
		}
	}
}
