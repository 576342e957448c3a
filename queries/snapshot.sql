-- The session as it stood at a revision @at. Of a variable that has not changed since, the row in variables tells; of one
-- that has, its latest history row at or below @at: its latest version for the value, its latest row of any kind for the
-- metadata. That holds at and above the session's snapshot_floor.

-- name: SnapshotTarget :one
-- Which revision a revision or a time is. No row: no such session. @time is used if it is not null, and finds the last
-- revision that is not after it, by bisection: changed_at never runs back within a session. settled is null, or the
-- last revision of @revision's transaction if dependents followed in that: nobody saw the session in between.
with recursive clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
ses as materialized (
    select s.session_id, s.ttl_us, s.revision, s.created_revision, greatest(s.created_at, s.snapshot_floor_at) as oldest_at,
        greatest(s.created_revision, s.snapshot_floor) as oldest, clk.t as read_at
    from setpoint.sessions s cross join clk
    where s.session_id = @session_id and s.expires_at > clk.t
),
search as (
    select ses.created_revision as lo, ses.revision as hi from ses where sqlc.narg('time')::timestamptz is not null
    union all
    select
        case when h.changed_at > sqlc.narg('time')::timestamptz then s.lo else s.mid end,
        case when h.changed_at > sqlc.narg('time')::timestamptz then h.revision - 1 else s.hi end
    from (select b.lo, b.hi, (b.lo + b.hi + 1) / 2 as mid from search b where b.lo < b.hi) s
    left join lateral (
        select x.revision, x.changed_at from setpoint.history x
        where x.session_id = @session_id and x.revision <= s.mid and x.revision > s.lo
        order by x.revision desc limit 1
    ) h on true
)
select
    ses.ttl_us,
    ses.read_at::timestamptz as read_at,
    ses.revision,
    ses.oldest::bigint as oldest_revision,
    coalesce((select max(s.lo) from search s), ses.revision)::bigint as revision_at_time,
    (
        select f.transaction_last
        from (
            select h.transaction_first, h.transaction_last
            from setpoint.history h
            where h.session_id collate "POSIX" = @session_id and h.revision > sqlc.narg('revision')::bigint
                and h.transaction_first is not null
            order by h.revision
            limit 1
        ) f
        where f.transaction_first <= sqlc.narg('revision')::bigint
    ) as settled,
    coalesce(sqlc.narg('time')::timestamptz < ses.oldest_at, false)::boolean as too_old
from ses;

-- name: SnapshotPage :many
-- The variables after @after, by id, that the caller may read. Every row is a candidate that was looked at, in order; an empty name: it did not exist
-- at @at. No row: no such session. An empty variable_id, alone: no candidate. candidates counts them before the page was
-- cut at @max_bytes of values; the first row is always in.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
who as materialized (select @principal::text as principal, @groups::text as groups, @authority::int as authority),
ses as materialized (
    select s.session_id, s.owner, s.ttl_us, clk.t as read_at, coalesce(sqlc.narg('at')::bigint, s.revision) as at,
        greatest(s.created_revision, s.snapshot_floor) as oldest
    from setpoint.sessions s cross join clk
    where s.session_id = @session_id and s.expires_at > clk.t
),
candidate as materialized (
    select c.variable_id
    from (
        (select v.variable_id
            from setpoint.variables v
            cross join lateral ( -- For each row in the order of the index, up to the limit.
                select b.mask
                from ses
                cross join who
                cross join lateral setpoint.access(ses.session_id, ses.owner, v.variable_id, v.access_mode, who.principal,
                    who.groups, who.authority, ses.read_at) as b(mask)
                offset 0
            ) a
            where v.session_id = @session_id and v.variable_id > @after and a.mask & 1 <> 0
            order by v.variable_id limit @row_limit)
        union
        (select d.variable_id
            from setpoint.history d
            cross join lateral (
                select b.mask
                from ses
                cross join who
                cross join lateral setpoint.access(ses.session_id, ses.owner, d.variable_id, null, who.principal,
                    who.groups, who.authority, ses.read_at) as b(mask)
                offset 0
            ) a
            where d.session_id = @session_id and d.change = 'deleted' and d.variable_id > @after
                and d.revision > (select ses.at from ses) and a.mask & 1 <> 0
            order by d.variable_id limit @row_limit)
    ) c
    order by c.variable_id
    limit @row_limit
),
page as materialized (
    select
        c.variable_id,
        coalesce(v.name, h.name) as name,
        coalesce(v.type, h.type) as type,
        coalesce(v.value, h.value) as value,
        coalesce(v.payload_sha256, h.payload_sha256) as payload_sha256,
        coalesce(v.value_bytes, h.value_bytes, 0) as value_bytes,
        coalesce(v.version, h.version) as version,
        case
            when v.variable_id is not null then v.metadata
            when u.revision > h.revision then u.metadata
            else h.metadata
        end as metadata
    from candidate c
    cross join ses
    left join setpoint.variables v
        on v.session_id = ses.session_id and v.variable_id = c.variable_id and v.revision <= ses.at
    left join lateral (
        select x.name, x.type, x.value, x.payload_sha256, x.value_bytes, x.version, x.metadata, x.revision
        from setpoint.history x
        where v.variable_id is null and x.session_id collate "POSIX" = ses.session_id and x.variable_id = c.variable_id
            and x.version is not null and x.revision <= ses.at
        order by x.version desc
        limit 1
    ) h on true
    left join lateral (
        select x.metadata, x.revision
        from setpoint.history x
        where v.variable_id is null and x.session_id collate "POSIX" = ses.session_id and x.variable_id = c.variable_id
            and x.version is null and x.revision <= ses.at
        order by x.revision desc
        limit 1
    ) u on true
),
sized as materialized (
    select
        page.*,
        sum(page.value_bytes + octet_length(coalesce(page.metadata::text, ''))) over (order by page.variable_id) as running_bytes,
        row_number() over (order by page.variable_id) as place,
        count(*) over () as candidates
    from page
)
select
    ses.ttl_us,
    ses.read_at::timestamptz as read_at,
    ses.at::bigint as at,
    ses.oldest::bigint as oldest_revision,
    coalesce(z.variable_id, '')::text as variable_id,
    coalesce(z.name, '')::text as name,
    coalesce(z.type, '')::text as type,
    z.value::jsonb as value,
    p.data as payload,
    coalesce(z.version, 0)::bigint as version,
    z.metadata::jsonb as metadata,
    coalesce(z.candidates, 0)::bigint as candidates
