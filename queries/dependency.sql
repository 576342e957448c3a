-- Edges: the dependent depends on the dependency. Each search goes by one end: from a dependent by the primary key, from a
-- dependency by dependencies_by_dependency; the lateral joins see to it whatever the planner believes of the table's size.
-- Walks collect variables with UNION, each once, so that they end and do not explode where paths are many.

-- name: DependencyAdd :one
-- Adds an edge, or says why not. The caller holds the session's lock, by an earlier statement. A cycle there would be only
-- if the dependency depends on the dependent, which neither end without edges of its own can.
with recursive clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
ses as materialized (
    select s.session_id, s.revision + 1 as revision, greatest(clk.t, s.changed_at) as changed_at,
        case when s.ttl_us = 0 then 'infinity' else clk.t + s.ttl_us * interval '1 microsecond' end as expires_at,
        @principal::text as principal
    from setpoint.sessions s cross join clk
    where s.session_id = @session_id and s.expires_at > clk.t
),
ends as materialized (
    select
        a.variable_id as dependent_id, a.name as dependent, a.type, a.metadata, a.expression <> '' as derived,
        b.variable_id as dependency_id, b.name as dependency, a.has_dependents and b.has_dependencies as may_close
    from (select 1 as one) o
    left join lateral (
        select i.* from setpoint.variables i where i.session_id = @session_id and i.variable_id = @dependent
        union all
        select n.* from setpoint.variables n where n.session_id collate "POSIX" = @session_id and n.name = @dependent
    ) a on true
    left join lateral (
        select i.* from setpoint.variables i where i.session_id = @session_id and i.variable_id = @dependency
        union all
        select n.* from setpoint.variables n where n.session_id collate "POSIX" = @session_id and n.name = @dependency
    ) b on true
),
existing as materialized (
    select e.revision, e.created_at, e.created_by
    from ends
    join setpoint.dependencies e
        on e.session_id = @session_id and e.dependent_id = ends.dependent_id and e.dependency_id = ends.dependency_id
),
walk as (
    select ends.dependency_id as variable_id from ends where ends.may_close
    union
    select x.dependency_id
    from walk
    cross join lateral (
        select e.dependency_id from setpoint.dependencies e
        where e.session_id = @session_id and e.dependent_id = walk.variable_id
        offset 0
    ) x
),
verdict as materialized (
    select case
        when not exists (select from ses) then 'SESSION_NOT_FOUND'
        when ends.dependent_id is null then 'DEPENDENT_NOT_FOUND'
        when ends.dependency_id is null then 'DEPENDENCY_NOT_FOUND'
        when exists (select from existing) then 'EXISTS'
        when ends.dependent_id = ends.dependency_id
            or exists (select from walk where walk.variable_id = ends.dependent_id) then 'CYCLE'
        when (
            select count(*) from setpoint.dependencies e
            where e.session_id = @session_id and e.dependent_id = ends.dependent_id
        ) >= @max_dependencies::bigint then 'LIMIT_EXCEEDED'
        else ''
    end as refused
    from ends
),
ins as (
    insert into setpoint.dependencies (session_id, dependent_id, dependency_id, revision, created_at, created_by)
    select @session_id, ends.dependent_id, ends.dependency_id, ses.revision, ses.changed_at, @principal
    from ends cross join ses cross join verdict where verdict.refused = ''
),
marked as (
    update setpoint.variables v
    set has_dependencies = v.has_dependencies or v.variable_id = ends.dependent_id,
        has_dependents = v.has_dependents or v.variable_id = ends.dependency_id,
        revision = case when v.variable_id = ends.dependent_id then ses.revision else v.revision end,
        updated_at = case when v.variable_id = ends.dependent_id then ses.changed_at else v.updated_at end,
        updated_by = case when v.variable_id = ends.dependent_id then ses.principal else v.updated_by end
    from ends cross join ses cross join verdict
    where v.session_id = ses.session_id and v.variable_id in (ends.dependent_id, ends.dependency_id)
        and verdict.refused = ''
),
hist as (
    insert into setpoint.history (session_id, revision, variable_id, name, type, change, metadata, reason, changed_by,
        changed_at, dependency_id, dependency)
    select @session_id, ses.revision, ends.dependent_id, ends.dependent, ends.type, 'dependency_added', ends.metadata,
        @reason, @principal, ses.changed_at, ends.dependency_id, ends.dependency
    from ends cross join ses cross join verdict where verdict.refused = ''
),
adv as (
    update setpoint.sessions s
    set revision = ses.revision, changed_at = ses.changed_at, expires_at = ses.expires_at
    from ses cross join verdict
    where s.session_id = ses.session_id and verdict.refused = ''
)
select
    verdict.refused::text as refused,
    coalesce(ends.dependent_id, '')::text as dependent_id,
    coalesce(ends.dependent, '')::text as dependent,
    coalesce(ends.dependency_id, '')::text as dependency_id,
    coalesce(ends.dependency, '')::text as dependency,
    coalesce(ends.derived, false)::boolean as derived,
    coalesce(existing.revision, ses.revision, 0)::bigint as revision,
    coalesce(existing.created_at, ses.changed_at)::timestamptz as created_at,
    coalesce(existing.created_by, @principal)::text as created_by
