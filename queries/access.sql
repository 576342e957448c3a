-- Rules of access. What they decide is in setpoint.access and its sisters. Whoever changes rules holds the session's lock, by an
-- earlier statement.

-- name: AccessRuleAdd :one
-- Adds rules, each with a row of history: for one variable, or with an empty @variable_id for all of the session. Returns the
-- revision of the last. An empty pattern: the subject is exact.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
rule as materialized (
    select r.*, row_number() over () as place
    from (
        select
            unnest(@rule_ids::text[]) as rule_id,
            unnest(@subjects::text[]) as subject,
            unnest(@patterns::text[]) as pattern,
            unnest(@permissions::int[]) as permissions,
            unnest(@reaches::int[]) as reach,
            unnest(@allows::boolean[]) as allows,
            unnest(@priorities::int[]) as priority,
            unnest(@expiries::timestamptz[]) as expires_at,
            unnest(@records::jsonb[]) as record
    ) r
),
adv as (
    update setpoint.sessions s
    set revision = s.revision + cardinality(@rule_ids::text[]), changed_at = greatest(clk.t, s.changed_at),
        expires_at = case when s.ttl_us = 0 then 'infinity' else clk.t + s.ttl_us * interval '1 microsecond' end
    from clk
    where s.session_id = @session_id
    returning s.revision, s.changed_at
),
placed as materialized (
    select r.*, adv.revision - cardinality(@rule_ids::text[]) + r.place as revision, adv.changed_at
    from rule r cross join adv
),
added as (
    insert into setpoint.access_rules (session_id, rule_id, variable_id, subject, pattern, permissions, reach, allows, priority,
        expires_at, granted_by, granted_at, revision)
    select @session_id, r.rule_id, @variable_id, r.subject, nullif(r.pattern, ''), r.permissions, r.reach, r.allows, r.priority,
        r.expires_at, @principal, r.changed_at, r.revision
    from placed r
),
hist as (
    insert into setpoint.history (session_id, revision, variable_id, name, type, change, metadata, reason, changed_by, changed_at,
        access_rule)
    select @session_id, r.revision, @variable_id, coalesce(v.name, ''), coalesce(v.type, ''), 'access_rule_added',
        coalesce(v.metadata, '{}'), @reason, @principal, r.changed_at, r.record
    from placed r
    left join setpoint.variables v on v.session_id = @session_id and v.variable_id = @variable_id
)
select adv.revision::bigint as revision, adv.changed_at::timestamptz as changed_at from adv;

-- name: AccessRuleRemove :one
-- Removes rules that there are, each with a row of history; none, too. Returns the session's revision after.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
rule as materialized (
    select r.*, row_number() over () as place
    from (select unnest(@rule_ids::text[]) as rule_id, unnest(@records::jsonb[]) as record) r
),
adv as (
    update setpoint.sessions s
    set revision = s.revision + cardinality(@rule_ids::text[]),
        changed_at = case when cardinality(@rule_ids::text[]) = 0 then s.changed_at else greatest(clk.t, s.changed_at) end,
        expires_at = case when s.ttl_us = 0 then 'infinity' else clk.t + s.ttl_us * interval '1 microsecond' end
    from clk
    where s.session_id = @session_id
    returning s.revision, s.changed_at
),
gone as (
    delete from setpoint.access_rules x
    where x.session_id = @session_id and x.rule_id = any(@rule_ids::text[])
    returning x.rule_id, x.variable_id
),
hist as (
    insert into setpoint.history (session_id, revision, variable_id, name, type, change, metadata, reason, changed_by, changed_at,
        access_rule)
    select @session_id, adv.revision - cardinality(@rule_ids::text[]) + r.place, g.variable_id, coalesce(v.name, d.name, ''),
        coalesce(v.type, d.type, ''), 'access_rule_removed', coalesce(v.metadata, d.metadata, '{}'), @reason, @principal,
        adv.changed_at, r.record
    from gone g
    join rule r on r.rule_id = g.rule_id
    cross join adv
    left join setpoint.variables v on v.session_id = @session_id and v.variable_id = g.variable_id
    left join lateral (
        -- Of a variable that was deleted, as it was.
        select h.name, h.type, h.metadata
        from setpoint.history h
        where v.variable_id is null and h.session_id = @session_id and h.variable_id = g.variable_id and h.change = 'deleted'
        limit 1
    ) d on true
)
select adv.revision::bigint as revision, adv.changed_at::timestamptz as changed_at from adv;

-- name: AccessRuleOf :many
-- All rules of one variable, by id.
select x.rule_id, x.subject, x.permissions, x.allows, x.priority, x.expires_at
from setpoint.access_rules x
where x.session_id = @session_id and x.variable_id = @variable_id
order by x.rule_id;

