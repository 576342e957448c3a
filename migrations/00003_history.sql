-- History: every change, append-only.

-- +goose Up
create table setpoint.history (
    session_id     text collate "C" not null,
    revision       bigint not null,
    variable_id    text collate "C" not null,
    name           text collate "C" not null,
    type           text collate "C" not null,
    change         text collate "C" not null,
    -- The variable's version that this change made; null where its value did not change.
    version        bigint,
    value          jsonb,
    payload_sha256 bytea,
    value_bytes    bigint not null default 0,
    -- The variable's metadata after this change, whole, whatever the change.
    metadata       jsonb not null default '{}',
    reason         text not null default '',
    -- Of a deletion: the oldest version that the API goes on listing.
    oldest_version bigint,
    changed_by     text collate "C" not null,
    changed_at     timestamptz not null,
    constraint history_pkey primary key (session_id, revision),
    constraint history_value_of_version check ((version is null) = (value is null))
);

-- By another name of the same collation, so that what asks for a variable's versions cannot use the primary key, and read
-- all of a session (see variables_name_unique).
create index history_by_version on setpoint.history (session_id collate "POSIX", variable_id, version, revision);

-- What was deleted is no longer in variables: snapshots and the sweeper find it here. Only deletions pay for these.
create index history_deletions on setpoint.history (session_id, variable_id, revision) where change = 'deleted';
-- Whether a payload is still referred to; only embeddings and tensors pay for it.
create index history_payloads on setpoint.history (session_id, payload_sha256) where payload_sha256 is not null;

-- +goose Down
drop table setpoint.history;
