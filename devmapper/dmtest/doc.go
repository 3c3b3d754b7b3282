// Package dmtest stands in for the kernel's device-mapper in tests, so that
// code on top of package devmapper can be tested without privileges.
//
// [New] makes a client out of a function, for a test that wants to say what
// the kernel answers. [NewKernel] is a device-mapper in memory with the
// targets linear, zero, error, thin-pool and thin: devices, tables, suspension,
// opens, deferred removal, events, thin ids and snapshots, out of space and
// failing commits behave as Linux 6.1's. No data is stored in it; there are no
// block devices.
//
// Both speak the kernel's bytes: the client's encoding and decoding is part of
// every test. What bytes are right, this package knows from the kernel's
// header and not from package devmapper.
package dmtest
