-- Sessions: the namespaces of variables, and the one row that every writer of a session locks first.

-- +goose Up
create schema if not exists setpoint;

create table setpoint.sessions (
    session_id       text collate "C" not null,
    owner            text collate "C" not null,
    -- How long the session outlives its last call, in microseconds; 0 never ends.
    ttl_us           bigint not null,
    -- Gone at this instant whether or not the sweeper has been; infinity never ends.
    expires_at       timestamptz not null,
    metadata         jsonb not null default '{}',
    -- The revision of the latest history row, and its time.
    revision         bigint not null default 0,
    changed_at       timestamptz not null,
    created_at       timestamptz not null,
    -- The revision at which this life of the id began: the API shows no history at or below it.
    created_revision bigint not null default 0,
    -- When the sweeper had removed everything but history; null while it has not.
    ended_at         timestamptz,
    variable_count   bigint not null default 0,
    -- The highest deleted revision: a watch cannot start at or below it.
    history_floor    bigint not null default 0,
    -- The oldest revision at which every value is known: a snapshot cannot be older.
    snapshot_floor   bigint not null default 0,
    -- The time of that floor, where the row that had it is gone.
    snapshot_floor_at timestamptz not null default '-infinity',
    constraint sessions_pkey primary key (session_id),
    constraint sessions_ttl_not_negative check (ttl_us >= 0),
    constraint sessions_variable_count_not_negative check (variable_count >= 0)
) with (fillfactor = 50);

-- Where the sweeper looks for sessions that have expired.
create index sessions_not_ended on setpoint.sessions (session_id) where ended_at is null;

comment on table setpoint.sessions is
    'One row per session id ever used. No index on revision or expires_at: each write changes them, and stays HOT.';

-- +goose Down
drop table setpoint.sessions;
drop schema setpoint;
