package authenticate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/setpointdb/setpoint/internal/telemetry"
)

// How long an issuer's keys count without being fetched again; how long where they cannot be; and how long after a failure they are not
// tried again, as long as there are some.
const (
	keysFresh    = 10 * time.Minute
	keysKept     = time.Hour
	keysPatience = 30 * time.Second
)

// How often keys are fetched at most: fetchBurst times at once, and once more every fetchEvery.
const (
	fetchBurst   = 5
	fetchEvery   = 5 * time.Second
	fetchTimeout = 5 * time.Second
	// maxKeysBytes bounds what the issuer answers.
	maxKeysBytes = 1 << 20
)

// keySet are the keys with which an issuer signs. They are fetched when a JWT needs them first; when one is signed with a key that is not
// among them, so that a new key counts at once; and every keysFresh, so that a key which the issuer takes back ceases to count. JWTs
// signed with made-up keys have no more fetched than fetchBurst and fetchEvery allow: with keys that are fresh, such a JWT is then
// Invalid; else Unavailable.
type keySet struct {
	config     Issuer
	algorithms []jose.SignatureAlgorithm
	client     *http.Client
	now        func() time.Time
	events     *telemetry.Events
	fetches    *rate.Limiter
	flights    singleflight.Group

	mu      sync.Mutex
	url     string // Empty until it is known.
	keys    []jose.JSONWebKey
	fetched time.Time // When keys were asked for; zero if never.
	failed  time.Time // When they last could not be had.
}

func newKeySet(config Issuer, now func() time.Time, events *telemetry.Events) *keySet {
	k := &keySet{
		config: config, url: config.KeysURL, now: now, events: events,
		fetches: rate.NewLimiter(rate.Every(fetchEvery), fetchBurst),
		client: &http.Client{
			Timeout: fetchTimeout,
			CheckRedirect: func(req *http.Request, via []*http.Request) error {
				if len(via) >= 5 {
					return errors.New("sent from one place to another too often")
				}
				return checkScheme(req.URL)
			},
		},
	}
	for _, algorithm := range config.Algorithms {
		k.algorithms = append(k.algorithms, jose.SignatureAlgorithm(algorithm))
	}
	return k
}

// parse reads a JWT, and believes nothing of it.
func (k *keySet) parse(text string) (*jose.JSONWebSignature, error) {
	jwt, err := jose.ParseSignedCompact(text, k.algorithms)
	if err != nil || len(jwt.Signatures) != 1 {
		return nil, refuse(Invalid, "the token is no JWT that was signed in a way which is taken here")
	}
	return jwt, nil
}

// verify returns what a JWT says, if the issuer has signed it.
func (k *keySet) verify(ctx context.Context, text string) ([]byte, error) {
	jwt, err := k.parse(text)
	if err != nil {
		return nil, err
	}
	keys, age, tried := k.current()
	fresh := age < keysFresh
	if fresh || age < keysKept && tried < keysPatience {
		if payload, err := check(jwt, keys); err == nil || !errors.Is(err, errKeyUnknown) {
			return payload, signatureError(err)
		}
	}
	newer, err := k.fetch(ctx)
	switch {
	case err == nil:
		keys = newer
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case fresh && errors.Is(err, errFetchedOften):
	case age >= keysKept || errors.Is(mustKnow(jwt, keys), errKeyUnknown):
		return nil, refuse(Unavailable, "the issuer's keys cannot be fetched; try again")
	}
	payload, err := check(jwt, keys)
	return payload, signatureError(err)
}

var (
	errKeyUnknown   = errors.New("the JWT is signed with a key that its issuer does not have")
	errSignature    = errors.New("the JWT's signature is wrong")
	errFetchedOften = errors.New("the keys were fetched too often")
)

func signatureError(err error) error {
	if err == nil {
		return nil
	}
	return refuse(Invalid, err.Error())
}

