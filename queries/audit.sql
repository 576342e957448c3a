-- Audit events. What changes something is audited in its own transaction; denials come in batches.

-- name: AuditInsert :exec
-- Adds events, each once, however often it is given. @ages_us is how long ago they were. A variable that is named by its id gets
-- its name.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
event as materialized (
    select
        unnest(@session_ids::text[]) as session_id,
        unnest(@event_ids::text[]) as event_id,
        unnest(@ages_us::bigint[]) as age_us,
        unnest(@kinds::text[]) as kind,
        unnest(@principals::text[]) as principal,
        unnest(@permissions::text[]) as permission,
        unnest(@variables::text[]) as variable,
        unnest(@access_rules::jsonb[]) as access_rule,
        unnest(@token_ids::text[]) as token_id,
        unnest(@optimization_ids::text[]) as optimization_id,
        unnest(@methods::text[]) as method,
        unnest(@reasons::text[]) as reason,
        unnest(@details::text[]) as detail
)
insert into setpoint.audit_events (session_id, event_id, occurred_at, kind, principal, permission, variable, access_rule, token_id,
    optimization_id, method, reason, detail)
select e.session_id, e.event_id, clk.t - e.age_us * interval '1 microsecond', e.kind, e.principal, e.permission,
    coalesce(v.name, e.variable), nullif(e.access_rule, 'null'), e.token_id, e.optimization_id, e.method, e.reason, e.detail
from event e
cross join clk
left join setpoint.variables v on v.session_id = e.session_id and v.variable_id = e.variable
on conflict (session_id, event_id) do nothing;

-- name: AuditList :many
-- A page of the whole server's events, newest first, before @before. Filters that are empty or null let everything through.
select e.session_id, e.event_id, e.occurred_at, e.kind, e.principal, e.permission, e.variable, e.access_rule, e.token_id,
    e.optimization_id, e.method, e.reason, e.detail
from setpoint.audit_events e
where e.event_id < @before::text
    and (cardinality(@kinds::text[]) = 0 or e.kind = any(@kinds::text[]))
    and (@principal::text = '' or e.principal = @principal::text)
    and (@variable::text = '' or e.variable = @variable::text)
    and (sqlc.narg('since')::timestamptz is null or e.occurred_at >= sqlc.narg('since')::timestamptz)
    and (sqlc.narg('until')::timestamptz is null or e.occurred_at < sqlc.narg('until')::timestamptz)
order by e.event_id desc
limit @row_limit;

-- name: AuditListOfSession :many
-- As AuditList of one session, in its present life; the caller needs admin in all of it: access is what it has, in bits. No row: no
-- such session; anything is false: the caller may do nothing in it. An empty event_id, alone: no event.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
who as materialized (select @caller::text as principal, @groups::text as groups, @authority::int as authority),
ask as materialized (
    select @before::text as before, @kinds::text[] as kinds, @principal::text as principal, @variable::text as variable,
        sqlc.narg('since')::timestamptz as since, sqlc.narg('until')::timestamptz as until, @row_limit::int as row_limit
),
ses as materialized (
    select s.session_id, s.created_at, s.ttl_us, clk.t as read_at, a.mask, a.anything, a.reads_all
    from clk
    cross join who
    join setpoint.sessions s on s.session_id = @session_id and s.expires_at > clk.t
    cross join lateral setpoint.access_session(s.session_id, s.owner, who.principal, who.groups, who.authority, clk.t)
        as a(mask, anything, reads_all)
)
select
    ses.ttl_us::bigint as ttl_us,
    ses.read_at::timestamptz as read_at,
    ses.anything::boolean as anything,
    ses.reads_all::boolean as reads_all,
    ses.mask::int as access,
    coalesce(x.event_id, '')::text as event_id,
    x.occurred_at,
    coalesce(x.kind, '')::text as kind,
    coalesce(x.principal, '')::text as principal,
    coalesce(x.permission, '')::text as permission,
    coalesce(x.variable, '')::text as variable,
    x.access_rule,
    coalesce(x.token_id, '')::text as token_id,
    coalesce(x.optimization_id, '')::text as optimization_id,
    coalesce(x.method, '')::text as method,
    coalesce(x.reason, '')::text as reason,
    coalesce(x.detail, '')::text as detail
from ses
cross join ask
left join lateral (
    select e.*
    from setpoint.audit_events e
    where e.session_id = ses.session_id and e.event_id < ask.before and e.occurred_at >= ses.created_at
        and (cardinality(ask.kinds) = 0 or e.kind = any(ask.kinds))
        and (ask.principal = '' or e.principal = ask.principal)
        and (ask.variable = '' or e.variable = ask.variable)
        and (ask.since is null or e.occurred_at >= ask.since)
        and (ask.until is null or e.occurred_at < ask.until)
    order by e.event_id desc
    limit (select ask.row_limit from ask)
) x on ses.mask & 16 <> 0
order by x.event_id desc;
