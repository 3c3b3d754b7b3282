//go:build !linux

package thinpool

import "syscall"

// errNoData is Linux's number; other systems may lack it.
const errNoData = syscall.Errno(61)
