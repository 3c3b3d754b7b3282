package layer

import (
	"context"
	"io"

	"github.com/dmlayer/dmlayer/pool"
)

type Store struct{}
type LayerWriter struct{}
type DocTx struct{}

func Open(ctx context.Context, c Config) (*Store, error) { return nil, ErrUnsupported }
func (s *Store) Close() error                            { return nil }
func (s *Store) CreateSnapshot(ctx context.Context, name string, o SnapshotOptions) (Node, error) {
	return Node{}, nil
}
func (s *Store) CreateLayer(ctx context.Context, name string, o LayerOptions, fill func(ctx context.Context, w *LayerWriter) error) (Node, error) {
	return Node{}, nil
}
func (w *LayerWriter) Root() string                             { return "" }
func (w *LayerWriter) Blob(kind string) (io.WriteCloser, error) { return nil, nil }
func (s *Store) OpenBlob(ctx context.Context, name, kind string) (io.ReadCloser, error) {
	return nil, nil
}
func (s *Store) Get(ctx context.Context, name string) (Node, error)     { return Node{}, nil }
func (s *Store) Inspect(ctx context.Context, name string) (Info, error) { return Info{}, nil }
func (s *Store) List(ctx context.Context) ([]Info, error)               { return nil, nil }
func (s *Store) Remove(ctx context.Context, name string) error          { return nil }
func (s *Store) Prune(ctx context.Context, dryRun bool) ([]string, error) {
	return nil, nil
}
func (s *Store) Mount(ctx context.Context, name, dir string, o MountOptions) (Mounted, error) {
	return Mounted{}, nil
}
func (s *Store) Unmount(ctx context.Context, nameOrDir string) error { return nil }
func (s *Store) View(ctx context.Context, names []string, fn func(ctx context.Context, roots []string) error) error {
	return nil
}
func (s *Store) Attach(ctx context.Context, name string, readOnly bool) (string, error) {
	return "", nil
}
func (s *Store) Detach(ctx context.Context, name string) error { return nil }
func (s *Store) Commit(ctx context.Context, snapshot, layer string, o CommitOptions) (Node, error) {
	return Node{}, nil
}
func (s *Store) Reset(ctx context.Context, name, to string) error          { return nil }
func (s *Store) Resize(ctx context.Context, name string, size int64) error { return nil }
func (s *Store) Rename(ctx context.Context, old, new string) error         { return nil }
func (s *Store) Label(ctx context.Context, name string, set map[string]string, remove []string) error {
	return nil
}
func (s *Store) Fsck(ctx context.Context, name string, repair bool) (FsckResult, error) {
	return FsckResult{}, nil
}
func (s *Store) Trim(ctx context.Context, name string) (uint64, error) { return 0, nil }
func (s *Store) PoolStatus(ctx context.Context) (pool.Status, error)   { return pool.Status{}, nil }
func (s *Store) Documents(ctx context.Context, kind string) ([]Document, error) {
	return nil, nil
}
func (s *Store) Document(ctx context.Context, kind, key string) (Document, error) {
	return Document{}, nil
}
func (s *Store) UpdateDocuments(ctx context.Context, fn func(tx *DocTx) error) error { return nil }
func (tx *DocTx) Get(kind, key string) (Document, error)                             { return Document{}, nil }
func (tx *DocTx) List(kind string) ([]Document, error)                               { return nil, nil }
func (tx *DocTx) Put(d Document) error                                               { return nil }
func (tx *DocTx) Delete(kind, key string) error                                      { return nil }