from ses
left join sized z on z.place = 1 or z.running_bytes <= @max_bytes::bigint
left join setpoint.payloads p on p.session_id = ses.session_id and p.sha256 = z.payload_sha256
order by z.variable_id;

-- name: SnapshotToCheck :many
-- Of the variables that a rollback to @at would change, those whose definition has changed since their value of then was
-- accepted: with that value, to be checked against the definition of now.
select v.name, v.type, v.constraints, h.value::jsonb as value, p.data as payload
from setpoint.variables v
cross join lateral (
    select x.version, x.revision, x.value, x.payload_sha256
    from setpoint.history x
    where x.session_id collate "POSIX" = v.session_id and x.variable_id = v.variable_id and x.version is not null
        and x.revision <= @at::bigint
    order by x.version desc
    limit 1
) h
left join setpoint.payloads p on p.session_id = v.session_id and p.sha256 = h.payload_sha256
where v.session_id = @session_id and v.revision > @at::bigint and h.version <> v.version and v.expression = ''
    and v.definition_revision > h.revision
order by v.variable_id;

-- name: SnapshotRestore :one
-- Gives every variable that has changed since @at, existed then, and is not derived, its value of then. The caller holds the session's
-- lock and has checked the values. No row: the session has expired meanwhile. first_revision is that of the first new
-- history row; they are in the order of ids. refused is not empty where the fence refuses one of the variables: then nothing
-- is written.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
ses as materialized (
    select s.session_id, s.revision, greatest(clk.t, s.changed_at) as changed_at,
        case when s.ttl_us = 0 then 'infinity' else clk.t + s.ttl_us * interval '1 microsecond' end as expires_at
    from setpoint.sessions s cross join clk
    where s.session_id = @session_id and s.expires_at > clk.t
),
presented as materialized (
    select unnest(@lease_ids::text[]) as lease_id, unnest(@lease_tokens::bigint[]) as lease_token
),
wanted as materialized (
    select v.session_id, v.variable_id, v.name, v.type, v.version, v.metadata, h.value, h.payload_sha256, h.value_bytes,
        v.optimization_id, v.lease_optimizer_id, v.lease_started_at, v.lease_expires_at, l.lease_id,
        setpoint.lease_refusal(v.optimization_id, v.fencing_token, v.lease_expires_at, clk.t, coalesce(l.lease_id, ''),
            coalesce(l.lease_token, 0)) as refused,
        v.has_dependents and v.value is distinct from h.value as disturbs,
        ses.revision + row_number() over (order by v.variable_id) as revision, ses.changed_at
    from ses
    cross join clk
    join setpoint.variables v on v.session_id = ses.session_id
    left join presented l on l.lease_id = v.optimization_id
    cross join lateral (
        select x.version, x.value, x.payload_sha256, x.value_bytes
        from setpoint.history x
        where x.session_id collate "POSIX" = v.session_id and x.variable_id = v.variable_id and x.version is not null
            and x.revision <= @at::bigint
        order by x.version desc
        limit 1
    ) h
    where v.revision > @at::bigint and h.version <> v.version and v.expression = ''
),
fenced as materialized (
    select w.* from wanted w where w.refused is not null order by w.name limit 1
),
target as materialized (
    select w.* from wanted w where not exists (select from fenced)
),
upd as (
    update setpoint.variables v
    set value = t.value, payload_sha256 = t.payload_sha256, value_bytes = t.value_bytes, version = t.version + 1,
        revision = t.revision, updated_at = t.changed_at, updated_by = @principal, stale_revision = null,
        stale_cause_id = null, stale_cause = null, stale_error = null
    from target t
    where v.session_id = t.session_id and v.variable_id = t.variable_id -- Each by its key, not the session by its own.
),
hist as (
    insert into setpoint.history (session_id, revision, variable_id, name, type, change, version, value, payload_sha256,
        value_bytes, metadata, reason, changed_by, changed_at, optimization_id)
    select @session_id, t.revision, t.variable_id, t.name, t.type, 'rolled_back', t.version + 1, t.value, t.payload_sha256,
        t.value_bytes, t.metadata, @reason, @principal, t.changed_at, t.lease_id
    from target t
),
adv as (
    update setpoint.sessions s
    set revision = ses.revision + (select count(*) from target), changed_at = ses.changed_at, expires_at = ses.expires_at
    from ses
    where s.session_id = ses.session_id
)
select (ses.revision + 1)::bigint as first_revision, (select count(*) from target)::bigint as restored,
    array(select t.variable_id from target t order by t.variable_id)::text[] as variable_ids,
    array(select t.variable_id from target t where t.disturbs order by t.variable_id)::text[] as disturbing_ids,
    coalesce(f.refused, '')::text as refused,
    coalesce(f.name, '')::text as refused_name,
    coalesce(f.optimization_id, '')::text as optimization_id,
    coalesce(f.lease_optimizer_id, '')::text as lease_optimizer_id,
    f.lease_started_at, f.lease_expires_at
