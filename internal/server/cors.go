package server

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/rs/cors"

	"github.com/setpointdb/setpoint/internal/identity"
)

// AnyOrigin as an origin stands for all.
const AnyOrigin = "*"

// CheckOrigin returns an error unless an origin is AnyOrigin or that of one site: a scheme, a host, and a port where it is
// not the scheme's own.
func CheckOrigin(origin string) error {
	_, err := newProtection([]string{origin})
	return err
}

// newProtection refuses writes by pages of other sites than origins; nil where all are allowed. Without CORS browsers let
// such a page read nothing, but they do send what it writes.
func newProtection(origins []string) (*http.CrossOriginProtection, error) {
	if slices.Contains(origins, AnyOrigin) {
		return nil, nil
	}
	protection := http.NewCrossOriginProtection()
	for _, origin := range origins {
		if strings.Contains(origin, AnyOrigin) {
			return nil, fmt.Errorf("invalid origin %q: it is to be one site's", origin)
		}
		if err := protection.AddTrustedOrigin(strings.ToLower(origin)); err != nil {
			return nil, err
		}
	}
	return protection, nil
}

// allowOrigins lets browsers show the answers to pages of the origins; without any it adds nothing.
func allowOrigins(origins []string, next http.Handler) http.Handler {
	if len(origins) == 0 {
		return next
	}
	return cors.New(cors.Options{
		AllowedOrigins: origins,
		AllowedMethods: []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete},
		AllowedHeaders: []string{authorizationHeader, "content-type", requestHeader, identity.Header},
		ExposedHeaders: []string{requestHeader, "retry-after"},
		MaxAge:         600,
	}).Handler(next)
}