from ends
cross join verdict
left join ses on true
left join existing on true;

-- name: DependencyPathEdges :many
-- The edges from @dependency_ids on towards what they depend on: of these, a refused cycle is told.
with recursive walk as (
    select unnest(@dependency_ids::text[]) collate "C" as variable_id
    union
    select x.dependency_id
    from walk
    cross join lateral (
        select e.dependency_id from setpoint.dependencies e
        where e.session_id = @session_id and e.dependent_id = walk.variable_id
        offset 0
    ) x
)
select v.variable_id, v.name, array(
    select e.dependency_id from setpoint.dependencies e
    where e.session_id = @session_id and e.dependent_id = v.variable_id
    order by e.dependency_id
)::text[] as dependency_ids
from walk
cross join lateral (
    select x.variable_id, x.name from setpoint.variables x
    where x.session_id = @session_id and x.variable_id = walk.variable_id
    limit 1
) v;

-- name: DependencyRemove :one
-- Removes an edge. The caller holds the session's lock and has seen that the edge is there and may go.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
adv as (
    update setpoint.sessions s
    set revision = s.revision + 1, changed_at = greatest(clk.t, s.changed_at),
        expires_at = case when s.ttl_us = 0 then 'infinity' else clk.t + s.ttl_us * interval '1 microsecond' end
    from clk
    where s.session_id = @session_id
    returning s.revision, s.changed_at, @principal::text as principal
),
del as (
    delete from setpoint.dependencies e
    where e.session_id = @session_id and e.dependent_id = @dependent_id and e.dependency_id = @dependency_id
    returning e.dependent_id, e.dependency_id
),
marked as (
    update setpoint.variables v
    set has_dependencies = case when v.variable_id = del.dependent_id then exists (
                select from setpoint.dependencies o
                where o.session_id = @session_id and o.dependent_id = del.dependent_id
                    and o.dependency_id <> del.dependency_id
            ) else v.has_dependencies end,
        has_dependents = case when v.variable_id = del.dependency_id then exists (
                select from setpoint.dependencies o
                where o.session_id collate "POSIX" = @session_id and o.dependency_id = del.dependency_id
                    and o.dependent_id <> del.dependent_id
            ) else v.has_dependents end,
        revision = case when v.variable_id = del.dependent_id then adv.revision else v.revision end,
        updated_at = case when v.variable_id = del.dependent_id then adv.changed_at else v.updated_at end,
        updated_by = case when v.variable_id = del.dependent_id then adv.principal else v.updated_by end
    from del cross join adv
    where v.session_id = @session_id and v.variable_id in (del.dependent_id, del.dependency_id)
    returning v.variable_id, v.name, v.type, v.metadata
),
hist as (
    insert into setpoint.history (session_id, revision, variable_id, name, type, change, metadata, reason, changed_by,
        changed_at, dependency_id, dependency)
    select @session_id, adv.revision, a.variable_id, a.name, a.type, 'dependency_removed', a.metadata, @reason, adv.principal,
        adv.changed_at, b.variable_id, b.name
    from del
    cross join adv
    join marked a on a.variable_id = del.dependent_id
    join marked b on b.variable_id = del.dependency_id
)
select adv.revision::bigint as revision from adv cross join del;

