-- name: RequestInsert :exec
-- Records what became of a write. The caller holds the session's lock and has looked the request up. A record older
-- than a day counts as absent and is replaced.
insert into setpoint.requests (session_id, principal, request_id, body_hash, outcome, outlives_session, created_at)
values (@session_id, @principal, @request_id, @body_hash, @outcome, @outlives_session,
    coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()))
on conflict (session_id, principal, request_id) do update
set body_hash = excluded.body_hash, outcome = excluded.outcome, outlives_session = excluded.outlives_session,
    created_at = excluded.created_at;
