-- name: RequestInsert :exec
-- Records what became of a write. The caller holds the session's lock and has looked the request up. A record older
-- than a day counts as absent and is replaced.
insert into setpoint.requests (session_id, principal, request_id, body_hash, outcome, created_at)
values (@session_id, @principal, @request_id, @body_hash, @outcome,
    coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()))
on conflict (session_id, principal, request_id) do update
set body_hash = excluded.body_hash, outcome = excluded.outcome, created_at = excluded.created_at;
