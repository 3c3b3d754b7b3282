package layertar_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer/layertar"
)

// FuzzRoundTrip applies and records what the fuzzer makes of archives, and what it puts together of parts. Where both
// succeed and nothing was replaced, the archive must come out again, byte for byte.
func FuzzRoundTrip(f *testing.F) {
	testenv.Need(f, testenv.Root)
	for _, data := range seeds(f) {
		f.Add(false, data)
	}
	for i := range byte(250) {
		f.Add(true, bytes.Repeat([]byte{i, i * 7, i * 13, i * 3, i * 5, i * 11}, 6))
	}
	disk := fuzzDisk(f)
	f.Fuzz(func(t *testing.T, parts bool, data []byte) {
		base, err := os.MkdirTemp(disk, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(base)
		root := filepath.Join(base, "root")
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		if parts {
			data = data[:min(len(data), 400)]
			half := len(data) / 8 * 4
			_, _ = tryApply(t, root, fuzzLayer(t, data[:half], base)) // a lower layer
			data = fuzzLayer(t, data[half:], base)
		}
		ctx, cancel := context.WithTimeout(context.Background(), testenv.Scale(10*time.Second))
		defer cancel()
		var record, again bytes.Buffer
		rec := layertar.NewRecorder(bytes.NewReader(data), &record)
		stats, err := layertar.Apply(ctx, root, rec, layertar.ApplyOptions{})
		if cerr := rec.Close(); err == nil {
			err = cerr
		}
		if err != nil || stats.Rewritten {
			return
		}
		if err := layertar.Rebuild(ctx, root, &record, &again); err != nil || !bytes.Equal(again.Bytes(), data) {
			t.Errorf("rebuilt %d bytes of %d: %v", again.Len(), len(data), err)
		}
	})
}

// FuzzRecordText rebuilds from records that nobody has written.
func FuzzRecordText(f *testing.F) {
	data := archive(f, file("a", "some bytes"), dir("d"))
	var record bytes.Buffer
	rec := layertar.NewRecorder(bytes.NewReader(data), &record)
	if _, err := io.Copy(io.Discard, rec); err != nil {
		f.Fatal(err)
	}
	if err := rec.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(gunzip(f, record.Bytes()))
	f.Add([]byte(`{"type":1,"name":"../outside/canary","size":5,"payload":"AAAAAAAAAAA=","position":0}`))
	f.Add([]byte(`{"type":1,"name_raw":"Li4=","size":5}{"type":2,"payload":"AA==","position":-1}`))
	base := f.TempDir()
	c := newCanary(f, base)
	if err := os.WriteFile(filepath.Join(c.root, "a"), []byte("some bytes"), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var out bytes.Buffer
		err := layertar.Rebuild(t.Context(), c.root, bytes.NewReader(gzipped(t, text)), &out)
		if strings.Contains(out.String(), "alive") && !bytes.Contains(text, []byte("YWxpdm")) {
			t.Errorf("what is outside came out (%v)", err)
		}
	})
}

