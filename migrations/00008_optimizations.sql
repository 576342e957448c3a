-- +goose Up
-- The lease is on the variables' rows: what a write asks is there. The record of the optimization outlives it.
alter table setpoint.variables
    -- Who has, or last had, the right to change the variable, with the greatest token that was ever granted for it.
    add column optimization_id    text collate "C",
    add column fencing_token      bigint not null default 0,
    add column lease_optimizer_id text,
    add column lease_started_at   timestamptz,
    -- The lease is over when the clock passes this; null where it was ended before. Not indexed: renewals stay HOT.
    add column lease_expires_at   timestamptz,
    add constraint variables_lease_has_holder check (lease_expires_at is null or
        optimization_id is not null and fencing_token > 0 and lease_optimizer_id is not null and lease_started_at is not null);

-- The number of the latest request for a lease, which is the order of the queue.
alter table setpoint.sessions add column queue_ticket bigint not null default 0;

alter table setpoint.history
    -- The optimization under whose lease the change was made, or whose lease changed, and the trial that was applied.
    add column optimization_id text collate "C",
    add column trial_number    bigint;

create table setpoint.optimizations (
    session_id        text collate "C" not null,
    optimization_id   text collate "C" not null,
    -- The life of the session that it belongs to: its created_revision.
    created_revision  bigint not null,
    state             text collate "C" not null,
    optimizer_id      text not null,
    optimizer_process text not null,
    -- Names, sorted.
    variables         text[] not null,
    conflict          text collate "C" not null,
    priority          integer not null,
    ttl_us            bigint not null,
    progress_us       bigint,
    objective_metric  text collate "C",
    minimizes         boolean not null default false,
    config            jsonb,
    started_by        text collate "C" not null,
    requested_at      timestamptz not null,
    fencing_token     bigint not null default 0,
    started_at        timestamptz,
    -- What may end it, each if it is not null: not being renewed, not reporting, being preempted, having waited enough.
    renewed_until     timestamptz not null,
    progress_until    timestamptz,
    preempt_until     timestamptz,
    wait_until        timestamptz,
    -- It is over when the clock passes this, whether or not anybody has written so; and this is what it is then, and why.
    expires_at        timestamptz not null
        generated always as (least(renewed_until, progress_until, preempt_until, wait_until)) stored,
    ends_as           text collate "C" not null generated always as (case
        when preempt_until <= least(renewed_until, progress_until) then 'preempted'
        when wait_until <= renewed_until then 'cancelled'
        else 'expired'
    end) stored,
    ends_because      text not null generated always as (case
        when preempt_until <= least(renewed_until, progress_until) then 'preempted by ' || preempted_by
        when wait_until <= renewed_until then 'max_wait was over'
        when state = 'waiting' then 'its stay in the queue was not renewed in time'
        when progress_until <= renewed_until then 'no progress was reported in time'
        else 'the lease was not renewed in time'
    end) stored,
    preempted_by      text collate "C",
    -- Of one that waits to preempt: until when those who have its variables may go on.
    grace_until       timestamptz,
    ended_at          timestamptz,
    end_reason        text not null default '',
    -- The optimization that had one of the variables before and left a checkpoint.
    inherits_id       text collate "C",
    trial_count       bigint not null default 0,
    late_count        bigint not null default 0,
    last_number       bigint not null default 0,
    last_report_at    timestamptz,
    best_number       bigint,
    best_objective    float8,
    checkpoint        bytea,
    checkpoint_number bigint,
    checkpoint_at     timestamptz,
    constraint optimizations_pkey primary key (session_id, optimization_id),
    constraint optimizations_state_known check (state in
        ('waiting', 'active', 'preempting', 'completed', 'failed', 'cancelled', 'expired', 'preempted')),
    constraint optimizations_ended_for_good check ((ended_at is null) = (state in ('waiting', 'active', 'preempting'))),
    constraint optimizations_token_of_lease check ((fencing_token > 0) = (started_at is not null)),
    constraint optimizations_preempted_by_one check ((preempt_until is null) = (preempted_by is null)),
    constraint optimizations_best_whole check ((best_number is null) = (best_objective is null))
) with (fillfactor = 70);
alter table setpoint.optimizations alter column checkpoint set storage external;

