package main

import (
	"errors"
	"path/filepath"
	"strings"
)

// distro is a Debian as people build on it: a layer for each list of packages, the first of which is the base, and
// the clean-up that ends many a Dockerfile.
func distro(img *image, lists []string) error {
	if len(lists) < 2 {
		return errors.New("distro: give the lists of the base's packages and of others")
	}
	for i, list := range lists {
		fill := packages(list)
		if i == 0 {
			fill = func(l *layer) error { return minbase(l, list) }
		}
		if err := img.layer(strings.TrimSuffix(filepath.Base(list), ".files"), fill); err != nil {
			return err
		}
	}
	return img.layer("rm -rf /usr/share/doc/* /usr/share/man", func(l *layer) error {
		return all(
			func() error { return l.dir("usr/share/doc") },
			func() error { return l.text("usr/share/doc/.wh..wh..opq", "") },
			func() error { return l.text("usr/share/.wh.man", "") },
		)
	})
}