-- name: DependencyOf :many
-- What a variable depends on directly, with what an expression over it has to know.
select v.variable_id, v.name, v.type
from setpoint.dependencies e
cross join lateral (
    select x.variable_id, x.name, x.type from setpoint.variables x
    where x.session_id = @session_id and x.variable_id = e.dependency_id
    limit 1
) v
where e.session_id = @session_id and e.dependent_id = @dependent_id
order by v.name;

-- name: DependencyOn :many
-- What depends on a variable directly, by name.
select v.variable_id, v.name, v.derived::boolean as derived
from setpoint.dependencies e
cross join lateral (
    select x.variable_id, x.name, x.expression <> '' as derived from setpoint.variables x
    where x.session_id = @session_id and x.variable_id = e.dependent_id
    limit 1
) v
where e.session_id collate "POSIX" = @session_id and e.dependency_id = @dependency_id
order by v.name;

-- name: DependencyLink :exec
-- Adds edges whose ends are there, and of which the caller knows that they close no cycle, at a revision that is taken; the
-- history row of that revision stands for them. The caller holds the session's lock.
with req as materialized (
    select distinct x.dependent_id, x.dependency_id
    from (select unnest(@dependent_ids::text[]) as dependent_id, unnest(@dependency_ids::text[]) as dependency_id) x
),
ses as materialized (
    select s.session_id, s.changed_at from setpoint.sessions s where s.session_id = @session_id
),
ins as (
    insert into setpoint.dependencies (session_id, dependent_id, dependency_id, revision, created_at, created_by)
    select ses.session_id, req.dependent_id, req.dependency_id, v.revision, ses.changed_at, @principal
    from req
    cross join ses
    cross join lateral (
        select x.revision from setpoint.variables x
        where x.session_id = ses.session_id and x.variable_id = req.dependent_id
        limit 1
    ) v
    on conflict on constraint dependencies_pkey do nothing
),
marks as materialized (
    select m.variable_id, bool_or(m.dependent) as dependent, bool_or(m.dependency) as dependency
    from (
        select req.dependent_id as variable_id, true as dependent, false as dependency from req
        union all
        select req.dependency_id, false, true from req
    ) m
    group by m.variable_id
)
update setpoint.variables v
set has_dependencies = v.has_dependencies or marks.dependent,
    has_dependents = v.has_dependents or marks.dependency
from marks cross join ses
where v.session_id = ses.session_id and v.variable_id = marks.variable_id;

-- name: DependencyUnlink :exec
-- Removes edges of a variable: those to @dependency_ids, and with @dependents those of everything that depends on it. The
-- caller holds the session's lock, and writes the history.
with ses as materialized (
    select s.session_id from setpoint.sessions s where s.session_id = @session_id
),
down as (
    delete from setpoint.dependencies e
    using (select unnest(@dependency_ids::text[]) as dependency_id) req, ses
    where e.session_id = ses.session_id and e.dependent_id = @variable_id and e.dependency_id = req.dependency_id
    returning e.dependency_id
),
up as (
    delete from setpoint.dependencies e
    where @dependents::boolean and e.session_id collate "POSIX" = @session_id and e.dependency_id = @variable_id
    returning e.dependent_id
),
marks as materialized (
    select down.dependency_id as variable_id, 'dependency' as was from down
    union all
    select up.dependent_id, 'dependent' from up
    union all
    select @variable_id, 'self'
)
update setpoint.variables v
set has_dependents = case marks.was
        when 'dependency' then exists (
            select from setpoint.dependencies o
            where o.session_id collate "POSIX" = v.session_id and o.dependency_id = v.variable_id
                and o.dependent_id <> @variable_id)
        when 'self' then v.has_dependents and not @dependents::boolean
        else v.has_dependents end,
    has_dependencies = case marks.was
        when 'dependent' then exists (
            select from setpoint.dependencies o
            where o.session_id = v.session_id and o.dependent_id = v.variable_id and o.dependency_id <> @variable_id)
        when 'self' then exists (
            select from setpoint.dependencies o
            where o.session_id = v.session_id and o.dependent_id = v.variable_id
                and o.dependency_id <> all(@dependency_ids::text[]))
        else v.has_dependencies end
