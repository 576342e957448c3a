-- Dependencies: which variables follow which, and what has not been followed yet.

-- +goose Up
create table setpoint.dependencies (
    session_id    text collate "C" not null,
    -- Depends on the other.
    dependent_id  text collate "C" not null,
    dependency_id text collate "C" not null,
    -- The session's revision at which it was added.
    revision      bigint not null,
    created_at    timestamptz not null,
    created_by    text collate "C" not null,
    constraint dependencies_pkey primary key (session_id, dependent_id, dependency_id),
    constraint dependencies_dependent_fkey foreign key (session_id, dependent_id)
        references setpoint.variables (session_id, variable_id),
    constraint dependencies_dependency_fkey foreign key (session_id, dependency_id)
        references setpoint.variables (session_id, variable_id),
    constraint dependencies_not_of_itself check (dependent_id <> dependency_id)
);

-- By another name of the same collation, so that a search one way cannot use the index of the other, and read all of a
-- session (see variables_name_unique).
create index dependencies_by_dependency on setpoint.dependencies (session_id collate "POSIX", dependency_id, dependent_id);

alter table setpoint.variables
    -- The CEL expression of a derived variable; empty of the others.
    add column expression       text not null default '',
    add column strict           boolean not null default false,
    -- Whether there are edges, so that reads and writes of a variable without any need not look.
    add column has_dependents   boolean not null default false,
    add column has_dependencies boolean not null default false,
    -- The change that made the variable stale; null while it is not.
    add column stale_revision   bigint,
    add column stale_cause_id   text collate "C",
    add column stale_cause      text collate "C",
    add column stale_error      text,
    add constraint variables_stale_whole check (
        (stale_revision is null) = (stale_cause_id is null) and (stale_revision is null) = (stale_cause is null)
        and (stale_revision is null) = (stale_error is null));

alter table setpoint.history
    -- The change that this one follows from: its revision, and its variable; null where a caller made it.
    add column cause_revision    bigint,
    add column cause_id          text collate "C",
    add column cause             text collate "C",
    -- Of what follows: the first and the last revision of the transaction. Nobody saw the session in between.
    add column transaction_first bigint,
    add column transaction_last  bigint,
    -- Why the value of a derived variable could not be computed.
    add column error             text not null default '',
    -- The other end of an edge that came or went.
    add column dependency_id     text collate "C",
    add column dependency        text collate "C",
    -- The expression that a registration or an update gave, empty where an update took it away; null of the others.
    add column expression        text,
    -- The rows that are there are looked at in the next migration, while writers go on.
    add constraint history_cause_whole check (
        (cause_revision is null) = (cause_id is null) and (cause_revision is null) = (cause is null)) not valid,
    add constraint history_transaction_whole check (
        (cause_revision is null) = (transaction_first is null) and (cause_revision is null) = (transaction_last is null))
        not valid;

