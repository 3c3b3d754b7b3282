// Package space holds the proofs of what happens before, when and after a pool is full: docs/space.md tells which complaint about other
// programs each answers.
package space