-- name: AccessRuleCount :one
-- How many rules a session has, expired ones included, and how many of them have a wildcard and are for one variable, or with an empty
-- @variable_id for all of the session.
select count(*) as rules, count(*) filter (where x.pattern is not null and x.variable_id = @variable_id) as wildcards
from setpoint.access_rules x
where x.session_id = @session_id;

-- name: AccessRuleForget :exec
-- Removes a session's expired rules: they decide nothing.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t)
delete from setpoint.access_rules x
where x.session_id = @session_id and x.expires_at <= (select clk.t from clk);

-- name: AccessRuleGet :one
-- A rule, and what the caller may do with what it is for, in bits. A deleted variable has no name.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
who as materialized (select @principal::text as principal, @groups::text as groups, @authority::int as authority)
select
    x.rule_id, x.variable_id, coalesce(v.name, '')::text as variable, x.subject, x.permissions, x.allows, x.priority, x.expires_at,
    a.mask::int as access
from clk
cross join who
join setpoint.sessions s on s.session_id = @session_id
join setpoint.access_rules x on x.session_id = s.session_id and x.rule_id = @rule_id
left join setpoint.variables v on v.session_id = x.session_id and v.variable_id = x.variable_id
cross join lateral setpoint.access(x.session_id, s.owner, nullif(x.variable_id, ''), coalesce(v.access_mode, 'private'),
    who.principal, who.groups, who.authority, clk.t) as a(mask);

-- name: AccessRuleList :many
-- A page of the rules that the caller has admin on, by id, after @after: of a session, or of one variable of it, by id or name. No
-- row: no such session. An empty rule_id, alone: no rule. anything is false: the caller may do nothing in the session. refused is why
-- the caller has no admin on the variable; of a deleted one, whose rules are found by its id, it is that there is none. Who has no
-- admin in the whole session has it where a rule allows it: other variables are not asked about.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
who as materialized (select @principal::text as principal, @groups::text as groups, @authority::int as authority),
ask as materialized (
    select @variable::text as variable, @subject::text as subject, @after::text as after, @row_limit::int as row_limit
),
ses as materialized (
    select s.session_id, s.owner, s.ttl_us, clk.t as read_at, a.anything, a.mask
    from clk
    cross join who
    join setpoint.sessions s on s.session_id = @session_id and s.expires_at > clk.t
    cross join lateral setpoint.access_session(s.session_id, s.owner, who.principal, who.groups, who.authority, clk.t)
        as a(mask, anything, reads_all)
),
managed as materialized (
    select array(
        select distinct y.variable_id
        from setpoint.access_rules y
        where y.session_id = ses.session_id and y.allows and y.reach & 16 <> 0 and y.variable_id <> '' and exists (
            select from unnest(string_to_array(who.principal || who.groups, ' ')) n(name)
            where case when y.pattern is null then n.name = y.subject else n.name like y.pattern end
        )
    ) as variable_ids
    from ses
    cross join who
    where ses.mask & 16 = 0
),
var as materialized (
    select v.variable_id, a.refusal, a.rule_id
    from ses
    cross join who
    cross join ask
    left join lateral (
        select i.variable_id, i.access_mode from setpoint.variables i
        where i.session_id = ses.session_id and i.variable_id = ask.variable
        union all
        select n.variable_id, n.access_mode from setpoint.variables n
        where n.session_id collate "POSIX" = ses.session_id and n.name = ask.variable
    ) v on true
    cross join lateral setpoint.access_check(ses.session_id, ses.owner, v.variable_id, v.access_mode, who.principal, who.groups,
        who.authority, 16, ses.read_at) as a(mask, refusal, rule_id)
    where ask.variable <> ''
)
select
    ses.ttl_us::bigint as ttl_us,
    ses.read_at::timestamptz as read_at,
    ses.anything::boolean as anything,
    coalesce(var.refusal, '')::text as refused,
    coalesce(var.rule_id, '')::text as refused_rule_id,
    coalesce(x.rule_id, '')::text as rule_id,
    coalesce(x.variable_id, '')::text as variable_id,
    coalesce(x.name, '')::text as variable,
    coalesce(x.subject, '')::text as subject,
    coalesce(x.permissions, 0)::int as permissions,
    coalesce(x.allows, false)::boolean as allows,
    coalesce(x.priority, 0)::int as priority,
    x.expires_at,
    coalesce(x.granted_by, '')::text as granted_by,
    x.granted_at,
    coalesce(x.revision, 0)::bigint as revision
