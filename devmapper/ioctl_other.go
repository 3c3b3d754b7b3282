//go:build !linux

package devmapper

import "runtime"

const controlPath = "/dev/mapper/control"

func openControl() (Transport, error) {
	return nil, &Error{Op: opOpen, Device: controlPath, Err: ErrUnsupported, Hint: runtime.GOOS + " has no device-mapper"}
}
