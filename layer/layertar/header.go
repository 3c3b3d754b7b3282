package layertar

import (
	"archive/tar"
	"math"
	"strings"
)

// normalize checks what a header says and turns it into what the archive library understands. It
// reports whether the entry is a sparse file.
func normalize(hdr *tar.Header) (sparse bool, err error) {
	if len(hdr.Name) > maxName || len(hdr.Linkname) > maxName {
		return false, invalid("name of %d bytes is too long", max(len(hdr.Name), len(hdr.Linkname)))
	}
	// The largest number means "leave it" to chown.
	if hdr.Uid < 0 || hdr.Gid < 0 || hdr.Uid >= math.MaxUint32 || hdr.Gid >= math.MaxUint32 {
		return false, invalid("owner %d:%d is out of range", hdr.Uid, hdr.Gid)
	}
	for key := range hdr.PAXRecords {
		if name, ok := strings.CutPrefix(key, paxXattr); ok && !layerXattr(name) {
			delete(hdr.PAXRecords, key)
		}
	}
	sparse = isSparse(hdr)
	switch hdr.Typeflag {
	case tar.TypeGNUSparse:
		hdr.Typeflag, sparse = tar.TypeReg, true
	case '\x00', tar.TypeCont:
		hdr.Typeflag = tar.TypeReg
	case tar.TypeReg, tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo, tar.TypeXGlobalHeader:
	default:
		return false, invalid("entries of type %q have no place in a layer", hdr.Typeflag)
	}
	return sparse && hdr.Typeflag == tar.TypeReg, nil
}

// isSparse tells whether the PAX records are those of a sparse file, as the archive library tells it.
func isSparse(hdr *tar.Header) bool {
	switch r := hdr.PAXRecords; r[paxSparseMajor] + "." + r[paxSparseMinor] {
	case "0.0", "0.1", "1.0":
		return true
	case ".":
		return r[paxSparseMap] != ""
	}
	return false
}

// belongsToAUFS reports whether a name is one of AUFS's own files, which old versions of docker left
// in layers and which mean nothing elsewhere.
func belongsToAUFS(name string) bool {
	i := strings.Index(name, "/"+whiteoutMeta)
	return i >= 0 && name[i+1:] != whiteoutOpaque
}
