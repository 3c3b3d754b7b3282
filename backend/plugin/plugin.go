// Package plugin speaks the protocol of Docker's plugins: JSON over HTTP on a socket, POST requests whose path is the method, such as
// /GraphDriver.Get. Bodies of layers and of their differences are streams.
//
// Whoever may open the socket is root, but what he says is checked all the same: a request that is malformed, too long or of an unknown method
// calls nothing.
package plugin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/dmlayer/dmlayer/internal/errs"
)

const (
	contentType = "application/vnd.docker.plugins.v1.1+json"

	// maxRequest is the most bytes that a request which is no stream may have. Docker's are below 10 KiB.
	maxRequest = 1 << 20

	// streamBuffer is how much of a stream waits, so that what fails at its beginning is answered with the error.
	streamBuffer = 64 << 10
)

// Server answers the requests of Docker. Methods are added before it serves.
type Server struct {
	mux     *http.ServeMux
	kinds   []string
	failed  func(method string, err error)
	methods map[string]bool
	begun   []func()
}

// New returns a server that says it is a plugin of these kinds, such as "VolumeDriver". failed is called with each request that failed, and may be nil.
func New(failed func(method string, err error), kinds ...string) *Server {
	s := &Server{mux: http.NewServeMux(), kinds: kinds, failed: failed, methods: map[string]bool{}}
	Handle(s, "Plugin.Activate", func(context.Context, struct{}) (activation, error) {
		for _, fn := range s.begun {
			fn()
		}
		return activation{Implements: s.kinds}, nil
	})
	return s
}

// OnActivate has fn called whenever Docker begins with the plugin, which each dockerd does at least once. fn must not wait.
func (s *Server) OnActivate(fn func()) { s.begun = append(s.begun, fn) }

type activation struct{ Implements []string }

// handle adds a method. Only POST is answered, as Docker asks.
func (s *Server) handle(method string, fn func(w http.ResponseWriter, r *http.Request) error) {
	s.methods[method] = true
	s.mux.HandleFunc("POST /"+method, func(w http.ResponseWriter, r *http.Request) {
		err := fn(w, r)
		if err == nil {
			return
		}
		if s.failed != nil {
			s.failed(method, err)
		}
		if errors.Is(err, errSent) {
			panic(http.ErrAbortHandler) // the stream ends without its end, which the client sees
		}
		reply(w, http.StatusInternalServerError, failure{Err: text(err)})
	})
}

// Methods returns the methods that the server answers.
func (s *Server) Methods() []string {
	var list []string
	for m := range s.methods {
		list = append(list, m)
	}
	return list
}

// failure is how Docker wants to hear of an error.
type failure struct{ Err string }

// text is an error as Docker's user reads it: with what he can do.
func text(err error) string {
	if hint := errs.Hint(err); hint != "" {
		return fmt.Sprintf("%v (%s)", err, hint)
	}
	return err.Error()
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", contentType)
	w.Header()["Date"] = nil // nobody reads it
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a client that has gone
}

// Handle adds a method with a JSON request and a JSON answer. Fields of a request that are not known are passed over: a newer Docker may send more.
func Handle[Request, Answer any](s *Server, method string, fn func(ctx context.Context, r Request) (Answer, error)) {
	s.handle(method, func(w http.ResponseWriter, r *http.Request) error {
		request, err := decode[Request](w, r)
		if err != nil {
			return err
		}
		answer, err := fn(r.Context(), request)
		if err != nil {
			return err
		}
		reply(w, http.StatusOK, answer)
		return nil
	})
}

// HandleDownload adds a method with a JSON request that is answered with a stream. What fails before the stream has begun is answered as an error, and
// what fails later breaks the connection, so that nobody takes the part for the whole.
func HandleDownload[Request any](s *Server, method string, fn func(ctx context.Context, r Request, w io.Writer) error) {
	s.handle(method, func(w http.ResponseWriter, r *http.Request) error {
		request, err := decode[Request](w, r)
		if err != nil {
			return err
		}
		begun := &begin{w: w}
		buffer := bufio.NewWriterSize(begun, streamBuffer)
		err = fn(r.Context(), request, buffer)
		if err == nil {
			err = buffer.Flush()
		}
		if err != nil && begun.yes {
			return fmt.Errorf("%w: %w", err, errSent)
		}
		return err
	})
}

// errSent says that part of an answer was sent already.
var errSent = errors.New("the answer had begun")

// begin notes that something was written.
type begin struct {
	w   http.ResponseWriter
	yes bool
}

func (b *begin) Write(p []byte) (int, error) {
	if !b.yes {
		b.w.Header().Set("Content-Type", contentType)
		b.yes = true
	}
	return b.w.Write(p)
}

// HandleUpload adds a method whose parameters are in the query and whose body is a stream. Whatever fn leaves of the body is read before the answer:
// Docker, which could not write the rest, would not read the error and would send what is left of the stream once more.
func HandleUpload[Answer any](s *Server, method string, fn func(ctx context.Context, q url.Values, body io.Reader) (Answer, error)) {
	s.handle(method, func(w http.ResponseWriter, r *http.Request) error {
		q, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			err = fmt.Errorf("query of %s: %w: %w", method, err, errs.ErrInvalid)
		}
		var answer Answer
		if err == nil {
			answer, err = fn(r.Context(), q, r.Body)
		}
		_, _ = io.Copy(io.Discard, r.Body) // a client that has gone
		if err != nil {
			return err
		}
		reply(w, http.StatusOK, answer)
		return nil
	})
}

// decode reads the one JSON value that is the body of a request. Docker, which sends a request again after a connection broke, may send an empty
// body then: that is no request.
func decode[Request any](w http.ResponseWriter, r *http.Request) (Request, error) {
	var request Request
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		return request, fmt.Errorf("read the request: %w: %w", err, errs.ErrInvalid)
	}
	_, bare := any(request).(struct{})
	if bare && len(strings.TrimSpace(string(body))) == 0 {
		return request, nil
	}
	if err := json.Unmarshal(body, &request); err != nil {
		return request, fmt.Errorf("malformed request: %w: %w", err, errs.ErrInvalid)
	}
	return request, nil
}

// grace is how long requests may take to finish when the server ends. Then their connections are cut: nobody waits for a client that sends nothing more.
var grace = 30 * time.Second

// Serve answers requests on a listener, which it closes, until the context ends, and returns when those that run then are done. One whose
// client has not sent or taken everything half a minute later is broken off, and undone like one whose client has gone.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var running gate
	defer running.close()
	// What runs is finished: its context is not the service's.
	server := &http.Server{Handler: running.around(s.mux), BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) }, ConnContext: withPeer}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	select {
	case err := <-ended:
		return errors.Join(fmt.Errorf("serve %s: %w", l.Addr(), err), server.Close())
	case <-ctx.Done():
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	err := server.Shutdown(late)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close()
	}
	if serr := <-ended; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}

// gate knows which requests run. The server itself does not wait for those whose connections it has cut.
type gate struct {
	mu     sync.RWMutex // held shared by each
	closed bool
}

func (g *gate) around(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.RLock()
		defer g.mu.RUnlock()
		if g.closed {
			panic(http.ErrAbortHandler)
		}
		h.ServeHTTP(w, r)
	})
}

// close waits for the requests that run, and lets none begin any more.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}
