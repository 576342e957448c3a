-- What a caller may see and do, asked beside other statements of an operation, in the same transaction. The decision itself is in
-- setpoint.access (migrations/00009_access.sql).

-- name: SightOf :one
-- What a caller may do in a session, and which of these variables, by name or id, the caller may read: null where it is all.
-- No row: no such session.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
who as materialized (select @principal::text as principal, @groups::text as groups, @authority::int as authority)
select
    a.mask::int as access,
    a.anything::boolean as anything,
    a.reads_all::boolean as reads_all,
    case when a.anything and not a.reads_all then array(
        select n.name
        from unnest(@names::text[]) n(name)
        cross join lateral (
            select i.variable_id, i.access_mode from setpoint.variables i
            where i.session_id = s.session_id and i.variable_id = n.name
            union all
            select m.variable_id, m.access_mode from setpoint.variables m
            where m.session_id collate "POSIX" = s.session_id and m.name = n.name
        ) v
        cross join lateral setpoint.access(s.session_id, s.owner, v.variable_id, v.access_mode, who.principal, who.groups,
            who.authority, clk.t) as b(mask)
        where b.mask & 1 <> 0
    ) end::text[] as readable
from clk
cross join who
join setpoint.sessions s on s.session_id = @session_id and s.expires_at > clk.t
cross join lateral setpoint.access_session(s.session_id, s.owner, who.principal, who.groups, who.authority, clk.t)
    as a(mask, anything, reads_all);

-- name: SightCheck :many
-- Whether a caller has a permission on each of these variables, by id or name; a row back for each, in its place. alive is
-- false: no such session.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
who as materialized (select @principal::text as principal, @groups::text as groups, @authority::int as authority),
req as materialized (
    select r.*, row_number() over () as ord
    from (select unnest(@identifiers::text[]) as identifier, unnest(@permissions::int[]) as permission) r
),
found as materialized (
    select req.ord, req.identifier, req.permission, s.session_id, s.owner, v.variable_id, v.name, a.mask
    from req
    cross join clk
    cross join who
    left join lateral (
        select o.session_id, o.owner from setpoint.sessions o
        where o.session_id = @session_id and o.expires_at > clk.t
        limit 1
    ) s on true
    left join lateral (
        select i.variable_id, i.name, i.access_mode from setpoint.variables i
        where i.session_id = s.session_id and i.variable_id = req.identifier
        union all
        select n.variable_id, n.name, n.access_mode from setpoint.variables n
        where n.session_id collate "POSIX" = s.session_id and n.name = req.identifier
    ) v on true
    left join lateral setpoint.access(s.session_id, s.owner, v.variable_id, v.access_mode, who.principal, who.groups,
        who.authority, clk.t) as a(mask) on s.session_id is not null
),
standing as materialized (
    select n.anything, n.reads_all
    from (
        select distinct f.session_id, f.owner from found f
        where f.session_id is not null and (f.variable_id is null or f.mask = 0)
    ) d
    cross join clk
    cross join who
    cross join lateral setpoint.access_session(d.session_id, d.owner, who.principal, who.groups, who.authority, clk.t)
        as n(mask, anything, reads_all)
)
select
    (f.session_id is not null)::boolean as alive,
    f.identifier::text as identifier,
    f.permission::int as permission,
    coalesce(f.variable_id, '')::text as variable_id,
    coalesce(f.name, '')::text as name,
    coalesce(f.mask, 0)::int as access,
    coalesce(case when f.session_id is not null then
        setpoint.access_answer(f.variable_id, f.mask, f.permission, n.anything, n.reads_all) end, '')::text as refused,
    coalesce(case when f.variable_id is not null and f.mask & 1 <> 0 and f.mask & f.permission = 0
            and who.authority & f.permission <> 0 then
        setpoint.access_rule(f.session_id, f.variable_id, who.principal, who.groups, f.permission, clk.t) end, '')::text
        as rule_id
from found f
cross join clk
cross join who
left join standing n on true
order by f.ord;

-- name: SightOfRestore :one
-- The first variable, by name, that a rollback of the session to @at would change and the caller may not: it takes write, or
-- optimize under one of the leases. No row: there is none.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
who as materialized (select @principal::text as principal, @groups::text as groups, @authority::int as authority)
select v.name, a.mask::int as access, n.permission::int as permission
from clk
cross join who
join setpoint.sessions s on s.session_id = @session_id
join setpoint.variables v on v.session_id = @session_id and v.revision > @at::bigint and v.expression = ''
cross join lateral (
    select x.version
    from setpoint.history x
    where x.session_id collate "POSIX" = v.session_id and x.variable_id = v.variable_id and x.version is not null
        and x.revision <= @at::bigint
    order by x.version desc
    limit 1
) h
cross join lateral (
    select case when v.optimization_id = any(@lease_ids::text[]) then 8 else 2 end as permission
) n
cross join lateral setpoint.access(s.session_id, s.owner, v.variable_id, v.access_mode, who.principal, who.groups,
    who.authority, clk.t) as a(mask)
where h.version <> v.version and a.mask & n.permission = 0
order by a.mask & 1 desc, v.name
limit 1;
