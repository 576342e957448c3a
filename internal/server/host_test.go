package server

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

// A page whose site's name resolves to the loopback address is not taken for one of this machine's.
func TestOnlyLocalHosts(t *testing.T) {
	t.Parallel()
	next := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	refuse := func(_ context.Context, w http.ResponseWriter, err error) {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
	for _, test := range []struct {
		listener, host string
		want           int
	}{
		{"127.0.0.1", "localhost:7421", http.StatusNoContent},
		{"127.0.0.1", "127.0.0.1:7421", http.StatusNoContent},
		{"127.0.0.1", "127.0.0.1", http.StatusNoContent},
		{"::1", "[::1]:7421", http.StatusNoContent},
		{"::1", "[::1]", http.StatusNoContent},
		{"127.0.0.1", "evil.example:7421", http.StatusBadRequest},
		{"127.0.0.1", "evil.example", http.StatusBadRequest},
		{"127.0.0.1", "localhost.evil.example", http.StatusBadRequest},
		{"127.0.0.1", "10.0.0.1", http.StatusBadRequest},
		{"127.0.0.1", "", http.StatusBadRequest},
		{"0.0.0.0", "setpoint.example", http.StatusNoContent},
	} {
		handler := onlyLocalHosts(&net.TCPAddr{IP: net.ParseIP(test.listener), Port: 7421}, next, refuse)
		request := httptest.NewRequest(http.MethodGet, "/livez", nil)
		request.Host = test.host
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, request)
		if answer.Code != test.want {
			t.Errorf("Host %q on %s: %d, want %d", test.host, test.listener, answer.Code, test.want)
		}
	}
}
