-- The API shows changes above the session's created_revision only, and of versions only those within their variable's
-- history_limit, at once, whether or not a sweeper has been. SQL sees all rows.

-- name: HistoryOfVersions :many
-- A variable's versions below @before, newest first. candidates counts the rows before the page was cut at @max_bytes
-- of values; the first row is always in.
with page as materialized (
    select h.*
    from setpoint.history h
    where h.session_id collate "POSIX" = @session_id and h.variable_id = @variable_id
        and h.version >= @oldest_version::bigint and h.version < @before::bigint
    order by h.version desc
    limit @row_limit
),
sized as materialized (
    select
        page.*,
        sum(page.value_bytes + octet_length(page.metadata::text)) over (order by page.version desc) as running_bytes,
        row_number() over (order by page.version desc) as place,
        count(*) over () as candidates
    from page
)
select
    z.revision, z.variable_id, z.name, z.type, z.change, z.version, z.value, p.data as payload, z.metadata, z.reason,
    z.changed_by, z.changed_at, z.cause_revision, z.cause, z.error, z.dependency, z.expression,
    z.optimization_id, z.trial_number, z.access_rule,
    z.candidates::bigint as candidates
from sized z
left join setpoint.payloads p on p.session_id = z.session_id and p.sha256 = z.payload_sha256
where z.place = 1 or z.running_bytes <= @max_bytes::bigint
order by z.version desc;

-- name: HistoryList :many
-- Changes below revision @before, newest first: of one variable, or with an empty @variable_id of the whole session. Of what the
-- caller may read, and of access rules what the caller administers.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
who as materialized (select @principal::text as principal, @groups::text as groups, @authority::int as authority),
page as materialized (
    select h.*
    from setpoint.history h
    join setpoint.sessions s on s.session_id = h.session_id
    left join setpoint.variables v on v.session_id = h.session_id and v.variable_id = h.variable_id
    cross join lateral ( -- For each row in the order of the index, up to the limit.
        select b.mask
        from clk
        cross join who
        cross join lateral setpoint.access(s.session_id, s.owner, nullif(h.variable_id, ''), v.access_mode, who.principal,
            who.groups, who.authority, clk.t) as b(mask)
        offset 0
    ) a
    where h.session_id = @session_id and h.revision < @before::bigint and h.revision > s.created_revision
        and (@variable_id::text = '' or h.variable_id = @variable_id::text)
        and a.mask & case when h.access_rule is null then 1 else 16 end <> 0
        and (cardinality(@changes::text[]) = 0 or h.change = any(@changes::text[]))
        and (h.version is null or h.version >= case
            when v.variable_id is null then coalesce((
                select d.oldest_version from setpoint.history d
                where d.session_id = h.session_id and d.variable_id = h.variable_id and d.change = 'deleted' limit 1), 0)
            when v.history_limit = 0 then 0
            else v.version - v.history_limit
        end)
    order by h.revision desc
    limit @row_limit
),
sized as materialized (
    select
        page.*,
        sum(page.value_bytes + octet_length(page.metadata::text)) over (order by page.revision desc) as running_bytes,
        row_number() over (order by page.revision desc) as place,
        count(*) over () as candidates
    from page
)
select
    z.revision, z.variable_id, z.name, z.type, z.change, z.version, z.value, p.data as payload, z.metadata, z.reason,
    z.changed_by, z.changed_at, z.cause_revision, z.cause, z.error, z.dependency, z.expression,
    z.optimization_id, z.trial_number, z.access_rule,
    z.candidates::bigint as candidates
from sized z
left join setpoint.payloads p on p.session_id = z.session_id and p.sha256 = z.payload_sha256
where z.place = 1 or z.running_bytes <= @max_bytes::bigint
order by z.revision desc;

-- name: HistoryGetVersion :one
-- The change that made a version. No row: it is not kept.
select
    h.revision, h.variable_id, h.name, h.type, h.change, h.version, h.value, h.payload_sha256, p.data as payload,
    h.metadata, h.reason, h.changed_by, h.changed_at, h.cause_revision, h.cause, h.error, h.dependency, h.expression,
    h.optimization_id, h.trial_number, h.access_rule
from setpoint.history h
left join setpoint.payloads p on p.session_id = h.session_id and p.sha256 = h.payload_sha256
where h.session_id collate "POSIX" = @session_id and h.variable_id = @variable_id and h.version = @version::bigint;

-- name: HistoryOldestVersion :one
-- The oldest version of a variable that is kept, not older than @oldest_version.
select coalesce(min(h.version), 0)::bigint as version
from setpoint.history h
where h.session_id collate "POSIX" = @session_id and h.variable_id = @variable_id and h.version >= @oldest_version::bigint;

-- name: HistoryFollowing :many
-- What followed a change that a caller made at @revision: the rows of the same transaction that name a cause.
with first_after as materialized (
    select h.transaction_first, h.transaction_last
    from setpoint.history h
    where h.session_id collate "POSIX" = @session_id and h.revision >= @revision::bigint and h.transaction_first is not null
    order by h.revision
    limit 1
)
select
    h.revision, h.variable_id, h.name, h.type, h.change, coalesce(h.version, 0)::bigint as version, h.value,
    p.data as payload, h.value_bytes, h.error, f.transaction_first::bigint as transaction_first
from first_after f
join setpoint.history h
    on h.session_id collate "POSIX" = @session_id and h.revision >= f.transaction_first
    and h.revision <= f.transaction_last and h.transaction_first is not null
left join setpoint.payloads p on p.session_id = h.session_id and p.sha256 = h.payload_sha256
where f.transaction_first <= @revision::bigint
order by h.revision;
