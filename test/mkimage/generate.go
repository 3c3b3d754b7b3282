package main

import (
	"archive/tar"
	"math/rand/v2"
	"sort"
)

// skeleton adds the root, the links of a merged /usr and some directories.
func skeleton(l *layer, dirs ...string) error {
	if err := l.add(tar.Header{Name: "./", Typeflag: tar.TypeDir}, nil); err != nil {
		return err
	}
	for _, name := range dirs {
		if err := l.dir(name); err != nil {
			return err
		}
	}
	for _, d := range []tar.Header{{Name: "tmp/", Mode: 0o1777}, {Name: "root/", Mode: 0o700}} {
		d.Typeflag = tar.TypeDir
		if err := l.add(d, nil); err != nil {
			return err
		}
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := l.symlink(name, "usr/"+name); err != nil {
			return err
		}
	}
	return nil
}

// random returns bytes that do not compress, the same ones for each seed.
func random(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	return data
}

// all runs steps until one fails.
func all(steps ...func() error) error {
	for _, s := range steps {
		if err := s(); err != nil {
			return err
		}
	}
	return nil
}

// ordered is a map that is ranged over in the order of its keys.
type ordered map[string]string

func (o ordered) each(fn func(key, value string) error) error {
	keys := make([]string, 0, len(o))
	for k := range o {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		if err := fn(k, o[k]); err != nil {
			return err
		}
	}
	return nil
}
