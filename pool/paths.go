package pool

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
)

var nameGrammar = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// ValidateName checks a name of a pool, node or volume against the grammar; kind is for the message.
// A name outside it is ErrInvalid.
func ValidateName(kind, name string) error {
	if nameGrammar.MatchString(name) {
		return nil
	}
	return errs.WithHint(fmt.Errorf("%s name %q: %w", kind, name, errs.ErrInvalid),
		"a name starts with a letter or digit and has up to 128 letters, digits, '_', '.' and '-'")
}

// imageName is what layers from images are called, by what they hold: whoever has the image finds them by it.
var imageName = regexp.MustCompile(`^sha256-[0-9a-f]{64}$`)

// AttrChainID is where a layer that came with an image says what it holds.
const AttrChainID = "image.chainID"

// ValidateNodeName is ValidateName of a node with these attributes: a name by which layers from images are found is for the one that it means.
func ValidateNodeName(kind, name string, attrs map[string]string) error {
	if err := ValidateName(kind, name); err != nil {
		return err
	}
	if imageName.MatchString(name) && !NamedByImage(name, attrs) {
		return errs.WithHint(fmt.Errorf("%s name %q: it is that of a layer from an image: %w", kind, name, errs.ErrInvalid),
			"dmlayer image load makes these; take another name")
	}
	return nil
}

// NamedByImage tells whether a node has its name from the image that it came with.
func NamedByImage(name string, attrs map[string]string) bool {
	chain, ok := attrs[AttrChainID]
	return ok && strings.Replace(chain, ":", "-", 1) == name
}

// absolute returns the directories as the kernel's mount table names them, whatever the working
// directory and whatever links lead there.
func (d Dirs) absolute() (Dirs, error) {
	for _, dir := range []*string{&d.Root, &d.Run, &d.Backups} {
		if *dir == "" {
			continue
		}
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return d, fmt.Errorf("directory %s: %w", *dir, err)
		}
		if real, err := filepath.EvalSymlinks(abs); err == nil {
			abs = real
		}
		*dir = abs
	}
	return d, nil
}

// files are the places of one pool.
type files struct {
	dirs  Dirs
	name  string
	place string // of a pool that an import finds outside a root; "" is below the root
}

func (f files) poolsDir() string  { return filepath.Join(f.dirs.Root, "pools") }
func (f files) dir() string       { return cmp.Or(f.place, filepath.Join(f.poolsDir(), f.name)) }
func (f files) store() string     { return filepath.Join(f.dir(), "records.db") }
func (f files) oldStore() string  { return f.store() + ".old" } // which an import replaced
func (f files) data() string      { return filepath.Join(f.dir(), "data") }
func (f files) metadata() string  { return filepath.Join(f.dir(), "metadata") }
func (f files) blobs() string     { return filepath.Join(f.dir(), "blobs") }
func (f files) deviceDir() string { return filepath.Join(f.dirs.Run, "dev", f.name) }
func (f files) backups() string   { return cmp.Or(f.dirs.Backups, filepath.Join(f.dirs.Root, "backups")) }
func (f files) mountDir() string  { return filepath.Join(f.dirs.Run, "mnt", f.name) }

// lock is the pool's lock file. It belongs to the root directory, whatever path leads there, because a
// pool of the same name under another root may share the run directory.
func (f files) lock() (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(f.dirs.Root, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			err = errs.ErrNotFound
		}
		return "", fmt.Errorf("root directory %s: %w", f.dirs.Root, err)
	}
	return filepath.Join(f.dirs.Run, "lock", fmt.Sprintf("%s-%x-%x", f.name, st.Dev, st.Ino)), nil
}

// state is the folder of what must not outlive the machine's uptime. It belongs to the pool's UUID,
// because a pool of the same name under another root may share the run directory.
func (f files) state(uuid string) string { return filepath.Join(f.dirs.Run, "state", uuid) }

// named returns the paths in a folder whose names fit, in order. A folder's own path may hold anything, and is no pattern.
func named(dir string, fits func(name string) bool) (paths []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if fits(e.Name()) {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths
}

// The suffixes of a pool's own devices; a thin device's is its id.
const (
	suffixPool     = "pool"
	suffixMetadata = "metadata"
	suffixData     = "data" // only where data does not begin with its device
)

// labelID is the thin device that says which pool this is.
const labelID = 0

// dmPrefix begins the dm UUIDs of all devices of dmlayer.
const dmPrefix = "DMLAYER-"

func uuidPrefix(pool string) string { return dmPrefix + pool + "-" }

func deviceUUID(pool, suffix string) devmapper.UUID {
	return devmapper.UUID(uuidPrefix(pool) + suffix)
}

// deviceName is short because people read it; the UUID is what identifies.
func deviceName(pool, suffix string) devmapper.Name {
	return devmapper.Name("dmlayer-" + pool[:12] + "-" + suffix)
}

func idSuffix(id metadata.ThinID) string { return strconv.FormatUint(uint64(id), 10) }

// makeDirs makes the directories that hold a pool, private to root.
func makeDirs(dirs ...string) error {
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	return nil
}
