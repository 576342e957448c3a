package server

import (
	"context"
	"net"
	"net/http"

	"github.com/setpointdb/setpoint/service"
)

// onlyLocalHosts refuses requests that were sent to another name than this machine's own, where the server listens on a
// loopback address. A page of any site can have its site's name resolve to 127.0.0.1, and the browser then takes the server
// for that site: the name in the request is what tells.
func onlyLocalHosts(listener net.Addr, next http.Handler, refuse func(context.Context, http.ResponseWriter, error)) http.Handler {
	tcp, ok := listener.(*net.TCPAddr)
	if !ok || !tcp.IP.IsLoopback() {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isLocalHost(r.Host) {
			refuse(r.Context(), w, service.InvalidRequest("host", "a server on a loopback address answers to localhost only"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func isLocalHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if n := len(host); n > 1 && host[0] == '[' && host[n-1] == ']' {
		host = host[1 : n-1]
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
