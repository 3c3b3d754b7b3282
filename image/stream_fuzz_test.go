package image

import (
	"bytes"
	"io"
	"slices"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// FuzzStream reads any archive from a stream, which must say the same as a file does.
func FuzzStream(f *testing.F) {
	f.Add(tarOf(file{name: "manifest.json", body: `[{"Config":"c","Layers":["l"]}]`}, file{name: "c", body: `{"rootfs":{"type":"layers","diff_ids":[]}}`}))
	f.Add(tarOf(file{name: "index.json", body: "{}"}, file{name: "manifest.json", kind: '2', link: "index.json"}))
	f.Add(tarOf(file{name: "oci-layout", body: "{}"}, file{name: "blobs/", kind: '5'}, file{name: "index.json", body: `{"schemaVersion":2,"manifests":[]}`}))
	f.Add(tarOf(inOrder(plain, testImage{refs: []string{"a"}})...))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		if kind, _ := detect(data[:min(len(data), 6)]); kind != plain {
			return // a file that is packed is a stream too
		}
		var want []*archived
		file, wantErr := indexTar(t.Context(), bytes.NewReader(data), int64(len(data)), nil)
		if wantErr == nil {
			want, wantErr = readArchive(t.Context(), file, "linux/amd64")
		}

		tree, err := openStream(t.Context(), io.NopCloser(bytes.NewReader(data)), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer tree.Close()
		stream := tree.(*streamTree)
		if early, err := foresee(t.Context(), stream, "linux/amd64"); err == nil {
			checkArchived(t, early, err)
		}
		var got []*archived
		err = stream.whole(t.Context())
		if err == nil {
			got, err = readArchive(t.Context(), stream, "linux/amd64")
		}
		if errs.Class(err) != errs.Class(wantErr) && errs.Class(err) != ErrUnsupported {
			t.Fatalf("stream: %v; file: %v", err, wantErr)
		}
		if err == nil && !slices.EqualFunc(got, want, func(a, b *archived) bool { return a.id == b.id && slices.Equal(a.refs, b.refs) }) {
			t.Fatalf("stream: %v; file: %v", got, want)
		}
	})
}
