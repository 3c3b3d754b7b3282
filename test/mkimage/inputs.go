package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// inputs are tars that other programs make images of: a root with busybox, a tree with every kind of entry.
func inputs(out string, debs []string) error {
	if len(debs) != 1 {
		return errors.New("inputs: give the package of busybox-static")
	}
	for name, fill := range map[string]func(*layer) error{
		"base.tar":  func(l *layer) error { return smallRoot(l, debs[0]) },
		"kinds.tar": func(l *layer) error { return everyKind(l, 1<<20, 1<<20+7) },
	} {
		l, err := newLayer(out, name)
		if err != nil {
			return err
		}
		if err := errors.Join(fill(l), l.tw.Close(), l.file.Close()); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := os.Rename(l.file.Name(), filepath.Join(out, name)); err != nil {
			return err
		}
	}
	return nil
}