from marks cross join ses
where v.session_id = ses.session_id and v.variable_id = marks.variable_id;

-- name: DependencyAffected :many
-- What a change of @root_ids may reach: them, all their dependents, and what the derived ones of these are computed from
-- (reached is false), @row_limit of them at most. Values come with what is computed, and what it is computed from, unless
-- they are more than @max_bytes together.
with recursive walk as (
    select unnest(@root_ids::text[]) collate "C" as variable_id
    union
    select x.dependent_id
    from walk
    cross join lateral (
        select e.dependent_id from setpoint.dependencies e
        where e.session_id collate "POSIX" = @session_id and e.dependency_id = walk.variable_id
        offset 0
    ) x
),
reached as materialized (
    select v.*, array(
        select e.dependency_id from setpoint.dependencies e
        where e.session_id = @session_id and e.dependent_id = walk.variable_id
    ) as dependency_ids
    from walk
    cross join lateral (
        select x.variable_id, x.expression <> '' as derived from setpoint.variables x
        where x.session_id = @session_id and x.variable_id = walk.variable_id
        limit 1
    ) v
),
computed as materialized (
    select r.variable_id from reached r where r.derived
    union
    select unnest(r.dependency_ids) from reached r where r.derived
),
wanted as materialized (
    select r.variable_id, true as reached, r.dependency_ids, c.variable_id is not null as with_value
    from reached r left join computed c on c.variable_id = r.variable_id
    union all
    select c.variable_id, false, '{}', true
    from computed c where not exists (select from reached r where r.variable_id = c.variable_id)
    limit @row_limit
),
found as materialized (
    select v.*, w.reached, w.dependency_ids, w.with_value,
        coalesce(sum(v.value_bytes) filter (where w.with_value) over (), 0) as total_bytes
    from wanted w
    cross join lateral (
        select x.* from setpoint.variables x
        where x.session_id = @session_id and x.variable_id = w.variable_id
        limit 1
    ) v
)
select
    v.variable_id, v.name, v.type, v.version, v.constraints, v.definition_revision, v.expression, v.strict,
    coalesce(v.stale_revision, 0)::bigint as stale_revision,
    v.reached::boolean as reached,
    v.dependency_ids::text[] as dependency_ids,
    v.total_bytes::bigint as total_bytes,
    case when v.with_value and v.total_bytes <= @max_bytes::bigint then v.value end::jsonb as value,
    p.data as payload
from found v
left join setpoint.payloads p
    on p.session_id = @session_id and p.sha256 = v.payload_sha256 and v.with_value and v.total_bytes <= @max_bytes::bigint;