create index optimizations_open on setpoint.optimizations (session_id, optimization_id) where ended_at is null;

comment on table setpoint.optimizations is
    'Who asked to change which variables, and what became of it. A row is not changed when its time passes: expires_at tells.';

create table setpoint.optimization_variables (
    session_id      text collate "C" not null,
    optimization_id text collate "C" not null,
    variable_id     text collate "C" not null,
    -- As they were when it was asked for.
    name            text collate "C" not null,
    type            text collate "C" not null,
    constraint optimization_variables_pkey primary key (session_id, optimization_id, variable_id)
);
create index optimization_variables_by_variable
    on setpoint.optimization_variables (session_id, variable_id, optimization_id);

-- One row for each variable that an optimization waits for. Who has the lower rank goes first, and then who has the lower
-- ticket.
create table setpoint.optimization_waiters (
    session_id      text collate "C" not null,
    optimization_id text collate "C" not null,
    variable_id     text collate "C" not null,
    -- 0 of those who wait; of those who preempt less than 0, and the less the higher their priority.
    rank            bigint not null,
    ticket          bigint not null,
    constraint optimization_waiters_pkey primary key (session_id, optimization_id, variable_id)
);
create index optimization_waiters_by_variable on setpoint.optimization_waiters (session_id, variable_id, rank, ticket);

create table setpoint.trials (
    session_id      text collate "C" not null,
    optimization_id text collate "C" not null,
    number          bigint not null,
    -- -1 is the trial's result; others are intermediate reports.
    step            bigint not null,
    -- By the names of the variables: {type, value}, with values as in the table of variables.
    vals            jsonb not null,
    -- The values whose bytes are not in vals, as a Trial message; null where there are none.
    payloads        bytea,
    metrics         jsonb not null,
    note            text not null,
    applied         boolean not null,
    late            boolean not null,
    reported_by     text collate "C" not null,
    reported_at     timestamptz not null,
    -- How large the row is, so that a page can end without reading what it leaves out.
    bytes           bigint not null,
    constraint trials_pkey primary key (session_id, optimization_id, number, step)
);

create index trials_results on setpoint.trials (session_id, optimization_id, number) where step = -1;

-- The metrics of trials that count, but NaN: indexed both ways, so that the best of a million are found by looking at them
-- alone, and of equally good ones the first.
create table setpoint.trial_metrics (
    session_id      text collate "C" not null,
    optimization_id text collate "C" not null,
    metric          text collate "C" not null,
    value           float8 not null,
    number          bigint not null,
    constraint trial_metrics_pkey primary key (session_id, optimization_id, metric, value, number)
);
create index trial_metrics_greatest
    on setpoint.trial_metrics (session_id, optimization_id, metric, value desc, number);

-- The fence, in one place: why a write under the presented lease (an empty id: none) is refused on a variable; null if it is not.
-- +goose StatementBegin
create function setpoint.lease_refusal(
    holder_id text, holder_token bigint, holder_until timestamptz, at timestamptz, lease_id text, lease_token bigint
) returns text language sql immutable parallel safe as $$
    select case
        when lease_id = '' and holder_until > at then 'ALREADY_OPTIMIZING'
        when lease_id <> '' and (holder_until is null or holder_until <= at or holder_id <> lease_id or holder_token <> lease_token)
            then 'LEASE_LOST'
    end
$$;
-- +goose StatementEnd

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
    h.expression,
    h.optimization_id,
    h.trial_number
from setpoint.history h;