// mustKnow is nil if the keys suffice to judge a signature.
func mustKnow(jwt *jose.JSONWebSignature, keys []jose.JSONWebKey) error {
	_, err := check(jwt, keys)
	return err
}

// check returns what a JWT says, if one of the keys has signed it.
func check(jwt *jose.JSONWebSignature, keys []jose.JSONWebKey) ([]byte, error) {
	header := jwt.Signatures[0].Header
	result := errKeyUnknown
	for _, key := range keys {
		if key.Use == "enc" || !key.IsPublic() || key.Algorithm != "" && key.Algorithm != header.Algorithm {
			continue
		}
		if header.KeyID != "" && key.KeyID != header.KeyID {
			continue
		}
		payload, err := jwt.Verify(&key)
		if err == nil {
			return payload, nil
		}
		if header.KeyID != "" {
			result = errSignature // Of a JWT that does not say which key it was, it may be another.
		}
	}
	return nil, result
}

// current returns the keys, their age, and the time since they last could not be fetched.
func (k *keySet) current() ([]jose.JSONWebKey, time.Duration, time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	return k.keys, now.Sub(k.fetched), now.Sub(k.failed)
}

// fetch asks the issuer for its keys; those who want them at the same time share an answer.
func (k *keySet) fetch(ctx context.Context) ([]jose.JSONWebKey, error) {
	shared := k.flights.DoChan("", func() (any, error) {
		began := k.now()
		if !k.fetches.AllowN(began, 1) {
			return nil, errFetchedOften
		}
		ctx := context.WithoutCancel(ctx)
		keys, err := k.ask(ctx)
		k.mu.Lock()
		defer k.mu.Unlock()
		if err != nil {
			k.failed = began
			k.events.IssuerKeysFailed(ctx, k.config.URL, err)
			return nil, err
		}
		k.keys, k.fetched = keys, began
		k.events.IssuerKeysFetched(ctx, k.config.URL, len(keys))
		return keys, nil
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case result := <-shared:
		keys, _ := result.Val.([]jose.JSONWebKey)
		return keys, result.Err
	}
}

// ask reads the issuer's keys, from where its configuration says.
func (k *keySet) ask(ctx context.Context) ([]jose.JSONWebKey, error) {
	url, err := k.where(ctx)
	if err != nil {
		return nil, err
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := k.get(ctx, url, &set); err != nil {
		return nil, fmt.Errorf("fetch the issuer's keys: %w", err)
	}
	keys := make([]jose.JSONWebKey, 0, len(set.Keys))
	for _, raw := range set.Keys {
		var key jose.JSONWebKey
		if err := json.Unmarshal(raw, &key); err == nil { // One of a kind that is not known here may be among them.
			keys = append(keys, key)
		}
	}
	return keys, nil
}

// where is the address of the keys.
func (k *keySet) where(ctx context.Context) (string, error) {
	k.mu.Lock()
	url := k.url
	k.mu.Unlock()
	if url != "" {
		return url, nil
	}
	var found struct {
		Issuer  string `json:"issuer"`
		KeysURL string `json:"jwks_uri"`
	}
	if err := k.get(ctx, strings.TrimSuffix(k.config.URL, "/")+"/.well-known/openid-configuration", &found); err != nil {
		return "", fmt.Errorf("fetch the issuer's configuration: %w", err)
	}
	if found.Issuer != k.config.URL {
		return "", fmt.Errorf("the issuer's configuration is that of %q", found.Issuer)
	}
	if err := checkURL(found.KeysURL); err != nil {
		return "", fmt.Errorf("the issuer's configuration: jwks_uri %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.url = found.KeysURL
	return found.KeysURL, nil
}

// get reads a JSON document.
func (k *keySet) get(ctx context.Context, url string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := k.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", url, response.Status)
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, maxKeysBytes+1))
	if err != nil {
		return err
	}
	if len(text) > maxKeysBytes {
		return fmt.Errorf("%s answered more than %d bytes", url, maxKeysBytes)
	}
	return json.Unmarshal(text, into)
}
