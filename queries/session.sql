-- The one rule of writing: a transaction locks its session rows first, in a statement of its own, and reads the clock
-- after. @now replaces the clock in tests.

-- name: SessionLock :exec
select session_id
from setpoint.sessions
where session_id = any(@session_ids::text[])
order by session_id
for no key update;

-- name: SessionLockNoWait :many
-- The sessions of these that nobody else has locked.
select session_id
from setpoint.sessions
where session_id = any(@session_ids::text[])
order by session_id
for no key update skip locked;

-- name: SessionState :one
-- What a writer has to know once it holds the lock: is the session alive, may the caller do anything in it (in all of it:
-- access), and was this request answered before?
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
who as materialized (select @principal::text as principal, @groups::text as groups, @authority::int as authority)
select
    coalesce(s.expires_at > clk.t, false)::boolean as alive,
    coalesce(a.anything, false)::boolean as anything,
    coalesce(a.mask, 0)::int as access,
    coalesce(a.reads_all, false)::boolean as reads_all,
    coalesce(s.owner = who.principal or who.authority >= 32, false)::boolean as owns,
    clk.t::timestamptz as read_at,
    coalesce(s.variable_count, 0)::bigint as variable_count,
    q.body_hash,
    q.outcome
from clk
cross join who
left join setpoint.sessions s on s.session_id = @session_id
left join lateral setpoint.access_session(s.session_id, s.owner, who.principal, who.groups, who.authority, clk.t)
    as a(mask, anything, reads_all) on s.expires_at > clk.t
left join setpoint.requests q
    on q.session_id = @session_id and q.principal = who.principal and q.request_id = @request_id
    and q.created_at > clk.t - interval '24 hours';

-- name: SessionReserve :exec
-- Makes sure that the id has a row to lock; an absent one begins as a session that has ended. A row that is there is
-- written, unchanged: the sweeper may be about to remove it, and then it is absent.
insert into setpoint.sessions (session_id, owner, ttl_us, expires_at, changed_at, created_at)
values (@session_id, @owner, 0, '-infinity', '-infinity', '-infinity')
on conflict (session_id) do update set session_id = excluded.session_id;

-- name: SessionBegin :one
-- Begins a life of the id, under the lock. Zero rows: it is alive. What an earlier life left behind goes, but its optimizations:
-- SweepEndOptimizations ends them before. Its access rules go by the trigger access_rules_end.
with clk as materialized (
    select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t, @ttl_us::bigint as ttl_us
),
life as materialized (
    select clk.t, clk.ttl_us,
        case when clk.ttl_us = 0 then 'infinity' else clk.t + clk.ttl_us * interval '1 microsecond' end as expires_at
    from clk
),
begun as (
    update setpoint.sessions s
    set owner = @owner,
        ttl_us = life.ttl_us,
        expires_at = life.expires_at,
        metadata = @metadata,
        changed_at = greatest(life.t, s.changed_at),
        created_at = greatest(life.t, s.changed_at),
        created_revision = s.revision,
        ended_at = null,
        variable_count = 0
    from life
    where s.session_id = @session_id and s.expires_at <= life.t
    returning s.session_id, s.owner, s.ttl_us, s.expires_at, s.metadata, s.revision, s.created_at, s.variable_count
),
old_dependencies as (
    delete from setpoint.dependencies e using begun where e.session_id = begun.session_id
),
old_variables as (
    delete from setpoint.variables v using begun where v.session_id = begun.session_id
),
old_waiters as (
    delete from setpoint.optimization_waiters w using begun where w.session_id = begun.session_id
),
old_requests as (
    delete from setpoint.requests q using begun where q.session_id = begun.session_id and not q.outlives_session
)
select session_id, owner, ttl_us, expires_at, metadata, revision, created_at, variable_count from begun;

-- name: SessionGet :one
-- The session, if it is alive and the caller may do something in it. found: it is alive. Who may not read all of it learns no
-- variable_count.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
who as materialized (select @principal::text as principal, @groups::text as groups, @authority::int as authority)
select s.session_id, s.owner, s.ttl_us, s.expires_at, s.metadata, s.revision, s.created_at,
    (case when a.reads_all then s.variable_count else 0 end)::bigint as variable_count,
    clk.t::timestamptz as read_at, a.mask::int as access, a.anything::boolean as anything, a.reads_all::boolean as reads_all