-- name: DependencyFollow :one
-- Writes what follows from changes that this transaction has made: new versions, stale marks and their ends, edges that are
-- gone; each with its history row, in the order given. transaction_first is the revision of the first of those changes.
with req as materialized (
    select r.*, row_number() over () as place
    from (
        select
            unnest(@variable_ids::text[]) as variable_id,
            unnest(@changes::text[]) as change,
            -- JSON null: the value stays.
            unnest(@vals::jsonb[]) as value,
            unnest(@payload_hashes::bytea[]) as payload_hash,
            unnest(@payloads::bytea[]) as payload,
            unnest(@value_bytes::bigint[]) as value_bytes,
            unnest(@errors::text[]) as error,
            unnest(@cause_revisions::bigint[]) as cause_revision,
            unnest(@cause_ids::text[]) as cause_id,
            unnest(@causes::text[]) as cause,
            unnest(@dependency_ids::text[]) as dependency_id,
            unnest(@dependencies::text[]) as dependency
    ) r
),
ses as materialized (
    select s.session_id, s.revision, s.changed_at, @principal::text as principal
    from setpoint.sessions s where s.session_id = @session_id
),
done as materialized (
    select r.*, ses.session_id, ses.revision + r.place as revision, ses.changed_at, ses.principal,
        r.change = 'recomputed' as renewed, v.name, v.type, v.version + 1 as version, v.metadata
    from req r
    cross join ses
    cross join lateral (
        select x.name, x.type, x.version, x.metadata from setpoint.variables x
        where x.session_id = ses.session_id and x.variable_id = r.variable_id
        limit 1
    ) v
),
latest as materialized (
    -- A variable can have two rows, the end of an edge and a mark: the mark is what counts for the variable.
    select distinct on (d.variable_id) d.* from done d order by d.variable_id, d.place desc
),
pay as (
    insert into setpoint.payloads (session_id, sha256, size, data)
    select distinct on (d.payload_hash) d.session_id, d.payload_hash, length(d.payload), d.payload
    from done d where d.renewed and length(d.payload_hash) > 0
    order by d.payload_hash
    on conflict (session_id, sha256) do nothing
),
upd as (
    update setpoint.variables v
    set value = case when d.renewed then d.value else v.value end,
        payload_sha256 = case
            when d.renewed and length(d.payload_hash) > 0 then d.payload_hash
            else v.payload_sha256
        end,
        value_bytes = case when d.renewed then d.value_bytes else v.value_bytes end,
        version = case when d.renewed then d.version else v.version end,
        revision = d.revision, updated_at = d.changed_at, updated_by = d.principal,
        stale_revision = case d.change when 'stale' then d.cause_revision when 'dependency_added' then v.stale_revision
            when 'dependency_removed' then v.stale_revision end,
        stale_cause_id = case d.change when 'stale' then d.cause_id when 'dependency_added' then v.stale_cause_id
            when 'dependency_removed' then v.stale_cause_id end,
        stale_cause = case d.change when 'stale' then d.cause when 'dependency_added' then v.stale_cause
            when 'dependency_removed' then v.stale_cause end,
        stale_error = case d.change when 'stale' then d.error when 'dependency_added' then v.stale_error
            when 'dependency_removed' then v.stale_error end
    from latest d
    where v.session_id = d.session_id and v.variable_id = d.variable_id
),
hist as (
    insert into setpoint.history (session_id, revision, variable_id, name, type, change, version, value, payload_sha256,
        value_bytes, metadata, changed_by, changed_at, cause_revision, cause_id, cause, transaction_first,
        transaction_last, error, dependency_id, dependency)
    select d.session_id, d.revision, d.variable_id, d.name, d.type, d.change, case when d.renewed then d.version end,
        case when d.renewed then d.value end,
        case when d.renewed and length(d.payload_hash) > 0 then d.payload_hash end,
        case when d.renewed then d.value_bytes else 0 end, d.metadata, d.principal, d.changed_at,
        d.cause_revision, d.cause_id, d.cause, @transaction_first::bigint,
        max(d.revision) over (), d.error, nullif(d.dependency_id, ''), nullif(d.dependency, '')
    from done d
),
adv as (
    update setpoint.sessions s
    set revision = ses.revision + (select count(*) from done)
    from ses
    where s.session_id = ses.session_id
)
select (ses.revision + 1)::bigint as first_revision, ses.changed_at from ses;

