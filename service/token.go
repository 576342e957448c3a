package service

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"buf.build/go/protovalidate"
	"github.com/jackc/pgx/v5"

	"github.com/setpointdb/setpoint/db"
	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
)

// serverOnly refuses whoever is no server admin, or shows credentials that are narrowed.
func serverOnly(ctx context.Context) error {
	if identity.FromContext(ctx).ServesServer() {
		return nil
	}
	return accessDenied(toAdmin, "tokens are for server admins, with credentials that are not narrowed")
}

// CreateToken makes a token. Its secret is in the answer and nowhere else.
func (s *Service) CreateToken(ctx context.Context, req *setpointv1.CreateTokenRequest) (*setpointv1.CreateTokenResponse, error) {
	if err := serverOnly(ctx); err != nil {
		return nil, err
	}
	by := identity.FromContext(ctx).Name
	response, err := createToken(ctx, s.db, req, newToken{
		by: by, method: methodName(setpointv1.TokenService_CreateToken_FullMethodName),
	})
	if err == nil {
		s.events.TokenCreated(ctx, response.GetToken().GetTokenId(), req.GetPrincipal(), by)
	}
	return response, err
}

// BootstrapToken makes a token whose bearer is a server admin, without a server: whoever has the database's credentials may. by is
// who made it, in the form of a principal. A request that breaks a rule of the API is an *Error.
func BootstrapToken(ctx context.Context, database *db.DB, req *setpointv1.CreateTokenRequest, by string) (
	*setpointv1.CreateTokenResponse, error,
) {
	if err := protovalidate.Validate(req); err != nil {
		if e := asRefusal(err); e != nil {
			return nil, e
		}
		return nil, err
	}
	return createToken(ctx, database, req, newToken{by: by, serverAdmin: true})
}

// newToken is what a request does not say of a token. The method is empty of one that is made offline.
type newToken struct {
	by, method  string
	serverAdmin bool
}

func createToken(ctx context.Context, database *db.DB, req *setpointv1.CreateTokenRequest, how newToken) (
	*setpointv1.CreateTokenResponse, error,
) {
	if err := checkToken(req); err != nil {
		return nil, err
	}
	id, secret, hash, err := identity.NewToken()
	if err != nil {
		return nil, err
	}
	params := dbgen.TokenInsertParams{
		TokenID: id, SecretSha256: hash[:], Principal: req.GetPrincipal(), Groups: noNil(req.GetGroups()),
		Permissions: int32(permissionSet(req.GetPermissions()).Including()), Sessions: noNil(req.GetSessions()),
		Description: req.GetDescription(), ServerAdmin: how.serverAdmin, CreatedBy: how.by,
		TTLMicros: req.GetTtl().AsDuration().Microseconds(),
	}
	if params.ExpiresAt, err = timeOf("expires_at", req.GetExpiresAt()); err != nil {
		return nil, err
	}
	var row dbgen.TokenInsertRow
	err = database.InTx(ctx, "create a token", func(ctx context.Context, tx pgx.Tx) error {
		q := dbgen.New(tx)
		var err error
		row, err = q.TokenInsert(ctx, params)
		if errors.Is(err, pgx.ErrNoRows) {
			return inThePast("expires_at")
		}
		if err != nil {
			return err
		}
		return insertAudit(ctx, q, []auditEvent{{
			kind: auditTokenCreated, principal: how.by, tokenID: id, method: how.method,
			detail: describeToken(tokenRow(row)) + shownWith(ctx),
		}})
	})
	if err != nil {
		return nil, err
	}
	return &setpointv1.CreateTokenResponse{Token: tokenRow(row).proto(), Secret: secret}, nil
}

// noNil is a list as a column takes it that is not null.
func noNil(texts []string) []string {
	if texts == nil {
		return []string{}
	}
	return texts
}

func checkToken(req *setpointv1.CreateTokenRequest) error {
	if _, err := identity.ParsePrincipal(req.GetPrincipal()); err != nil {
		return invalid("principal", "must be a kind other than group, a colon and a name, without spaces, like service:trainer-1; and not user:anonymous")
	}
	for i, group := range req.GetGroups() {
		if err := identity.ParseGroup(group); err != nil {
			return invalid(fmt.Sprintf("groups[%d]", i), strings.TrimPrefix(err.Error(), "group: "))
		}
	}
	for i, glob := range req.GetSessions() {
		if strings.Trim(glob, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-*") != "" {
			return invalid(fmt.Sprintf("sessions[%d]", i), "must be a glob over the ids of sessions, like team-*")
		}
	}
	return nil
}

// tokenRow is the one shape of the rows that the token queries return.
type tokenRow dbgen.TokenGetRow

func (r tokenRow) proto() *setpointv1.Token {
	token := &setpointv1.Token{
		TokenId: r.TokenID, Principal: r.Principal, Groups: r.Groups, Sessions: r.Sessions, Description: r.Description,
		ServerAdmin: r.ServerAdmin, CreatedBy: r.CreatedBy, CreatedAt: timestamp(r.CreatedAt), ExpiresAt: timestamp(r.ExpiresAt),
		RevokedAt: timestamp(r.RevokedAt),
	}
	if r.Permissions != nil {
		token.Permissions = permissionList(identity.Permissions(*r.Permissions))
	}
	if r.RevokedBy != nil {
		token.RevokedBy = *r.RevokedBy
	}
	return token
}