from clk
cross join who
join setpoint.sessions s on s.session_id = @session_id and s.expires_at > clk.t
cross join lateral setpoint.access_session(s.session_id, s.owner, who.principal, who.groups, who.authority, clk.t)
    as a(mask, anything, reads_all);

-- name: SessionList :many
-- Sessions by id from @lo (inclusive) to @hi, a range that holds every match of the pattern: those in which the caller may do
-- something. @scope are LIKE patterns for the ids of the sessions in which the caller's credentials count. What a look at an index
-- tells to be none of the caller's is not asked about further.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
who as materialized (select @principal::text as principal, @groups::text as groups, @authority::int as authority)
select s.session_id, s.owner, s.ttl_us, s.expires_at, s.metadata, s.revision, s.created_at,
    (case when a.reads_all then s.variable_count else 0 end)::bigint as variable_count
from clk
cross join who
join setpoint.sessions s on s.session_id >= @lo and s.session_id < @hi and s.session_id like @pattern
    and s.session_id like any(@scope::text[]) and s.expires_at > clk.t
cross join lateral (
    select
    where setpoint.access_unbound(s.session_id, s.owner, who.principal, who.authority)
        or exists (
            select
            from unnest(string_to_array(who.principal || who.groups, ' ')) n(name)
            cross join lateral (
                select from setpoint.access_rules x
                where x.session_id collate "POSIX" = s.session_id and x.pattern is null and x.subject = n.name and x.allows
                limit 1
            ) r
        )
        or exists (
            select from setpoint.access_rules x
            where x.session_id collate "POSIX" = s.session_id and x.pattern is not null
        )
        or exists (
            select from setpoint.variables v where v.session_id = s.session_id and v.access_mode <> 'private'
        )
    offset 0
) perhaps
cross join lateral setpoint.access_session(s.session_id, s.owner, who.principal, who.groups, who.authority, clk.t)
    as a(mask, anything, reads_all)
where a.anything
order by s.session_id
limit @row_limit;

-- name: SessionKeepAlive :one
-- The caller of this holds the session's lock, by an earlier statement: after a wait the clock of this one would be too old. anything
-- is false: who asked may do nothing in the session, which was not extended.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
who as materialized (select @principal::text as principal, @groups::text as groups, @authority::int as authority),
acc as materialized (
    select a.anything::boolean as anything, a.reads_all::boolean as reads_all
    from clk
    cross join who
    join setpoint.sessions x on x.session_id = @session_id and x.expires_at > clk.t
    cross join lateral setpoint.access_session(x.session_id, x.owner, who.principal, who.groups, who.authority, clk.t)
        as a(mask, anything, reads_all)
)
update setpoint.sessions s
set expires_at = case
    when not acc.anything then s.expires_at
    when s.ttl_us = 0 then 'infinity'
    else clk.t + s.ttl_us * interval '1 microsecond'
end
from clk, acc
where s.session_id = @session_id and s.expires_at > clk.t
returning s.session_id, s.owner, s.ttl_us, s.expires_at, s.metadata, s.revision, s.created_at,
    (case when acc.reads_all then s.variable_count else 0 end)::bigint as variable_count, acc.anything::boolean as anything;

-- name: SessionExtend :many
-- The lazy flush of what reads extended: sorted, and without waiting for a session that is locked: those come back. The
-- update reads the clock after the lock, so a session that has expired or ended stays so.
with due as materialized (
    select unnest(@session_ids::text[]) as session_id, unnest(@read_at::timestamptz[]) as read_at
),
locked as materialized (
    select s.session_id, due.read_at
    from setpoint.sessions s join due on due.session_id = s.session_id
    order by s.session_id
    for no key update of s skip locked
),
extended as (
    update setpoint.sessions s
    set expires_at = greatest(s.expires_at, locked.read_at + s.ttl_us * interval '1 microsecond')
    from locked
    where s.session_id = locked.session_id and s.ttl_us > 0
        and s.expires_at > coalesce(sqlc.narg('now')::timestamptz, clock_timestamp())
)
select due.session_id::text as session_id
from due
join setpoint.sessions s on s.session_id = due.session_id
where not exists (select from locked where locked.session_id = due.session_id);

-- name: SessionEnd :exec
-- Expiry at once. The sweeper removes what the session held.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t)
update setpoint.sessions s
set expires_at = clk.t
from clk
where s.session_id = @session_id and s.expires_at > clk.t;
