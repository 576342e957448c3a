-- Tokens: no session is involved. What their bearers show is kept as a hash.

-- name: TokenInsert :one
-- Adds a token. No row: it would have ended already. With a @ttl_us of 0 it ends at @expires_at, if ever.
-- @sqlc-vet-disable session-id-everywhere
with clk as materialized (
    select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t, @ttl_us::bigint as ttl_us,
        sqlc.narg('expires_at')::timestamptz as until
),
life as materialized (
    select clk.t, case when clk.ttl_us > 0 then clk.t + clk.ttl_us * interval '1 microsecond' else clk.until end as expires_at
    from clk
)
insert into setpoint.tokens (token_id, secret_sha256, principal, groups, permissions, sessions, description, server_admin,
    created_by, created_at, expires_at)
select @token_id, @secret_sha256, @principal, @groups::text[], nullif(@permissions::int, 0), @sessions::text[], @description,
    @server_admin, @created_by, life.t, life.expires_at
from life
where life.expires_at is null or life.expires_at > life.t
returning token_id, principal, groups, permissions, sessions, description, server_admin, created_by, created_at, expires_at,
    revoked_at, revoked_by;

-- name: TokenGet :one
-- @sqlc-vet-disable session-id-everywhere
select t.token_id, t.principal, t.groups, t.permissions, t.sessions, t.description, t.server_admin, t.created_by, t.created_at,
    t.expires_at, t.revoked_at, t.revoked_by
from setpoint.tokens t
where t.token_id = @token_id;

-- name: TokenList :many
-- A page by id, after @after. An empty @principal is everybody.
-- @sqlc-vet-disable session-id-everywhere
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t)
select t.token_id, t.principal, t.groups, t.permissions, t.sessions, t.description, t.server_admin, t.created_by, t.created_at,
    t.expires_at, t.revoked_at, t.revoked_by
from setpoint.tokens t
cross join clk
where t.token_id > @after and (@principal::text = '' or t.principal = @principal::text)
    and (@include_ended::boolean or (t.revoked_at is null and (t.expires_at is null or t.expires_at > clk.t)))
order by t.token_id
limit @row_limit;

-- name: TokenRevoke :one
-- Ends a token. No row: there is none, or it was revoked before.
-- @sqlc-vet-disable session-id-everywhere
update setpoint.tokens t
set revoked_at = coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()), revoked_by = @principal::text
where t.token_id = @token_id and t.revoked_at is null
returning t.token_id, t.principal, t.groups, t.permissions, t.sessions, t.description, t.server_admin, t.created_by, t.created_at,
    t.expires_at, t.revoked_at, t.revoked_by;

-- name: TokenLookUp :one
-- What is needed to know a token's bearer, and the clock that its end is judged by.
-- @sqlc-vet-disable session-id-everywhere
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t)
select t.token_id, t.secret_sha256, t.principal, t.groups, t.permissions, t.sessions, t.server_admin, t.expires_at,
    (t.revoked_at is not null)::boolean as revoked, clk.t::timestamptz as read_at
from setpoint.tokens t
cross join clk
where t.token_id = @token_id;
