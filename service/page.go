package service

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
)

const (
	defaultPageSize = 100
	maxPageSize     = 1000
)

// pageToken is what a page token holds: where the next page begins, and what it is a page of.
type pageToken struct {
	// Filter is a hash of the list's name and filters: a token goes on with the list that it came from.
	Filter string `json:"f"`
	// Name begins a page in the order of names, exclusive.
	Name string `json:"n,omitempty"`
	// Before begins a page in descending order of a number, exclusive.
	Before int64 `json:"b,omitempty"`
	// At is the revision that all pages are as of.
	At int64 `json:"a,omitempty"`
	// Number and Step begin a page of trials, exclusive. Started tells that they, or Name, do.
	Number  int64 `json:"t,omitempty"`
	Step    int64 `json:"s,omitempty"`
	Started bool  `json:"g,omitempty"`
}

// filterHash names a list by its RPC and filters.
func filterHash(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:9])
}

func (t pageToken) encode() string {
	data, _ := json.Marshal(t) // Strings and a number always marshal.
	return base64.RawURLEncoding.EncodeToString(data)
}

// decodePageToken reads a token of the list that the filter names; the empty token is the first page.
func decodePageToken(token, filter string) (pageToken, error) {
	if token == "" {
		return pageToken{Filter: filter}, nil
	}
	var t pageToken
	data, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || json.Unmarshal(data, &t) != nil || strings.ContainsRune(t.Name, 0) || t.Before < 0 || t.At < 0 {
		return pageToken{}, invalid("page_token", "is none that this server gave")
	}
	if t.Filter != filter {
		return pageToken{}, invalid("page_token", "belongs to a list with other filters")
	}
	return t, nil
}

// pageSize is the number of rows of a page: what was asked for, or the default.
func pageSize(asked int32) int {
	if asked <= 0 {
		return defaultPageSize
	}
	return min(int(asked), maxPageSize)
}

// nameRange is a glob over names as SQL searches it: a LIKE pattern, and the range from Lo (inclusive) to Hi that holds
// every match, which is what an index can use.
type nameRange struct {
	Like, Lo, Hi string
}

// lastName sorts after every name in byte order, and after every continuation of a prefix when it is put behind it.
var lastName = strings.Repeat("\U0010FFFF", 257)

// globRange translates a glob, in which `*` is the only wildcard; the empty glob is all. after is the last name of the
// page before, empty on the first.
func globRange(glob, after string) nameRange {
	if glob == "" {
		glob = "*"
	}
	prefix, _, wild := strings.Cut(glob, "*")
	r := nameRange{Like: likeOf(glob), Lo: prefix, Hi: prefix + lastName}
	if !wild {
		r.Hi = prefix + "\x01" // Nothing stands between a name and this: names have no control characters.
	}
	if after != "" && after+"\x01" > r.Lo {
		r.Lo = after + "\x01"
	}
	return r
}

var likeEscapes = strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`, `*`, `%`)

func likeOf(glob string) string { return likeEscapes.Replace(glob) }