// FuzzSparse compares the content of a sparse file, in all forms that it can have in an archive, with what the
// archive library makes of it. What the library refuses must be refused, and the entry behind be found.
func FuzzSparse(f *testing.F) {
	testenv.Need(f, testenv.Root)
	ten := []byte("0123456789")
	f.Add(byte(0), int64(100), []byte(base256(0)+base256(5)+base256(50)+base256(5)), ten)
	f.Add(byte(0), int64(100), []byte(octal(0)+octal(10)), ten)
	f.Add(byte(0), int64(1000), bytes.Repeat([]byte(octal(5)+octal(0)), 40), []byte{})
	f.Add(byte(1), int64(100), []byte("0,5,50,5"), ten)
	f.Add(byte(1), int64(100), []byte("0,5,100,0"), ten[:5])
	f.Add(byte(2), int64(100), []byte("2\n0\n5\n50\n5\n"), ten)
	f.Add(byte(2), int64(0), []byte("0\n"), []byte{})
	f.Add(byte(2), int64(700), []byte("1\n0\n600\n"), bytes.Repeat([]byte{'x'}, 600))
	f.Add(byte(3), int64(100), []byte("0 5 50 5"), ten)
	f.Add(byte(0), int64(38), []byte("00\x0000000000012"), ten)
	f.Add(byte(1), int64(-7), []byte{}, []byte("0"))
	f.Add(byte(4), int64(100), []byte("0,5,50,5"), ten)
	disk := fuzzDisk(f)
	f.Fuzz(func(t *testing.T, form byte, size int64, sparse, content []byte) {
		if size > 1<<20 || len(sparse) > 8<<10 || len(content) > 64<<10 {
			return
		}
		data := append(sparseArchive(form, size, string(sparse), string(content)), tarOf(raw{name: "behind", typ: tar.TypeReg, body: "1"})...)
		tr := tar.NewReader(bytes.NewReader(data))
		want, hdr, wantErr := nextOf(tr)
		if wantErr == nil && hdr.Name != "sparse" {
			return
		}
		behind, _, behindErr := nextOf(tr)

		root, err := os.MkdirTemp(disk, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(root)
		_, err = recorded(t, root, bytes.NewReader(data), layertar.ApplyOptions{})
		if (err == nil) != (wantErr == nil && behindErr == nil) {
			t.Fatalf("error %v, the library's %v, and behind it %v", err, wantErr, behindErr)
		}
		if err != nil {
			return
		}
		got, err := os.ReadFile(filepath.Join(root, "sparse"))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes, want %d: %q, want %q (%v)", len(got), len(want), got, want, err)
		}
		if got, err := os.ReadFile(filepath.Join(root, "behind")); err != nil || !bytes.Equal(got, behind) {
			t.Errorf("behind it: %q (%v), want %q", got, err, behind)
		}
	})
}

func gzipped(t testing.TB, text []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gunzip(t testing.TB, data []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// nextOf reads the next entry of an archive.
func nextOf(tr *tar.Reader) ([]byte, *tar.Header, error) {
	hdr, err := tr.Next()
	if err != nil {
		return nil, nil, err
	}
	if hdr.Size > 1<<20 {
		return nil, hdr, tar.ErrFieldTooLong
	}
	data, err := io.ReadAll(tr)
	return data, hdr, err
}

// sparseArchive makes a sparse file of a map that is what it is.
func sparseArchive(form byte, size int64, sparse, content string) []byte {
	pad := func(s string) string { return string(padded(s)) }
	data := raw{name: "sparse", typ: tar.TypeReg, body: content}
	sizeText := fmt.Sprint(size)
	switch form % 5 {
	case 0:
		head := sparse[:min(len(sparse), 96)]
		h := raw{name: "sparse", typ: tar.TypeGNUSparse, gnu: true, size: octal(int64(len(content))), at: map[int]string{386: head, 483: base256(size)}}
		rest := sparse[len(head):]
		if rest != "" {
			h.at[482] = "\x01"
		}
		b := h.bytes()
		for rest != "" {
			block := make([]byte, 512)
			n := copy(block[:504], rest)
			if rest = rest[n:]; rest != "" {
				block[504] = 1
			}
			b = append(b, block...)
		}
		return append(b, pad(content)...)
	case 1:
		return slices.Concat(pax("GNU.sparse.size", sizeText, "GNU.sparse.numblocks", fmt.Sprint((strings.Count(sparse, ",")+1)/2), "GNU.sparse.map", sparse).bytes(), data.bytes())
	case 2:
		h := raw{name: "GNUSparseFile.0/sparse", typ: tar.TypeReg, body: pad(sparse) + content}
		return slices.Concat(pax("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", "sparse", "GNU.sparse.realsize", sizeText).bytes(), h.bytes())
	case 3:
		numbers := strings.Fields(sparse)
		records := []string{"GNU.sparse.size", sizeText, "GNU.sparse.numblocks", fmt.Sprint(len(numbers) / 2)}
		for i, n := range numbers {
			records = append(records, []string{"GNU.sparse.offset", "GNU.sparse.numbytes"}[i%2], n)
		}
		return slices.Concat(pax(records...).bytes(), data.bytes())
	}
	return slices.Concat(pax("GNU.sparse.size", sizeText, "GNU.sparse.map", sparse, "size", fmt.Sprint(len(content))).bytes(), data.bytes())
}
