// Mkimage builds the container images that the tests load, from Debian packages. It needs no root:
// packages are read as tar streams, and layers are written with the owners that they say.
//
//	mkimage small --out DIR BUSYBOX.deb
//	mkimage large --out DIR --base LIST --nginx LIST --python LIST
//	mkimage distro --out DIR LIST…
//	mkimage inputs --out DIR BUSYBOX.deb
//
// Inputs are tars for programs that build images.
// A LIST is a file with the path of a package on each line. See scripts/images, which calls it.
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"
)

func main() {
	out := pflag.String("out", "", "folder for the images")
	base := pflag.String("base", "", "list of the packages of the base layer")
	nginx := pflag.String("nginx", "", "list of the packages that nginx adds")
	python := pflag.String("python", "", "list of the packages that python adds")
	pflag.Parse()
	if err := run(*out, *base, *nginx, *python, pflag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func run(out, base, nginx, python string, args []string) error {
	if out == "" || len(args) == 0 {
		return fmt.Errorf("see the comment at the top of test/mkimage/main.go for usage")
	}
	if args[0] == "inputs" {
		return inputs(out, args[1:])
	}
	img, err := newImage(out, args[0])
	if err != nil {
		return err
	}
	defer img.cleanUp()
	switch args[0] {
	case "small":
		err = small(img, args[1:])
	case "large":
		err = large(img, base, nginx, python)
	case "distro":
		err = distro(img, args[1:])
	default:
		err = fmt.Errorf("no image %q", args[0])
	}
	if err != nil {
		return err
	}
	return img.write()
}

func readList(file string) ([]string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(data)), nil
}