-- name: DependencyListDependencies :many
-- A page of what a variable depends on, by name after @after, of what the caller may read. No row: no such session; an empty start: no such variable; an
-- empty variable_id, alone: nothing.
with recursive clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
who as materialized (select @principal::text as principal, @groups::text as groups, @authority::int as authority),
ses as materialized (
    select s.session_id, s.owner, s.ttl_us, clk.t as read_at
    from setpoint.sessions s cross join clk
    where s.session_id = @session_id and s.expires_at > clk.t
),
start as materialized (
    select i.variable_id from setpoint.variables i where i.session_id = @session_id and i.variable_id = @variable
    union all
    select n.variable_id from setpoint.variables n where n.session_id collate "POSIX" = @session_id and n.name = @variable
),
direct as materialized (
    select e.dependency_id as variable_id
    from start
    cross join lateral (
        select d.dependency_id from setpoint.dependencies d
        where d.session_id = @session_id and d.dependent_id = start.variable_id
        offset 0
    ) e
),
walk as (
    select direct.variable_id from direct
    union
    select x.dependency_id
    from walk
    cross join lateral (
        select e.dependency_id from setpoint.dependencies e
        where @transitive::boolean and e.session_id = @session_id and e.dependent_id = walk.variable_id
        offset 0
    ) x
),
page as materialized (
    select v.variable_id, v.name, v.type, v.version, v.expression, v.stale_revision, v.stale_cause, v.stale_error
    from walk
    cross join ses
    cross join who
    cross join lateral (
        select x.* from setpoint.variables x
        where x.session_id = @session_id and x.variable_id = walk.variable_id
        limit 1
    ) v
    cross join lateral setpoint.access(ses.session_id, ses.owner, v.variable_id, v.access_mode, who.principal, who.groups,
        who.authority, ses.read_at) as a(mask)
    where v.name > @after::text and a.mask & 1 <> 0
    order by v.name
    limit @row_limit
)
select
    coalesce(start.variable_id, '')::text as start,
    ses.ttl_us::bigint as ttl_us,
    ses.read_at::timestamptz as read_at,
    coalesce(page.variable_id, '')::text as variable_id,
    coalesce(page.name, '')::text as name,
    coalesce(page.type, '')::text as type,
    coalesce(page.version, 0)::bigint as version,
    coalesce(page.expression, '')::text as expression,
    coalesce(page.stale_revision, 0)::bigint as stale_revision,
    coalesce(page.stale_cause, '')::text as stale_cause,
    coalesce(page.stale_error, '')::text as stale_error,
    exists (select from direct where direct.variable_id = page.variable_id)::boolean as direct
from ses
left join start on true
left join page on true
order by page.name;

-- name: DependencyListDependents :many
-- A page of what depends on a variable, as DependencyListDependencies.
with recursive clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
who as materialized (select @principal::text as principal, @groups::text as groups, @authority::int as authority),
ses as materialized (
    select s.session_id, s.owner, s.ttl_us, clk.t as read_at
    from setpoint.sessions s cross join clk
    where s.session_id = @session_id and s.expires_at > clk.t
),
start as materialized (
    select i.variable_id from setpoint.variables i where i.session_id = @session_id and i.variable_id = @variable
    union all
    select n.variable_id from setpoint.variables n where n.session_id collate "POSIX" = @session_id and n.name = @variable
),
direct as materialized (
    select e.dependent_id as variable_id
    from start
    cross join lateral (
        select d.dependent_id from setpoint.dependencies d
        where d.session_id collate "POSIX" = @session_id and d.dependency_id = start.variable_id
        offset 0
    ) e
),
walk as (
    select direct.variable_id from direct
    union
    select x.dependent_id
    from walk
    cross join lateral (
        select e.dependent_id from setpoint.dependencies e
        where @transitive::boolean and e.session_id collate "POSIX" = @session_id and e.dependency_id = walk.variable_id
        offset 0
    ) x
),
page as materialized (
    select v.variable_id, v.name, v.type, v.version, v.expression, v.stale_revision, v.stale_cause, v.stale_error
    from walk
    cross join ses
    cross join who
    cross join lateral (
        select x.* from setpoint.variables x
        where x.session_id = @session_id and x.variable_id = walk.variable_id
        limit 1
    ) v
    cross join lateral setpoint.access(ses.session_id, ses.owner, v.variable_id, v.access_mode, who.principal, who.groups,
        who.authority, ses.read_at) as a(mask)
    where v.name > @after::text and a.mask & 1 <> 0
    order by v.name
    limit @row_limit
)
select
    coalesce(start.variable_id, '')::text as start,
    ses.ttl_us::bigint as ttl_us,
    ses.read_at::timestamptz as read_at,
    coalesce(page.variable_id, '')::text as variable_id,
    coalesce(page.name, '')::text as name,
    coalesce(page.type, '')::text as type,
    coalesce(page.version, 0)::bigint as version,
    coalesce(page.expression, '')::text as expression,
    coalesce(page.stale_revision, 0)::bigint as stale_revision,
    coalesce(page.stale_cause, '')::text as stale_cause,
    coalesce(page.stale_error, '')::text as stale_error,
    exists (select from direct where direct.variable_id = page.variable_id)::boolean as direct
