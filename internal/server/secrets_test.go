package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/authenticate"
	"github.com/setpointdb/setpoint/internal/identity"
)

// newIssuer serves an OpenID Connect issuer's key; the result makes its JWTs.
func newIssuer(t *testing.T) (string, func(claims map[string]any) string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k"}}}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/keys" {
			_ = json.NewEncoder(w).Encode(set)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": "http://" + r.Host, "jwks_uri": "http://" + r.Host + "/keys"})
	}))
	t.Cleanup(front.Close)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", "k"))
	if err != nil {
		t.Fatal(err)
	}
	return front.URL, func(claims map[string]any) string {
		all := map[string]any{"iss": front.URL, "aud": "setpoint", "sub": "ada", "exp": time.Now().Add(time.Hour).Unix()}
		for name, value := range claims {
			all[name] = value
		}
		payload, err := json.Marshal(all)
		if err != nil {
			t.Fatal(err)
		}
		object, err := signer.Sign(payload)
		if err != nil {
			t.Fatal(err)
		}
		text, err := object.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
}

// Whatever a caller shows, and wherever it puts it, neither log nor errors nor measurements hold it.
func TestNoSecretIsShown(t *testing.T) {
	t.Parallel()
	issuer, sign := newIssuer(t)
	g := startGuarded(t, func(config *Config) {
		config.Authentication.Modes = []authenticate.Mode{authenticate.Token, authenticate.OIDC}
		config.Authentication.Issuer = authenticate.Issuer{URL: issuer, Audience: "setpoint"}
	})
	good, revoked := g.token("user:ada"), g.token("user:ada")
	g.revoke(revoked)
	_, unknown, _, err := identity.NewToken()
	if err != nil {
		t.Fatal(err)
	}
	jwt := sign(nil)
	expired := sign(map[string]any{"exp": 1})
	odd := sign(map[string]any{"sub": "a b"})
	shown := map[string]string{
		"good": good, "revoked": revoked, "unknown": unknown, "malformed": unknown[:80] + "WRONGEND", "JWT": jwt, "expired": expired,
		"odd": odd, "forged": jwt[:len(jwt)-40] + strings.Repeat("Forged", 6) + "abcd", "password": "correct-horse-battery-staple-correct-horse-battery",
	}
	answers := g.showEverywhere(shown)
	metrics, err := g.client.Get(g.url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(metrics.Body)
	if err != nil {
		t.Fatal(err)
	}
	_ = metrics.Body.Close()
	log := g.log.String()
	if !strings.Contains(log, "authentication_failed") || !strings.Contains(log, "by=user:ada") || !strings.Contains(string(text), "authentication_failed") {
		t.Errorf("too little was recorded: %s", log)
	}
	for name, secret := range shown {
		for where, all := range map[string]string{"log": log, "measurements": string(text), "answers": strings.Join(answers, "\n")} {
			for _, part := range parts(secret) {
				if i := strings.Index(all, part); i >= 0 {
					t.Errorf("%s is in the %s: %s", name, where, all[max(0, i-200):min(len(all), i+100)])
				}
			}
		}
	}
}

// parts of a secret are what must not be seen of it: a token's secret, each part of a JWT, and anything long of others.
func parts(secret string) []string {
	if rest, ok := strings.CutPrefix(secret, identity.TokenPrefix); ok {
		return []string{rest[27:47]}
	}
	if strings.Count(secret, ".") == 2 {
		all := strings.Split(secret, ".")
		return []string{all[1][:20], all[2][len(all[2])-20:]}
	}
	return []string{secret[:20]}
}

// showEverywhere shows each secret to both ports, in all places, and returns all answers.
func (g *guardedCaller) showEverywhere(secrets map[string]string) []string {
	g.t.Helper()
	conn := g.dial()
	sessions := setpointv1.NewSessionServiceClient(conn)
	good := "Bearer " + secrets["good"]
	var answers []string
	for _, secret := range secrets {
		for _, headers := range [][]string{
			{"authorization", "Bearer " + secret},
			{"authorization", secret},
			{"authorization", "Basic " + secret},
			{"authorization", "Bearer " + secret + " x"},
			{"authorization", "Bearer " + secret, "authorization", "Bearer " + secret},
			{identity.Header, secret},
			{identity.Header, secret, "authorization", good},
			{identity.Header, "user:" + secret, "authorization", good},
			{"cookie", "token=" + secret, "authorization", good},
			{ticketHeader, secret, "authorization", good},
		} {
			ctx := metadata.AppendToOutgoingContext(g.t.Context(), headers...)
			_, err := sessions.GetSession(ctx, &setpointv1.GetSessionRequest{SessionId: "s"})
			answers = append(answers, fmt.Sprint(err, status.Convert(err).Details()), g.reflect(ctx))
			got := g.call("GET", "/v1/sessions/s", "", headers...)
			answers = append(answers, fmt.Sprint(got.body, got.header))
		}
		for _, query := range []string{"access_token=" + secret, url.QueryEscape(secret) + "=1", "page_token=" + secret, "page_size=" + secret} {
			got := g.call("GET", "/v1/sessions?"+query, "", "Authorization", good)
			answers = append(answers, fmt.Sprint(got.body, got.header))
			if got.code != http.StatusBadRequest {
				g.t.Errorf("a query was taken: %s", got.body)
			}
		}
	}
	return answers
}

// reflect opens a stream, and returns how it ends.
func (g *guardedCaller) reflect(ctx context.Context) string {
	g.t.Helper()
	ctx, end := context.WithCancel(ctx)
	defer end()
	stream, err := reflectionv1.NewServerReflectionClient(g.dial()).ServerReflectionInfo(ctx)
	if err != nil {
		return err.Error()
	}
	_ = stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}})
	_, err = stream.Recv()
	return fmt.Sprint(err, status.Convert(err).Details())
}