// describeToken says for people what a token is good for.
func describeToken(r tokenRow) string {
	parts := []string{"for " + r.Principal}
	if len(r.Groups) > 0 {
		parts = append(parts, "in "+strings.Join(r.Groups, ", "))
	}
	if r.ServerAdmin {
		parts = append(parts, "server admin")
	}
	if r.Permissions != nil {
		parts = append(parts, "narrowed to "+identity.Permissions(*r.Permissions).String())
	}
	if len(r.Sessions) > 0 {
		parts = append(parts, "in the sessions "+strings.Join(r.Sessions, ", "))
	}
	return strings.Join(parts, "; ")
}

// shownWith says which token the caller has shown, where an event's own is the token that it is about.
func shownWith(ctx context.Context) string {
	if id := identity.FromContext(ctx).Credentials; id != "" {
		return "; by " + id
	}
	return ""
}

// ListTokens returns a page of the tokens, by id.
func (s *Service) ListTokens(ctx context.Context, req *setpointv1.ListTokensRequest) (*setpointv1.ListTokensResponse, error) {
	if err := serverOnly(ctx); err != nil {
		return nil, err
	}
	filter := filterHash("tokens", req.GetPrincipal(), fmt.Sprint(req.GetIncludeEnded()))
	token, err := decodePageToken(req.GetPageToken(), filter)
	if err != nil {
		return nil, err
	}
	size := pageSize(req.GetPageSize())
	var rows []dbgen.TokenListRow
	err = s.db.Read(ctx, "list tokens", func(ctx context.Context, q *dbgen.Queries) error {
		rows, err = q.TokenList(ctx, dbgen.TokenListParams{
			After: token.Name, Principal: req.GetPrincipal(), IncludeEnded: req.GetIncludeEnded(), RowLimit: int32(size) + 1,
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	response := &setpointv1.ListTokensResponse{}
	if len(rows) > size {
		rows = rows[:size]
		response.NextPageToken = pageToken{Filter: filter, Name: rows[size-1].TokenID}.encode()
	}
	for _, row := range rows {
		response.Tokens = append(response.Tokens, tokenRow(row).proto())
	}
	return response, nil
}

// RevokeToken ends a token for good; one that was revoked stays as it is.
func (s *Service) RevokeToken(ctx context.Context, req *setpointv1.RevokeTokenRequest) (*setpointv1.Token, error) {
	if err := serverOnly(ctx); err != nil {
		return nil, err
	}
	by := identity.FromContext(ctx).Name
	var token tokenRow
	revoked := false
	err := s.db.InTx(ctx, "revoke a token", func(ctx context.Context, tx pgx.Tx) error {
		q := dbgen.New(tx)
		row, err := q.TokenRevoke(ctx, dbgen.TokenRevokeParams{TokenID: req.GetTokenId(), Principal: by})
		if revoked = err == nil; revoked {
			token = tokenRow(row)
			return insertAudit(ctx, q, []auditEvent{{
				kind: auditTokenRevoked, principal: by, tokenID: token.TokenID, detail: describeToken(token) + shownWith(ctx),
				method: methodName(setpointv1.TokenService_RevokeToken_FullMethodName),
			}})
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		old, err := q.TokenGet(ctx, dbgen.TokenGetParams{TokenID: req.GetTokenId()})
		token = tokenRow(old)
		return err
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, refuse(setpointv1.ErrorReason_TOKEN_NOT_FOUND, "no token "+req.GetTokenId(), "token_id", req.GetTokenId())
	case err != nil:
		return nil, err
	case revoked:
		s.events.TokenRevoked(ctx, token.TokenID, token.Principal, by)
	}
	return token.proto(), nil
}

// LookUpToken finds what is kept of a token by its id, with the clock that its end is judged by, whether it still counts or not.
// The second result tells whether there is such a token.
func (s *Service) LookUpToken(ctx context.Context, id string) (identity.TokenRecord, bool, error) {
	var row dbgen.TokenLookUpRow
	err := s.db.Read(ctx, "look a token up", func(ctx context.Context, q *dbgen.Queries) error {
		var err error
		row, err = q.TokenLookUp(ctx, dbgen.TokenLookUpParams{TokenID: id})
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return identity.TokenRecord{}, false, nil
	}
	if err != nil {
		return identity.TokenRecord{}, false, err
	}
	record := identity.TokenRecord{
		ID: row.TokenID, Principal: row.Principal, Groups: row.Groups, Sessions: row.Sessions, ServerAdmin: row.ServerAdmin,
		Revoked: row.Revoked, ReadAt: row.ReadAt.Time,
	}
	copy(record.SecretSHA256[:], row.SecretSha256)
	if row.Permissions != nil {
		record.Permissions = identity.Permissions(*row.Permissions)
	}
	if row.ExpiresAt.Valid {
		record.ExpiresAt = row.ExpiresAt.Time
	}
	return record, true, nil
}