from ses
left join start on true
left join page on true
order by page.name;

-- name: DependencyOrder :many
-- All that depends on a variable, directly or not, each with all that it depends on; the order is for the server. Rows as
-- DependencyListDependencies.
with recursive clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
ses as materialized (
    select s.session_id, s.ttl_us, clk.t as read_at
    from setpoint.sessions s cross join clk
    where s.session_id = @session_id and s.expires_at > clk.t
),
start as materialized (
    select i.variable_id from setpoint.variables i where i.session_id = @session_id and i.variable_id = @variable
    union all
    select n.variable_id from setpoint.variables n where n.session_id collate "POSIX" = @session_id and n.name = @variable
),
walk as (
    select e.dependent_id as variable_id
    from start
    cross join lateral (
        select d.dependent_id from setpoint.dependencies d
        where d.session_id collate "POSIX" = @session_id and d.dependency_id = start.variable_id
        offset 0
    ) e
    union
    select x.dependent_id
    from walk
    cross join lateral (
        select e.dependent_id from setpoint.dependencies e
        where e.session_id collate "POSIX" = @session_id and e.dependency_id = walk.variable_id
        offset 0
    ) x
),
reached as materialized (
    select v.variable_id, v.name, v.type, v.version, v.expression, v.stale_revision, v.stale_cause, v.stale_error, array(
        select e.dependency_id from setpoint.dependencies e
        where e.session_id = @session_id and e.dependent_id = walk.variable_id
    ) as dependency_ids
    from walk
    cross join lateral (
        select x.* from setpoint.variables x
        where x.session_id = @session_id and x.variable_id = walk.variable_id
        limit 1
    ) v
)
select
    coalesce(start.variable_id, '')::text as start,
    ses.ttl_us::bigint as ttl_us,
    ses.read_at::timestamptz as read_at,
    coalesce(r.variable_id, '')::text as variable_id,
    coalesce(r.name, '')::text as name,
    coalesce(r.type, '')::text as type,
    coalesce(r.version, 0)::bigint as version,
    coalesce(r.expression, '')::text as expression,
    coalesce(r.stale_revision, 0)::bigint as stale_revision,
    coalesce(r.stale_cause, '')::text as stale_cause,
    coalesce(r.stale_error, '')::text as stale_error,
    r.dependency_ids::text[] as dependency_ids
from ses
left join start on true
left join reached r on true
order by r.name;

-- name: DependencyAll :one
-- The whole graph of a session of at most @most variables, and @edge_limit of its edges: for walks, which by the indexes cost more per step than all of a
-- small session does per row. A line of text for each variable that has edges (id, type, version and name, with tabs: none
-- has such characters) and for each edge (both ids): arrays take twice, and rows several times as long. Expressions and marks
-- are lists for those that have them. No row: no such session; an empty start: no such variable; empty: none, or not small.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
ses as materialized (
    select s.session_id, s.ttl_us, s.variable_count <= @most::bigint as small, clk.t as read_at
    from setpoint.sessions s cross join clk
    where s.session_id = @session_id and s.expires_at > clk.t
),
start as materialized (
    select i.variable_id from setpoint.variables i where i.session_id = @session_id and i.variable_id = @variable
    union all
    select n.variable_id from setpoint.variables n where n.session_id collate "POSIX" = @session_id and n.name = @variable
),
nodes as materialized (
    select
        string_agg(v.variable_id || E'\t' || v.type || E'\t' || v.version || E'\t' || v.name, E'\n') as variables,
        array_agg(v.variable_id) filter (where v.expression <> '') as derived_ids,
        array_agg(v.expression) filter (where v.expression <> '') as expressions,
        array_agg(v.variable_id) filter (where v.stale_revision is not null) as stale_ids,
        array_agg(v.stale_revision) filter (where v.stale_revision is not null) as stale_revisions,
        array_agg(v.stale_cause) filter (where v.stale_revision is not null) as stale_causes,
        array_agg(v.stale_error) filter (where v.stale_revision is not null) as stale_errors
    from setpoint.variables v
    where v.session_id = @session_id and (v.has_dependencies or v.has_dependents) and (select ses.small from ses)
),
edges as materialized (
    select string_agg(e.dependent_id || E'\t' || e.dependency_id, E'\n') as edges, count(*) as edge_count
    from (
        select d.dependent_id, d.dependency_id from setpoint.dependencies d
        where d.session_id = @session_id and (select ses.small from ses)
        limit @edge_limit
    ) e
)
select
    coalesce((select start.variable_id from start), '')::text as start,
    ses.ttl_us::bigint as ttl_us,
    ses.read_at::timestamptz as read_at,
    ses.small::boolean as small,
    edges.edge_count::bigint as edge_count,
    coalesce(nodes.variables, '')::text as variables,
    nodes.derived_ids::text[] as derived_ids,
    nodes.expressions::text[] as expressions,
    nodes.stale_ids::text[] as stale_ids,
    nodes.stale_revisions::bigint[] as stale_revisions,
    nodes.stale_causes::text[] as stale_causes,
    nodes.stale_errors::text[] as stale_errors,
    coalesce(edges.edges, '')::text as edges
