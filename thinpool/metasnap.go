package thinpool

import "errors"

// WithMetadataSnap takes a metadata snapshot, calls f with the block of its
// superblock, and releases it, whatever becomes of f. Meanwhile the pool works,
// and keeps all that the snapshot refers to, so f should be quick.
//
// A metadata snapshot that exists already is taken for the remains of a process
// that died, and is released: those who call this for a pool must exclude each
// other.
func (p *Pool) WithMetadataSnap(f func(root uint64) error) (err error) {
	root, err := p.ReserveMetadataSnap()
	if errors.Is(err, ErrBusy) {
		if err = p.ReleaseMetadataSnap(); err == nil {
			root, err = p.ReserveMetadataSnap()
		}
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.ReleaseMetadataSnap()) }()
	return f(root)
}
