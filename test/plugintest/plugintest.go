// Package plugintest serves plugins of Docker in tests, and asks them as Docker does.
package plugintest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/dmlayer/dmlayer/backend/plugin"
)

// Client asks a plugin on a socket.
type Client struct {
	Socket string
	http   *http.Client
}

// NewClient returns a client of a socket.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{Socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Serve serves the methods that register adds until the test ends, on a socket of a short name.
func Serve(t testing.TB, register func(*plugin.Server), kinds ...string) *Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "plugin")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := plugin.New(nil, kinds...)
	register(s)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	c := NewClient(socket)
	t.Cleanup(func() {
		c.Close()
		cancel()
		if err := errors.Join(<-ended, os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	return c
}

// Close closes the client's idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Error is an answer that is not 200.
type Error struct {
	Status int
	Text   string
}

func (e *Error) Error() string { return fmt.Sprintf("%d: %s", e.Status, e.Text) }

// Post sends a body to a method, with its query, and returns the stream that is the answer.
func (c *Client) Post(method string, body io.Reader) (io.ReadCloser, error) {
	r, err := http.NewRequest(http.MethodPost, "http://plugin/"+method, body)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "application/vnd.docker.plugins.v1.2+json")
	answer, err := c.http.Do(r)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode == http.StatusOK {
		return answer.Body, nil
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, err
	}
	var failure struct{ Err string }
	if json.Unmarshal(text, &failure) == nil && failure.Err != "" {
		text = []byte(failure.Err)
	}
	return nil, &Error{answer.StatusCode, string(text)}
}

// Call asks a method with JSON and reads its JSON into answer, unless that is nil.
func (c *Client) Call(method string, request, answer any) error {
	text, err := json.Marshal(request)
	if err != nil {
		return err
	}
	body, err := c.Post(method, bytes.NewReader(text))
	if err != nil {
		return err
	}
	defer body.Close()
	if answer == nil {
		answer = &struct{}{}
	}
	return json.NewDecoder(body).Decode(answer)
}
