package fsutil

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// magic is a signature that is a fixed string at a fixed place.
type magic struct {
	name  string
	off   int64
	bytes string
}

// le32 and be32 write a number as it lies on the disk.
func le32(n uint32) string { return string(binary.LittleEndian.AppendUint32(nil, n)) }
func be32(n uint32) string { return string(binary.BigEndian.AppendUint32(nil, n)) }
func le64(n uint64) string { return string(binary.LittleEndian.AppendUint64(nil, n)) }

// magics are long enough that they do not turn up by chance. From the headers of the kernel
// (include/uapi/linux/magic.h, drivers/md, fs) and the format documents of the others.
var magics = []magic{
	{"dmlayer", 0, "dmlayer disk "},
	{"xfs-log", 0, be32(0xfeedbabe)},
	{"btrfs", 0x10040, "_BHRfS_M"},
	{"luks", 0, "LUKS\xba\xbe"},
	{"luks", 0x4000, "SKUL\xba\xbe"},
	{"luks", 0x8000, "SKUL\xba\xbe"},
	{"luks", 0x10000, "SKUL\xba\xbe"},
	{"luks", 0x20000, "SKUL\xba\xbe"},
	{"luks", 0x40000, "SKUL\xba\xbe"},
	{"luks", 0x80000, "SKUL\xba\xbe"},
	{"luks", 0x100000, "SKUL\xba\xbe"},
	{"luks", 0x200000, "SKUL\xba\xbe"},
	{"luks", 0x400000, "SKUL\xba\xbe"},
	{"thin-metadata", 32, le64(27022010)},
	{"cache-metadata", 32, le64(0o6142003)},
	{"era-metadata", 32, le64(2126579579)},
	{"dm-snapshot", 0, "SnAp"},
	{"dm-integrity", 0, "integrt\x00"},
	{"dm-verity", 0, "verity\x00\x00"},
	{"dm-writecache", 0, le32(0x23489321)},
	{"bcache", 4096 + 24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"},
	{"bcachefs", 4096 + 24, "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"},
	{"vdo", 0, "dmvdo001"},
	{"stratis", 512 + 4, "!Stra0tis\x86\xff\x02^Arh"},
	{"stratis", 9*512 + 4, "!Stra0tis\x86\xff\x02^Arh"},
	{"bluestore", 0, "bluestore block device"},
	{"iso9660", 0x8001, "CD001"},
	{"udf", 0x8001, "BEA01"},
	{"udf", 0x8001, "NSR02"},
	{"udf", 0x8001, "NSR03"},
	{"f2fs", 1024, le32(0xf2f52010)},
	{"erofs", 1024, le32(0xe0f5e1e2)},
	{"squashfs", 0, "hsqs"},
	{"squashfs", 0, "sqsh"},
	{"cramfs", 0, le32(0x28cd3d45)},
	{"cramfs", 0, be32(0x28cd3d45)},
	{"romfs", 0, "-rom1fs-"},
	{"reiserfs", 0x10034, "ReIsEr"},
	{"reiserfs", 0x2034, "ReIsEr"},
	{"reiser4", 0x10000, "ReIsEr4"},
	{"jfs", 0x8000, "JFS1"},
	{"gfs2", 0x10000, be32(0x01161970)},
	{"ocfs2", 1024, "OCFSV2"},
	{"ocfs2", 2048, "OCFSV2"},
	{"ocfs2", 4096, "OCFSV2"},
	{"apfs", 32, "NXSB"},
	{"ufs", 8192 + 1372, le32(0x00011954)},
	{"ufs", 8192 + 1372, be32(0x00011954)},
	{"ufs2", 65536 + 1372, le32(0x19540119)},
	{"ufs2", 65536 + 1372, be32(0x19540119)},
	{"vmfs", 0x100000, le32(0xc001d00d)},
	{"vmfs", 0x200000, le32(0x2fabf15e)},
	{"qcow2", 0, "QFI\xfb"},
	{"ntfs", 3, "NTFS    "},
	{"exfat", 3, "EXFAT   "},
	{"refs", 3, "ReFS\x00\x00\x00\x00"},
	{"bitlocker", 3, "-FVE-FS-"},
	{"bsd", 0, le32(0x82564557)},
	{"bsd", 64, le32(0x82564557)},
	{"bsd", 512, le32(0x82564557)},
	{"mac", 512, "PM\x00\x00"},
}

func (p *prober) magics() {
	for _, m := range magics {
		if bytes.Equal(p.at(m.off, len(m.bytes)), []byte(m.bytes)) {
			p.add(Signature{Type: m.name, Offset: m.off})
		}
	}
}

// superblocks looks for file systems whose magic is too short to stand alone.
func (p *prober) superblocks() {
	if b := p.at(0, 120); b != nil && string(b[:4]) == "XFSB" {
		p.add(Signature{Type: "xfs", UUID: formatUUID(b[32:48]), Label: cString(b[108:120])})
	}
	if b := p.at(1024, 4); b != nil && (string(b[:2]) == "H+" && b[3] == 4 || string(b[:2]) == "HX" && b[3] == 5) {
		p.add(Signature{Type: "hfsplus", Offset: 1024})
	}
	if b := p.at(1024+6, 2); b != nil && string(b) == "\x34\x34" {
		p.add(Signature{Type: "nilfs2", Offset: 1024 + 6})
	}
	if b := p.at(1024, 26); b != nil {
		switch v := binary.LittleEndian.Uint16(b[16:]); {
		case v == 0x137f, v == 0x138f, v == 0x2468, v == 0x2478:
			// The zone size (log2) is never large, and a file system has inodes and zones.
			if binary.LittleEndian.Uint16(b[10:]) < 8 && binary.LittleEndian.Uint16(b) != 0 {
				p.add(Signature{Type: "minix", Offset: 1024 + 16})
			}
		}
	}
}

// ext tells ext2, ext3, ext4 and their external journals apart as libblkid's users expect.
func (p *prober) ext() {
	const off = 1024
	b := p.at(off, 0x88)
	if b == nil || binary.LittleEndian.Uint16(b[0x38:]) != ext4Magic {
		return
	}
	compat, incompat, roCompat := binary.LittleEndian.Uint32(b[0x5c:]), binary.LittleEndian.Uint32(b[0x60:]), binary.LittleEndian.Uint32(b[0x64:])
	const ext3Incompat, ext3ROCompat = 0x2 | 0x4 | 0x10, 0x1 | 0x2 | 0x4
	name := "ext2"
	switch {
	case incompat&ext4IncompatJournalDev != 0:
		name = "jbd"
	case incompat&^uint32(ext3Incompat) != 0, roCompat&^uint32(ext3ROCompat) != 0:
		name = "ext4"
	case compat&ext4CompatJournal != 0:
		name = "ext3"
	}
	p.add(Signature{Type: name, Offset: off + 0x38, UUID: formatUUID(b[0x68:0x78]), Label: cString(b[0x78:0x88])})
}

// lvm looks for the label of a physical volume, which may lie in any of the first four sectors.
func (p *prober) lvm() {
	for sector := int64(0); sector < 4; sector++ {
		b := p.at(sector*512, 64)
		if b == nil || string(b[:8]) != "LABELONE" {
			continue
		}
		name := "lvm"
		if string(b[24:32]) == "LVM2 001" {
			name = "lvm2"
		}
		p.add(Signature{Type: name, Offset: sector * 512, UUID: cString(b[32:64])})
	}
	if b := p.at(0, 4); b != nil && string(b) == "HM\x01\x00" {
		p.add(Signature{Type: "lvm1"})
	}
}

// gpt looks for the primary and the backup header, for both sector sizes.
func (p *prober) gpt() {
	for _, sector := range []int64{512, 4096} {
		for _, off := range []int64{sector, p.size/sector*sector - sector} {
			if b := p.at(off, 72); b != nil && string(b[:8]) == "EFI PART" {
				p.add(Signature{Type: "gpt", Offset: off, UUID: guid(b[56:72])})
			}
		}
	}
}

// guid prints a GUID, whose first three parts are little-endian.
func guid(b []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}

// sun looks for a SPARC disk label, whose words have the sum 0.
func (p *prober) sun() {
	b := p.at(0, 512)
	if b == nil || string(b[508:510]) != "\xda\xbe" {
		return
	}
	var sum uint16
	for i := 0; i < len(b); i += 2 {
		sum ^= binary.BigEndian.Uint16(b[i:])
	}
	if sum == 0 {
		p.add(Signature{Type: "sun", Offset: 508})
	}
}

// bootSector looks at what ends in 55 aa: a FAT, a partition table or a boot loader.
func (p *prober) bootSector() {
	b := p.at(0, 512)
	if b == nil {
		return
	}
	fat := ""
	switch {
	case string(b[82:87]) == "FAT32":
		fat = cString(bytes.TrimRight(b[71:82], " "))
	case string(b[54:57]) == "FAT":
		fat = cString(bytes.TrimRight(b[43:54], " "))
	default:
		if b[510] == 0x55 && b[511] == 0xaa && !p.has("ntfs", "exfat", "refs", "bitlocker") {
			p.add(Signature{Type: "dos", Offset: 510})
		}
		return
	}
	p.add(Signature{Type: "vfat", Offset: 54, Label: fat})
}

func (p *prober) has(types ...string) bool {
	for _, s := range p.found {
		for _, t := range types {
			if s.Type == t {
				return true
			}
		}
	}
	return false
}

// swap looks for the ten bytes at the end of the first page, for every page size, and for a hibernated system.
func (p *prober) swap() {
	for page := int64(4096); page <= 65536; page *= 2 {
		b := p.at(page-10, 10)
		if b == nil {
			return
		}
		switch string(b) {
		case "SWAPSPACE2", "SWAP-SPACE":
			s := Signature{Type: "swap", Offset: page - 10}
			if head := p.at(1024, 44); head != nil {
				s.UUID, s.Label = formatUUID(head[12:28]), cString(head[28:44])
			}
			p.add(s)
		case "S1SUSPEND\x00", "S2SUSPEND\x00", "ULSUSPEND\x00", "LINHIB0001", "\xed\xc3\x02\xe9\x98\x56\xe5\x0c\x00\x00":
			p.add(Signature{Type: "hibernation", Offset: page - 10})
		}
	}
}

// md looks for the superblock of a Linux software RAID member in its four places.
func (p *prober) md() {
	le, be := "\xfc\x4e\x2b\xa9", "\xa9\x2b\x4e\xfc"
	v0 := p.size&^0xffff - 65536
	v1 := (p.size - 8192) &^ 4095
	for _, off := range []int64{0, 4096, v1, v0} {
		b := p.at(off, 64)
		if b == nil || string(b[:4]) != le && (off != v0 || string(b[:4]) != be) {
			continue
		}
		s := Signature{Type: "md-raid", Offset: off}
		if off != v0 {
			s.UUID, s.Label = formatUUID(b[16:32]), cString(b[32:64])
		}
		p.add(s)
	}
}

// zfs looks for an uberblock in the ring of each of the four labels, two at each end.
func (p *prober) zfs() {
	const label, ring = 256 << 10, 128 << 10
	end := p.size / label * label
	seen := map[int64]bool{}
	for _, start := range []int64{0, label, end - 2*label, end - label} {
		if seen[start] {
			continue // a small device
		}
		seen[start] = true
		b := p.at(start+ring, label-ring)
		for off := 0; off+8 <= len(b); off += 1024 {
			magic := binary.LittleEndian.Uint64(b[off:])
			if magic == 0x00bab10c || magic == 0x0cb1ba0000000000 {
				p.add(Signature{Type: "zfs", Offset: start + ring + int64(off)})
				break
			}
		}
	}
}

// tails looks for what RAID firmwares and DRBD leave at the end of a disk.
func (p *prober) tails() {
	for _, t := range []magic{
		{"isw-raid", 1024, "Intel Raid ISM Cfg Sig. "},
		{"ddf-raid", 512, "\xde\x11\xde\x11"},
		{"ddf-raid", 512, "\x11\xde\x11\xde"},
		{"nvidia-raid", 1024, "NVIDIA  "},
		{"lsi-raid", 512, "$XIDE$"},
		{"drbd", 4096 - 60, "\x83\x74\x02\x6b"},
		{"drbd", 4096 - 60, "\x83\x74\x02\x6c"},
		{"drbd", 4096 - 60, "\x83\x74\x02\x6d"},
	} {
		off := p.size&^511 - t.off
		if t.name == "drbd" {
			off = p.size&^4095 - t.off
		}
		if bytes.Equal(p.at(off, len(t.bytes)), []byte(t.bytes)) {
			p.add(Signature{Type: t.name, Offset: off})
		}
	}
}