create or replace view setpoint_analytics.variable_history with (security_barrier) as
select
    h.session_id,
    h.revision,
    h.variable_id,
    h.name as variable,
    h.type,
    h.change,
    h.version,
    case when h.type = 'boolean' then (h.value #>> '{}')::boolean end as boolean_value,
    case when h.type = 'integer' then (h.value #>> '{}')::numeric end as integer_value,
    case when h.type = 'float' then (h.value #>> '{}')::float8 end as float_value,
    case when h.type in ('string', 'choice', 'module') then h.value #>> '{}' end as text_value,
    h.value as json_value,
    h.value_bytes,
    h.metadata,
    h.reason,
    h.changed_by,
    h.changed_at,
    h.cause_revision as caused_by_revision,
    h.cause as caused_by_variable,
    h.error,
    h.dependency,
    h.expression
from setpoint.history h;

comment on column setpoint_analytics.variable_history.change is 'registered, set, rolled_back, updated, deleted, recomputed, stale, stale_cleared, dependency_added or dependency_removed; later releases add kinds.';
comment on column setpoint_analytics.variable_history.caused_by_revision is 'The revision of the change that this one follows from; null where a caller made it.';
comment on column setpoint_analytics.variable_history.caused_by_variable is 'The name of the variable whose change this one follows from; null where a caller made it.';
comment on column setpoint_analytics.variable_history.error is 'Of a derived variable that became stale: why its value could not be computed; else empty.';
comment on column setpoint_analytics.variable_history.dependency is 'The variable that this one now depends on, or no longer does: of dependency_added and dependency_removed.';
comment on column setpoint_analytics.variable_history.expression is 'The expression that a registration or an update gave a derived variable, empty where an update took it away; else null.';

-- +goose Down
drop view setpoint_analytics.variable_history;

alter table setpoint.history
    drop column cause_revision,
    drop column cause_id,
    drop column cause,
    drop column transaction_first,
    drop column transaction_last,
    drop column error,
    drop column dependency_id,
    drop column dependency,
    drop column expression;

drop table setpoint.dependencies;

alter table setpoint.variables
    drop column expression,
    drop column strict,
    drop column has_dependents,
    drop column has_dependencies,
    drop column stale_revision,
    drop column stale_cause_id,
    drop column stale_cause,
    drop column stale_error;

create view setpoint_analytics.variable_history with (security_barrier) as
select
    h.session_id,
    h.revision,
    h.variable_id,
    h.name as variable,
    h.type,
    h.change,
    h.version,
    case when h.type = 'boolean' then (h.value #>> '{}')::boolean end as boolean_value,
    case when h.type = 'integer' then (h.value #>> '{}')::numeric end as integer_value,
    case when h.type = 'float' then (h.value #>> '{}')::float8 end as float_value,
    case when h.type in ('string', 'choice', 'module') then h.value #>> '{}' end as text_value,
    h.value as json_value,
    h.value_bytes,
    h.metadata,
    h.reason,
    h.changed_by,
    h.changed_at
from setpoint.history h;

comment on view setpoint_analytics.variable_history is
    'Every change of every session that is still kept, one row each. (session_id, revision) is the key.';
comment on column setpoint_analytics.variable_history.session_id is 'The session. Ids may be used again by a later session, which goes on with the revisions.';
comment on column setpoint_analytics.variable_history.revision is 'The session''s revision: no gaps, in commit order.';
comment on column setpoint_analytics.variable_history.variable_id is 'The variable''s id, unlike its name never used again.';
comment on column setpoint_analytics.variable_history.variable is 'The variable''s name.';
comment on column setpoint_analytics.variable_history.type is 'boolean, integer, float, string, choice, module, embedding, tensor or json.';
comment on column setpoint_analytics.variable_history.change is 'registered, set, rolled_back, updated or deleted; later releases add kinds.';
comment on column setpoint_analytics.variable_history.version is 'The version that this change made; null where the value did not change.';
comment on column setpoint_analytics.variable_history.boolean_value is 'The value of a boolean; null for other types and where the value did not change.';
comment on column setpoint_analytics.variable_history.integer_value is 'The value of an integer (int64), as numeric; null otherwise.';
comment on column setpoint_analytics.variable_history.float_value is 'The value of a float, NaN and infinities included; null otherwise.';
comment on column setpoint_analytics.variable_history.text_value is 'The value of a string, choice or module; null otherwise.';
comment on column setpoint_analytics.variable_history.json_value is 'The value''s JSON form, of every type; of embeddings and tensors {dtype, shape, norm, sha256}. Null where the value did not change.';
comment on column setpoint_analytics.variable_history.value_bytes is 'The size that counts against the value limit, in bytes.';
comment on column setpoint_analytics.variable_history.metadata is 'The metadata of the variable after this change: a flat object of texts.';
comment on column setpoint_analytics.variable_history.reason is 'Why, in the caller''s words; empty where none was given.';
comment on column setpoint_analytics.variable_history.changed_by is 'The principal, for example user:ada or service:trainer-1.';
comment on column setpoint_analytics.variable_history.changed_at is 'The database''s clock; never runs back within a session.';

-- +goose StatementBegin
do $$
begin
    grant select on setpoint_analytics.variable_history to setpoint_analyst;
exception
    when insufficient_privilege or undefined_object then
        raise notice 'role setpoint_analyst was not granted: ask an administrator of the cluster';
end
$$;
-- +goose StatementEnd