from ses
cross join who
cross join ask
left join var on true
left join lateral (
    select r.*, v.name
    from setpoint.access_rules r
    left join lateral (
        select i.name, i.access_mode from setpoint.variables i
        where i.session_id = ses.session_id and i.variable_id = r.variable_id
        limit 1
    ) v on true
    cross join lateral setpoint.access(ses.session_id, ses.owner, nullif(r.variable_id, ''), coalesce(v.access_mode, 'private'),
        who.principal, who.groups, who.authority, ses.read_at) as a(mask)
    where r.session_id = ses.session_id and r.rule_id > ask.after
        and (ask.variable = '' or r.variable_id = coalesce(var.variable_id, ask.variable))
        and (ask.subject = '' or r.subject = ask.subject)
        and (ses.mask & 16 <> 0 or r.variable_id = any(array(select unnest(m.variable_ids) from managed m)))
        and a.mask & 16 <> 0
    order by r.rule_id
    limit (select ask.row_limit from ask)
) x on ses.anything
order by x.rule_id;

-- name: AccessCheckMany :many
-- What subjects may do with variables, by id or name, or where that is empty in the session as a whole; all as of one moment. A row
-- back for each, in its place. alive is false: no such session; anything is false: the caller may do nothing in it. An empty
-- variable_id: no such variable. session_access is what the caller may do in the session as a whole, caller_access what it may do
-- there, access what the subject may. The rule is the one that decides about the permission; its id is empty where none does.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
who as materialized (select @principal::text as principal, @groups::text as groups, @authority::int as authority),
ses as materialized (
    select s.session_id, s.owner, s.ttl_us, clk.t as read_at, a.mask, a.anything, a.reads_all
    from clk
    cross join who
    join setpoint.sessions s on s.session_id = @session_id and s.expires_at > clk.t
    cross join lateral setpoint.access_session(s.session_id, s.owner, who.principal, who.groups, who.authority, clk.t)
        as a(mask, anything, reads_all)
),
req as materialized (
    select r.*, row_number() over () as ord
    from (
        select
            unnest(@variables::text[]) as variable,
            unnest(@permissions::int[]) as permission,
            unnest(@subjects::text[]) as subject,
            unnest(@subject_groups::text[]) as subject_groups,
            unnest(@subject_authorities::int[]) as subject_authority
    ) r
)
select
    (ses.session_id is not null)::boolean as alive,
    coalesce(ses.anything, false)::boolean as anything,
    coalesce(ses.reads_all, false)::boolean as reads_all,
    coalesce(ses.mask, 0)::int as session_access,
    coalesce(ses.ttl_us, 0)::bigint as ttl_us,
    ses.read_at::timestamptz as read_at,
    coalesce(ses.owner, '')::text as owner,
    coalesce(v.variable_id, '')::text as variable_id,
    coalesce(v.name, '')::text as variable,
    coalesce(v.access_mode, '')::text as access_mode,
    coalesce(c.mask, 0)::int as caller_access,
    coalesce(a.mask, 0)::int as access,
    coalesce(x.rule_id, '')::text as rule_id,
    coalesce(x.variable_id, '')::text as rule_variable_id,
    coalesce(x.subject, '')::text as rule_subject,
    coalesce(x.permissions, 0)::int as rule_permissions,
    coalesce(x.allows, false)::boolean as rule_allows,
    coalesce(x.priority, 0)::int as rule_priority,
    x.expires_at as rule_expires_at,
    coalesce(x.granted_by, '')::text as rule_granted_by,
    x.granted_at as rule_granted_at,
    coalesce(x.revision, 0)::bigint as rule_revision
from req
cross join who
left join ses on true
left join lateral (
    select i.variable_id, i.name, i.access_mode from setpoint.variables i
    where i.session_id = ses.session_id and i.variable_id = req.variable
    union all
    select n.variable_id, n.name, n.access_mode from setpoint.variables n
    where n.session_id collate "POSIX" = ses.session_id and n.name = req.variable
) v on req.variable <> ''
left join lateral setpoint.access(ses.session_id, ses.owner, v.variable_id, coalesce(v.access_mode, 'private'), who.principal,
    who.groups, who.authority, ses.read_at) as c(mask) on ses.session_id is not null
left join lateral setpoint.access(ses.session_id, ses.owner, v.variable_id, coalesce(v.access_mode, 'private'), req.subject,
    req.subject_groups, req.subject_authority, ses.read_at) as a(mask) on ses.session_id is not null
left join lateral (
    select setpoint.access_rule(ses.session_id, v.variable_id, req.subject, req.subject_groups, req.permission, ses.read_at)
        as rule_id
) d on ses.session_id is not null and (req.variable = '' or v.variable_id is not null)
left join setpoint.access_rules x on x.session_id = ses.session_id and x.rule_id = d.rule_id
order by req.ord;