comment on column setpoint_analytics.variable_history.change is 'registered, set, rolled_back, updated, deleted, recomputed, stale, stale_cleared, dependency_added, dependency_removed, lease_granted, lease_preempting, lease_kept or lease_ended; later releases add kinds.';
comment on column setpoint_analytics.variable_history.optimization_id is 'The optimization under whose lease the change was made, or whose lease changed; else null.';
comment on column setpoint_analytics.variable_history.trial_number is 'The trial whose values the change applied; else null.';

create view setpoint_analytics.optimizations with (security_barrier) as
select
    o.session_id,
    o.optimization_id,
    case when o.ended_at is null and o.expires_at <= clock_timestamp() then o.ends_as else o.state end as state,
    o.optimizer_id,
    o.optimizer_process,
    o.variables,
    o.priority,
    o.objective_metric,
    case when o.objective_metric is not null then case when o.minimizes then 'minimize' else 'maximize' end end as direction,
    o.config,
    o.started_by,
    o.requested_at,
    o.started_at,
    case when o.ended_at is null and o.expires_at <= clock_timestamp() then o.expires_at else o.ended_at end as ended_at,
    case when o.ended_at is null and o.expires_at <= clock_timestamp() then o.ends_because else o.end_reason end as end_reason,
    o.trial_count,
    o.late_count,
    o.last_report_at,
    o.best_number as best_trial,
    o.best_objective
from setpoint.optimizations o;

comment on view setpoint_analytics.optimizations is
    'Every optimization that is still kept, one row each. (session_id, optimization_id) is the key.';
comment on column setpoint_analytics.optimizations.session_id is 'The session. Ids may be used again by a later session.';
comment on column setpoint_analytics.optimizations.optimization_id is 'The optimization''s id, never used again.';
comment on column setpoint_analytics.optimizations.state is 'waiting, active, preempting, completed, failed, cancelled, expired or preempted, by the clock.';
comment on column setpoint_analytics.optimizations.optimizer_id is 'Who tunes, in the caller''s words.';
comment on column setpoint_analytics.optimizations.optimizer_process is 'Where it runs, in the caller''s words.';
comment on column setpoint_analytics.optimizations.variables is 'The names of its variables, sorted.';
comment on column setpoint_analytics.optimizations.priority is 'Its priority.';
comment on column setpoint_analytics.optimizations.objective_metric is 'The metric that it is about; null if there is none.';
comment on column setpoint_analytics.optimizations.direction is 'maximize or minimize; null without an objective.';
comment on column setpoint_analytics.optimizations.config is 'What it was configured with; null if nothing.';
comment on column setpoint_analytics.optimizations.started_by is 'The principal that started it.';
comment on column setpoint_analytics.optimizations.requested_at is 'When it was asked for.';
comment on column setpoint_analytics.optimizations.started_at is 'When it got the lease; null if it never did.';
comment on column setpoint_analytics.optimizations.ended_at is 'When it ended; null while it is open.';
comment on column setpoint_analytics.optimizations.end_reason is 'Why it ended.';
comment on column setpoint_analytics.optimizations.trial_count is 'How many trials count.';
comment on column setpoint_analytics.optimizations.late_count is 'How many reports came after the lease had ended.';
comment on column setpoint_analytics.optimizations.last_report_at is 'When it last reported.';
comment on column setpoint_analytics.optimizations.best_trial is 'The number of the best trial; null if none counts.';
comment on column setpoint_analytics.optimizations.best_objective is 'The best trial''s value of the objective.';

create view setpoint_analytics.trials with (security_barrier) as
select
    t.session_id,
    t.optimization_id,
    t.number,
    case when t.step >= 0 then t.step end as step,
    t.vals as variable_values,
    t.metrics,
    t.note,
    t.applied,
    t.late,
    t.reported_by,
    t.reported_at
from setpoint.trials t;

comment on view setpoint_analytics.trials is
    'Every report of a trial that is still kept, one row each: its result, where step is null, and its intermediate reports.';
