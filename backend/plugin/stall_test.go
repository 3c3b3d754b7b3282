package plugin_test

import (
	"context"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/backend/plugin"
)

// A client that stops in the middle of a stream does not keep the server from ending, which waits until the request has ended.
func TestStalledClient(t *testing.T) {
	t.Cleanup(plugin.SetGrace(10 * time.Millisecond))
	begun, undone := make(chan struct{}), false
	s := plugin.New(nil, "Echo")
	plugin.HandleUpload(s, "Echo.Up", func(_ context.Context, _ url.Values, body io.Reader) (answer, error) {
		close(begun)
		_, err := io.Copy(io.Discard, body)
		undone = err != nil
		return answer{}, err
	})
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "POST /Echo.Up HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"); err != nil {
		t.Fatal(err)
	}
	<-begun
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("the server ended with %v", err)
	}
	if !undone {
		t.Error("the server has ended before the request")
	}
}
