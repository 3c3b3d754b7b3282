//go:build !linux

package thinpool_test

import "testing"

func newKernelLab(t *testing.T) lab {
	t.Skip("no device-mapper")
	return lab{}
}
