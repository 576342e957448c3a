-- Variables: the current state, and the bytes of large values.

-- +goose Up
create table setpoint.variables (
    session_id          text collate "C" not null,
    variable_id         text collate "C" not null,
    name                text collate "C" not null,
    type                text collate "C" not null,
    -- The value's JSON form; of embeddings and tensors {dtype, shape, norm, sha256}.
    value               jsonb not null,
    -- The key of the bytes in payloads; null where the value is all in `value`.
    payload_sha256      bytea,
    value_bytes         bigint not null,
    constraints         jsonb not null default '{}',
    metadata            jsonb not null default '{}',
    version             bigint not null default 0,
    -- The session's revision at the latest change of this row.
    revision            bigint not null,
    -- The session's revision at the latest change of what values are checked against. A writer that checked a value
    -- against an older definition is told so, and checks again.
    definition_revision bigint not null,
    history_limit       bigint not null default 50,
    created_at          timestamptz not null,
    updated_at          timestamptz not null,
    updated_by          text collate "C" not null,
    constraint variables_pkey primary key (session_id, variable_id),
    constraint variables_session_fkey foreign key (session_id) references setpoint.sessions (session_id),
    constraint variables_version_not_negative check (version >= 0),
    constraint variables_history_limit_not_negative check (history_limit >= 0),
    constraint variables_type_known check (type in
        ('boolean', 'integer', 'float', 'string', 'choice', 'module', 'embedding', 'tensor', 'json')),
    constraint variables_payload_of_type check ((payload_sha256 is not null) = (type in ('embedding', 'tensor')))
) with (fillfactor = 85);

-- By another name of the same collation, so that a search by id cannot use this index, nor one by name the primary key:
-- where sessions are small on average the planner takes the two for equally good, and would read all of a large session.
create unique index variables_name_unique on setpoint.variables (session_id collate "POSIX", name);

create index variables_payloads on setpoint.variables (session_id, payload_sha256) where payload_sha256 is not null;

create table setpoint.payloads (
    session_id text collate "C" not null,
    sha256     bytea not null,
    size       bigint not null,
    data       bytea not null,
    constraint payloads_pkey primary key (session_id, sha256)
);
-- The bytes of numbers do not compress; external storage spares the attempt.
alter table setpoint.payloads alter column data set storage external;

comment on table setpoint.payloads is
    'Bytes of embeddings and tensors, once each per session; variables and history refer to them by hash.';

-- +goose Down
drop table setpoint.payloads;
drop table setpoint.variables;
