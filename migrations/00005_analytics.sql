-- Analytics: stable, documented views for people who ask in SQL. Nothing outside this schema is promised to them.

-- +goose Up
create schema setpoint_analytics;

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

comment on schema setpoint_analytics is 'Stable read-only views over Setpoint for analysts.';
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

-- Roles belong to the whole cluster: another database may have made it, and this one may not be allowed to.
-- +goose StatementBegin
do $$
begin
    if not exists (select from pg_roles where rolname = 'setpoint_analyst') then
        create role setpoint_analyst nologin;
    end if;
    grant usage on schema setpoint_analytics to setpoint_analyst;
    grant select on all tables in schema setpoint_analytics to setpoint_analyst;
exception
    when insufficient_privilege then
        raise notice 'role setpoint_analyst was not created or granted: ask an administrator of the cluster';
    when duplicate_object or unique_violation then
        grant usage on schema setpoint_analytics to setpoint_analyst;
        grant select on all tables in schema setpoint_analytics to setpoint_analyst;
end
$$;
-- +goose StatementEnd

-- +goose Down
drop view setpoint_analytics.variable_history;
drop schema setpoint_analytics;
