package plugin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/backend/plugin"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/test/plugintest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

type request struct{ Name string }

type answer struct{ Said string }

// echo is a plugin that tells what it was asked.
func echo(calls *[]request) func(s *plugin.Server) {
	return func(s *plugin.Server) {
		plugin.Handle(s, "Echo.Say", func(_ context.Context, r request) (answer, error) {
			*calls = append(*calls, r)
			if r.Name == "fail" {
				return answer{}, errs.WithHint(errors.New("cannot"), "do this")
			}
			return answer{r.Name}, nil
		})
		plugin.HandleDownload(s, "Echo.Down", func(_ context.Context, r request, w io.Writer) error {
			size := len(r.Name)
			if size > 1 {
				size = 1 << 20
			}
			_, err := io.WriteString(w, strings.Repeat("x", size))
			if r.Name != "good" {
				err = errors.Join(err, errors.New("broken"))
			}
			return err
		})
		plugin.HandleUpload(s, "Echo.Up", func(_ context.Context, q url.Values, body io.Reader) (answer, error) {
			if q.Get("id") == "fail" {
				return answer{}, errors.New("full")
			}
			b, err := io.ReadAll(body)
			return answer{q.Get("id") + string(b)}, err
		})
	}
}

func TestServer(t *testing.T) {
	var calls []request
	c := plugintest.Serve(t, echo(&calls), "Echo")
	var a answer
	if err := c.Call("Echo.Say", map[string]any{"Name": "hello", "Newer": 1}, &a); err != nil || a.Said != "hello" {
		t.Errorf("%+v, %v", a, err)
	}
	var kinds struct{ Implements []string }
	if err := c.Call("Plugin.Activate", struct{}{}, &kinds); err != nil || len(kinds.Implements) != 1 || kinds.Implements[0] != "Echo" {
		t.Errorf("%+v, %v", kinds, err)
	}
	if body, err := c.Post("Plugin.Activate", nil); err != nil { // as Docker asks
		t.Error(err)
	} else {
		_ = body.Close()
	}
	wantError(t, c.Call("Echo.Say", request{"fail"}, nil), http.StatusInternalServerError, "cannot (do this)")
	wantError(t, c.Call("Echo.None", request{}, nil), http.StatusNotFound, "")

	// A stream that fails early is an error, one that fails late breaks.
	_, err := c.Post("Echo.Down", strings.NewReader(`{"Name":"x"}`))
	wantError(t, err, http.StatusInternalServerError, "broken")
	for name, whole := range map[string]bool{"good": true, "late": false} {
		body, err := c.Post("Echo.Down", strings.NewReader(`{"Name":"`+name+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, body)
		_ = body.Close()
		if (err == nil) != whole || whole && n != 1<<20 {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
	}

	// A body that is not wanted is read all the same, so that the error arrives.
	_, err = c.Post("Echo.Up?id=fail", bytes.NewReader(make([]byte, 8<<20)))
	wantError(t, err, http.StatusInternalServerError, "full")
	_, err = c.Post("Echo.Up?id=%zz", strings.NewReader("x"))
	wantError(t, err, http.StatusInternalServerError, "query")
	body, err := c.Post("Echo.Up?id=a%2Fb", strings.NewReader("c"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(json.NewDecoder(body).Decode(&a), body.Close()); err != nil || a.Said != "a/bc" {
		t.Errorf("%+v, %v", a, err)
	}
}

// TestMalformed: what is no request calls nothing.
func TestMalformed(t *testing.T) {
	var calls []request
	c := plugintest.Serve(t, echo(&calls), "Echo")
	for _, body := range []string{"", " ", "x", "{", `{"Name":1}`, `[]`, `"x"`, `{} {}`, `{"Name":"` + strings.Repeat("x", 1<<20) + `"}`} {
		_, err := c.Post("Echo.Say", strings.NewReader(body))
		wantError(t, err, http.StatusInternalServerError, "request")
	}
	if len(calls) > 0 {
		t.Errorf("called with %q", calls)
	}
}

func wantError(t *testing.T, err error, status int, text string) {
	t.Helper()
	var e *plugintest.Error
	if !errors.As(err, &e) || e.Status != status || !strings.Contains(e.Text, text) {
		t.Errorf("%v, want %d with %q", err, status, text)
	}
}

// FuzzRequest: a method is called with what a JSON decoder makes of the body, or not at all.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{``, `{}`, `{"Name":"a"}`, `{"name":"A"}`, `{"Name":"\u0000"}`, `{"Name":null}`, `[]`, `{"Name":"a"}x`, "\xff"} {
		f.Add("Echo.Say", s)
	}
	f.Add("Echo.Up?id=x;y", "z")
	f.Add("/../Echo.Say", "{}")
	var calls []request
	c := plugintest.Serve(f, echo(&calls), "Echo")
	f.Fuzz(func(t *testing.T, method, body string) {
		calls = nil
		stream, err := c.Post(url.PathEscape(method), strings.NewReader(body))
		if err == nil {
			_, _ = io.Copy(io.Discard, stream)
			_ = stream.Close()
		}
		var r request
		switch bad := json.Unmarshal([]byte(body), &r); {
		case len(calls) > 0 && (bad != nil || calls[0] != r):
			t.Errorf("called with %q for %q", calls, body)
		case method == "Echo.Say" && bad == nil && len(calls) == 0 && len(body) < 1<<20:
			t.Errorf("not called for %q: %v", body, err)
		}
	})
}
