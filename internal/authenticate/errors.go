package authenticate

// Kind is why a caller was refused.
type Kind int

// The kinds of refusals.
const (
	// Missing: there are no credentials.
	Missing Kind = iota + 1
	// Invalid: the credentials are in no form, unknown, expired, revoked, or not for this server.
	Invalid
	// Limited: too many of the peer's credentials were not good, and these are not either.
	Limited
	// Busy: too many credentials were being looked at for these to have their turn. It passes.
	Busy
	// Unavailable: the issuer's keys cannot be had. It passes.
	Unavailable
	// Misnamed: the metadata identity.Header is not as it must be.
	Misnamed
)

// Error is a refusal.
type Error struct {
	// Kind is why.
	Kind Kind
	// Message is for people. It shows nothing of what the caller has shown.
	Message string
}

func (e *Error) Error() string { return e.Message }

func refuse(kind Kind, message string) *Error { return &Error{kind, message} }