from ses left join fenced f on true;

-- name: SnapshotUnchanged :one
-- How many variables have their version of then.
select count(*)::bigint as variables
from setpoint.variables v
left join lateral (
    select x.version
    from setpoint.history x
    where v.revision > @at::bigint and x.session_id collate "POSIX" = v.session_id and x.variable_id = v.variable_id
        and x.version is not null and x.revision <= @at::bigint
    order by x.version desc
    limit 1
) h on true
where v.session_id = @session_id and (v.revision <= @at::bigint or h.version = v.version);

-- name: SnapshotRestored :many
-- What a rollback of the session to @at did, in the revisions from @first on: with the values of then and of before, up to
-- @max_bytes of them.
with made as materialized (
    select h.session_id, h.variable_id, h.name, h.type, h.version, h.revision, h.value, h.payload_sha256,
        b.value as previous_value, b.payload_sha256 as previous_payload_sha256,
        sum(h.value_bytes + coalesce(b.value_bytes, 0)) over (order by h.revision) as running_bytes
    from setpoint.history h
    left join setpoint.history b
        on b.session_id collate "POSIX" = h.session_id and b.variable_id = h.variable_id and b.version = h.version - 1
    where h.session_id = @session_id and h.revision >= @first_revision::bigint and h.revision <= @last_revision::bigint
)
select
    m.variable_id, m.name, m.type, m.version::bigint as version, m.revision,
    coalesce(t.version, 0)::bigint as then_version,
    (m.running_bytes <= @max_bytes::bigint)::boolean as with_values,
    case when m.running_bytes <= @max_bytes::bigint then m.value end::jsonb as value,
    p.data as payload,
    case when m.running_bytes <= @max_bytes::bigint then m.previous_value end::jsonb as previous_value,
    q.data as previous_payload
from made m
left join lateral (
    select x.version from setpoint.history x
    where x.session_id collate "POSIX" = m.session_id and x.variable_id = m.variable_id and x.version is not null
        and x.revision <= @at::bigint
    order by x.version desc
    limit 1
) t on true
left join setpoint.payloads p
    on p.session_id = m.session_id and p.sha256 = m.payload_sha256 and m.running_bytes <= @max_bytes::bigint
left join setpoint.payloads q
    on q.session_id = m.session_id and q.sha256 = m.previous_payload_sha256 and m.running_bytes <= @max_bytes::bigint
order by m.revision;

-- name: SnapshotSince :many
-- Names of the variables that were registered after @at and still exist, and of those that existed then and were deleted.
select v.name, false::boolean as deleted
from setpoint.variables v
where v.session_id = @session_id and v.revision > @at::bigint
    and not exists (
        select from setpoint.history x
        where x.session_id collate "POSIX" = v.session_id and x.variable_id = v.variable_id and x.version is not null
            and x.revision <= @at::bigint
    )
union all
select d.name, true::boolean as deleted
from setpoint.history d
where d.session_id = @session_id and d.change = 'deleted' and d.revision > @at::bigint
    and exists (
        select from setpoint.history x
        where x.session_id collate "POSIX" = d.session_id and x.variable_id = d.variable_id and x.version is not null
            and x.revision <= @at::bigint
    )
order by deleted, name;

-- name: TransactionTimeout :exec
-- Bounds the statements of this transaction and the pauses between them, for work that takes longer than a write may.
-- @sqlc-vet-disable session-id-everywhere
select
    set_config('statement_timeout', @timeout::text, true) as statement_timeout,
    set_config('idle_in_transaction_session_timeout', '60s', true) as idle_in_transaction_session_timeout;
