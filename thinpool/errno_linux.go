package thinpool

import "syscall"

// errNoData is what the kernel says for an unknown thin id.
const errNoData = syscall.ENODATA
