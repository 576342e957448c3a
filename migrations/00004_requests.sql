-- Requests: what became of writes that carried a request_id, so that a repeat is answered and not done again.

-- +goose Up
create table setpoint.requests (
    session_id text collate "C" not null,
    principal  text collate "C" not null,
    request_id text collate "C" not null,
    -- SHA-256 over the RPC's name and the request.
    body_hash  bytea not null,
    -- Success or refusal, in the form in which the RPC reads it back.
    outcome    jsonb not null,
    created_at timestamptz not null,
    -- Records of what begins and ends a session hold for the next life of its id too.
    outlives_session boolean not null default false,
    constraint requests_pkey primary key (session_id, principal, request_id)
);
-- Rows come in the order of created_at and never change: a BRIN finds those to prune and costs a write nothing.
create index requests_by_age on setpoint.requests using brin (created_at) with (autosummarize = on);

-- +goose Down
drop table setpoint.requests;
