package authenticate

import (
	"crypto/x509"
	"slices"
	"strings"
	"time"

	"github.com/setpointdb/setpoint/internal/identity"
)

// uriScheme begins the URI of a certificate that names a principal outright.
const uriScheme = "setpoint:"

// Certificate is who shows a client certificate, which the transport has verified; its time is looked at again, for a connection may
// outlive it. The first of its subject alternative names that there is decides: the URI `setpoint:user:ada`, which is the principal
// after its scheme; a SPIFFE id, which is `service:spiffe://…`; the first DNS name, `service:<name>` in lower case, unless it is a
// wildcard; and the first email address, `user:<address>`. Two different URIs that would do are one too many. The common name is no
// name.
func Certificate(c *x509.Certificate, now time.Time) (identity.Principal, error) {
	if now.After(c.NotAfter) {
		return identity.Principal{}, refuse(Invalid, "the client certificate has expired")
	}
	name, err := certified(c)
	if err != nil {
		return identity.Principal{}, err
	}
	principal, err := identity.ParsePrincipal(name)
	if err != nil {
		return identity.Principal{}, refuse(Invalid, "the client certificate's name is none of a principal: "+err.Error())
	}
	return principal, nil
}

func certified(c *x509.Certificate) (string, error) {
	var outright, spiffe []string
	for _, uri := range c.URIs {
		text := uri.String()
		if name, ok := strings.CutPrefix(text, uriScheme); ok {
			outright = append(outright, name)
		} else if uri.Scheme == "spiffe" {
			spiffe = append(spiffe, "service:"+text)
		}
	}
	for _, names := range [][]string{outright, spiffe} {
		slices.Sort(names)
		switch names = slices.Compact(names); len(names) {
		case 0:
		case 1:
			return names[0], nil
		default:
			return "", refuse(Invalid, "the client certificate names more than one principal")
		}
	}
	if i := slices.IndexFunc(c.DNSNames, func(name string) bool { return !strings.Contains(name, "*") }); i >= 0 {
		return "service:" + strings.ToLower(c.DNSNames[i]), nil
	}
	if len(c.EmailAddresses) > 0 {
		return "user:" + c.EmailAddresses[0], nil
	}
	return "", refuse(Invalid, "the client certificate has no subject alternative name that names a principal")
}