from ses cross join nodes cross join edges;

-- name: DependencyGraph :many
-- A page of variables by name after @after, each with the names of what it depends on, of what the caller may read. No row: no such session; an empty
-- variable_id, alone: nothing.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
who as materialized (select @principal::text as principal, @groups::text as groups, @authority::int as authority),
ses as materialized (
    select s.session_id, s.owner, s.ttl_us, clk.t as read_at
    from setpoint.sessions s cross join clk
    where s.session_id = @session_id and s.expires_at > clk.t
),
page as materialized (
    select v.session_id, v.variable_id, v.name, v.type, v.version, v.expression, v.has_dependencies, v.stale_revision,
        v.stale_cause, v.stale_error, v.optimization_id, v.lease_optimizer_id, v.lease_started_at, v.lease_expires_at
    from setpoint.variables v
    cross join lateral ( -- For each row in the order of the index, up to the limit.
        select b.mask
        from ses
        cross join who
        cross join lateral setpoint.access(ses.session_id, ses.owner, v.variable_id, v.access_mode, who.principal, who.groups,
            who.authority, ses.read_at) as b(mask)
        offset 0
    ) a
    where v.session_id collate "POSIX" = @session_id and v.name > @after::text
        and (@include_unconnected::boolean or v.has_dependencies or v.has_dependents) and a.mask & 1 <> 0
    order by v.name
    limit @row_limit
)
select
    ses.ttl_us::bigint as ttl_us,
    ses.read_at::timestamptz as read_at,
    coalesce(page.variable_id, '')::text as variable_id,
    coalesce(page.name, '')::text as name,
    coalesce(page.type, '')::text as type,
    coalesce(page.version, 0)::bigint as version,
    coalesce(page.expression, '')::text as expression,
    coalesce(page.stale_revision, 0)::bigint as stale_revision,
    coalesce(page.stale_cause, '')::text as stale_cause,
    coalesce(page.stale_error, '')::text as stale_error,
    case when page.has_dependencies then array(
        select i.name
        from setpoint.dependencies e
        cross join lateral (
            select w.variable_id, w.name, w.access_mode from setpoint.variables w
            where w.session_id = e.session_id and w.variable_id = e.dependency_id
            limit 1
        ) i
        cross join lateral setpoint.access(ses.session_id, ses.owner, i.variable_id, i.access_mode, who.principal, who.groups,
            who.authority, ses.read_at) as b(mask)
        where b.mask & 1 <> 0 and e.session_id = @session_id and e.dependent_id = page.variable_id
        order by i.name
    ) end::text[] as depends_on,
    coalesce(case when page.lease_expires_at > ses.read_at then page.optimization_id end, '')::text as optimization_id,
    coalesce(case when page.lease_expires_at > ses.read_at then page.lease_optimizer_id end, '')::text as lease_optimizer_id,
    case when page.lease_expires_at > ses.read_at then page.lease_started_at end::timestamptz as lease_started_at,
    case when page.lease_expires_at > ses.read_at then page.lease_expires_at end::timestamptz as lease_expires_at
from ses
cross join who
left join page on true
order by page.name;
