package main

// minbase fills the lowest layer of a Debian: what no package has, and the packages of a list.
func minbase(l *layer, list string) error {
	if err := skeleton(l, "etc", "usr", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64"); err != nil {
		return err
	}
	if err := accounts.each(l.text); err != nil {
		return err
	}
	return packages(list)(l)
}

// packages returns what fills a layer with the packages of a list.
func packages(list string) func(*layer) error {
	return func(l *layer) error {
		files, err := readList(list)
		if err != nil {
			return err
		}
		for _, f := range files {
			if err := l.deb(f); err != nil {
				return err
			}
		}
		return nil
	}
}