comment on column setpoint_analytics.trials.session_id is 'The session.';
comment on column setpoint_analytics.trials.optimization_id is 'The optimization.';
comment on column setpoint_analytics.trials.number is 'The trial''s number in the optimization.';
comment on column setpoint_analytics.trials.step is 'The step of an intermediate report; null of the result.';
comment on column setpoint_analytics.trials.variable_values is 'By variable: {type, value}; of embeddings and tensors the value is {dtype, shape, norm, sha256}.';
comment on column setpoint_analytics.trials.metrics is 'By metric: a number, or the text NaN, Infinity or -Infinity. (metrics ->> ''loss'')::float8 reads all of them.';
comment on column setpoint_analytics.trials.note is 'In the optimizer''s words.';
comment on column setpoint_analytics.trials.applied is 'Whether the values became new versions.';
comment on column setpoint_analytics.trials.late is 'Whether it came after the lease had ended; then it does not count.';
comment on column setpoint_analytics.trials.reported_by is 'The principal.';
comment on column setpoint_analytics.trials.reported_at is 'The database''s clock.';

-- +goose StatementBegin
do $$
begin
    grant select on all tables in schema setpoint_analytics to setpoint_analyst;
exception
    when insufficient_privilege or undefined_object then
        raise notice 'role setpoint_analyst was not granted: ask an administrator of the cluster';
end
$$;
-- +goose StatementEnd

-- +goose Down
drop view setpoint_analytics.trials;
drop view setpoint_analytics.optimizations;
drop view setpoint_analytics.variable_history;

drop function setpoint.lease_refusal;
drop table setpoint.trial_metrics;
drop table setpoint.trials;
drop table setpoint.optimization_waiters;
drop table setpoint.optimization_variables;
drop table setpoint.optimizations;

alter table setpoint.history
    drop column optimization_id,
    drop column trial_number;

alter table setpoint.sessions drop column queue_ticket;

alter table setpoint.variables
    drop column optimization_id,
    drop column fencing_token,
    drop column lease_optimizer_id,
    drop column lease_started_at,
    drop column lease_expires_at;

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
    h.changed_at,
    h.cause_revision as caused_by_revision,
    h.cause as caused_by_variable,
    h.error,
    h.dependency,
    h.expression
from setpoint.history h;

comment on view setpoint_analytics.variable_history is
    'Every change of every session that is still kept, one row each. (session_id, revision) is the key.';
comment on column setpoint_analytics.variable_history.session_id is 'The session. Ids may be used again by a later session, which goes on with the revisions.';
comment on column setpoint_analytics.variable_history.revision is 'The session''s revision: no gaps, in commit order.';
comment on column setpoint_analytics.variable_history.variable_id is 'The variable''s id, unlike its name never used again.';
comment on column setpoint_analytics.variable_history.variable is 'The variable''s name.';
comment on column setpoint_analytics.variable_history.type is 'boolean, integer, float, string, choice, module, embedding, tensor or json.';
comment on column setpoint_analytics.variable_history.change is 'registered, set, rolled_back, updated, deleted, recomputed, stale, stale_cleared, dependency_added or dependency_removed; later releases add kinds.';
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
comment on column setpoint_analytics.variable_history.caused_by_revision is 'The revision of the change that this one follows from; null where a caller made it.';
comment on column setpoint_analytics.variable_history.caused_by_variable is 'The name of the variable whose change this one follows from; null where a caller made it.';
comment on column setpoint_analytics.variable_history.error is 'Of a derived variable that became stale: why its value could not be computed; else empty.';
comment on column setpoint_analytics.variable_history.dependency is 'The variable that this one now depends on, or no longer does: of dependency_added and dependency_removed.';
comment on column setpoint_analytics.variable_history.expression is 'The expression that a registration or an update gave a derived variable, empty where an update took it away; else null.';

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
