-- Optimizations: the record, and the lease on the rows of its variables. Every statement that changes one of the two is run by
-- a transaction that holds the session's lock; all statements of an operation take the time that the first one read, as @now.
-- A record is over when the clock passes its expires_at; OptimizationEnd writes so.
--
-- A server plans a statement once, perhaps while the tables are empty. So that each reads what it is about and not a whole
-- session, whatever the planner believes:
--   - a row is looked up by its whole key in a lateral query with a limit, which is not reordered;
--   - the variables, and the places in the queue, of an optimization are `between` its id and its id, in the order of the
--     primary key: with `=` the planner could take the index by variable for as good;
--   - the queue for a variable is read in its order, and who is in it is looked up for each place;
--   - what is changed besides the one row of a known key is found first, and changed where it was found (ctid): it cannot move
--     meanwhile, for all who change it hold the session's lock.

-- name: OptimizationAdvisoryLocks :exec
-- Has those who start on the same variables queue here, and not at the session's row. Nothing rests on it.
-- @sqlc-vet-disable session-id-everywhere
select pg_advisory_xact_lock(@class::int, k.key)
from (select distinct x.key from unnest(@keys::int[]) as x(key) order by x.key) k;

-- name: OptimizationAsk :many
-- What a start finds: of each item the variable, who has the lease, and who is first in the queue of those whose rank is not
-- above @rank. A row back for each, in its place; an empty variable_id: no such variable. alive is false: no such session.
-- overdue: the session has optimizations whose time is over and of which nobody has written so.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
req as materialized (
    select r.variable, row_number() over () as ord
    from (select unnest(@variables::text[]) as variable) r
),
ses as materialized (
    select s.session_id from setpoint.sessions s cross join clk where s.session_id = @session_id and s.expires_at > clk.t
),
late as materialized (
    select exists (
        select from setpoint.optimizations o cross join clk
        where o.session_id = @session_id and o.ended_at is null and o.expires_at <= clk.t
    ) as found
)
select
    (ses.session_id is not null)::boolean as alive,
    clk.t::timestamptz as read_at,
    late.found::boolean as overdue,
    req.variable::text as identifier,
    coalesce(v.variable_id, '')::text as variable_id,
    coalesce(v.name, '')::text as name,
    coalesce(v.type, '')::text as type,
    coalesce(v.expression <> '', false)::boolean as derived,
    coalesce(h.optimization_id, '')::text as holder_id,
    coalesce(h.optimizer_id, '')::text as holder_optimizer_id,
    coalesce(h.state, '')::text as holder_state,
    coalesce(h.priority, 0)::int as holder_priority,
    h.started_at as holder_started_at,
    h.expires_at as holder_expires_at,
    coalesce(w.optimization_id, '')::text as waiter_id,
    coalesce(w.optimizer_id, '')::text as waiter_optimizer_id,
    w.expires_at as waiter_expires_at
from req
cross join clk
cross join late
left join ses on true
left join lateral (
    select i.* from setpoint.variables i where i.session_id = ses.session_id and i.variable_id = req.variable
    union all
    select n.* from setpoint.variables n where n.session_id collate "POSIX" = ses.session_id and n.name = req.variable
) v on true
left join lateral (
    select o.optimization_id, o.optimizer_id, o.state, o.priority, o.started_at, o.expires_at
    from setpoint.optimizations o
    where v.lease_expires_at > clk.t and o.session_id = ses.session_id and o.optimization_id = v.optimization_id
    limit 1
) h on true
left join lateral (
    select q.optimization_id, o.optimizer_id, o.expires_at
    from setpoint.optimization_waiters q
    cross join lateral (
        select x.optimizer_id, x.expires_at from setpoint.optimizations x
        where x.session_id = q.session_id and x.optimization_id = q.optimization_id and x.ended_at is null
            and x.expires_at > clk.t
        limit 1
    ) o
    where q.session_id = ses.session_id and q.variable_id = v.variable_id and q.rank <= @rank::bigint
    order by q.rank, q.ticket
    limit 1
) w on true
order by req.ord;

-- name: OptimizationAdd :one
-- Adds the record of a request, in the queue. open_count is how many were open before, up to @row_limit.
with clk as materialized (
    select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t, @ttl_us::bigint as ttl_us,
        sqlc.narg('max_wait_us')::bigint as max_wait_us
),
req as (
    select unnest(@variable_ids::text[]) as variable_id, unnest(@names::text[]) as name, unnest(@types::text[]) as type
),
ses as (
    update setpoint.sessions s
    set queue_ticket = s.queue_ticket + 1,
        expires_at = case when s.ttl_us = 0 then 'infinity' else clk.t + s.ttl_us * interval '1 microsecond' end
    from clk
    where s.session_id = @session_id and s.expires_at > clk.t
    returning s.session_id, s.created_revision, s.queue_ticket
),
opt as (
    insert into setpoint.optimizations (session_id, optimization_id, created_revision, state, optimizer_id,
        optimizer_process, variables, conflict, priority, ttl_us, progress_us, objective_metric, minimizes, config,
        started_by, requested_at, renewed_until, wait_until)
    select ses.session_id, @optimization_id, ses.created_revision, 'waiting', @optimizer_id, @optimizer_process,
        (select array_agg(req.name order by req.name collate "C") from req), @conflict, @priority, clk.ttl_us, sqlc.narg('progress_us'),
        sqlc.narg('objective_metric'), @minimizes, sqlc.narg('config'), @principal, clk.t,
        clk.t + clk.ttl_us * interval '1 microsecond', clk.t + clk.max_wait_us * interval '1 microsecond'
    from ses cross join clk
),
vars as (
    insert into setpoint.optimization_variables (session_id, optimization_id, variable_id, name, type)
    select ses.session_id, @optimization_id, req.variable_id, req.name, req.type from ses cross join req
),
wait as (
    insert into setpoint.optimization_waiters (session_id, optimization_id, variable_id, rank, ticket)
    select ses.session_id, @optimization_id, req.variable_id, @rank, ses.queue_ticket from ses cross join req
)
select ses.queue_ticket, (
    select count(*) from (
        select from setpoint.optimizations o where o.session_id = @session_id and o.ended_at is null
        limit @row_limit
    ) x
)::bigint as open_count
from ses;

-- name: OptimizationGrant :one
-- Gives a waiting optimization the lease of all its variables, if nobody else has one of them and nobody who is alive waits for
-- one of them before it. The token is greater than any that was granted for them. What the clock
-- has ended in the session is to be written down before. No row: it does not wait any more.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
ses as materialized (
    select s.session_id, s.revision, greatest(clk.t, s.changed_at) as changed_at, s.created_revision,
        case when s.ttl_us = 0 then 'infinity' else clk.t + s.ttl_us * interval '1 microsecond' end as expires_at
    from setpoint.sessions s cross join clk
    where s.session_id = @session_id and s.expires_at > clk.t
),
mine as materialized (
    select o.session_id, o.optimization_id, o.optimizer_id, o.variables, o.ttl_us, o.progress_us, o.started_by, o.requested_at
    from ses
    cross join clk
    join setpoint.optimizations o on o.session_id = @session_id and o.optimization_id = @optimization_id
    where o.state = 'waiting' and o.expires_at > clk.t
        and o.created_revision = ses.created_revision
),
wants as materialized (
    select x.variable_id as wanted_id, x.name as wanted_name, w.rank, w.ticket, w.place as waits_at, v.variable_id, v.name,
        v.type, v.metadata, v.expression, v.optimization_id, v.fencing_token, v.lease_expires_at, v.place
    from mine
    cross join lateral (
        select x.variable_id, x.name from setpoint.optimization_variables x
        where x.session_id = @session_id and x.optimization_id between @optimization_id and @optimization_id
        order by x.optimization_id, x.variable_id
    ) x
    cross join lateral (
        select q.ctid::tid as place, q.rank, q.ticket from setpoint.optimization_waiters q
        where q.session_id = @session_id and q.optimization_id between @optimization_id and @optimization_id
            and q.variable_id = x.variable_id
        order by q.optimization_id
        limit 1
    ) w
    left join lateral (
        select i.ctid::tid as place, i.variable_id, i.name, i.type, i.metadata, i.expression, i.optimization_id, i.fencing_token,
            i.lease_expires_at
        from setpoint.variables i
        where i.session_id = @session_id and i.variable_id = x.variable_id
        limit 1
    ) v on true
),
verdict as materialized (
    select
        coalesce(bool_or(wants.lease_expires_at > clk.t or ahead.found), false) as blocked,
        coalesce(min(wants.wanted_name) filter (where wants.variable_id is null), '') as missing,
        coalesce(min(wants.wanted_name) filter (where wants.expression <> ''), '') as derived,
        max(wants.fencing_token) + 1 as token
    from wants
    cross join clk
    left join lateral (
        select true as found
        from setpoint.optimization_waiters q
        cross join lateral (
            select from setpoint.optimizations o
            where o.session_id = q.session_id and o.optimization_id = q.optimization_id and o.ended_at is null
                and o.expires_at > clk.t
            limit 1
        ) alive
        where q.session_id = @session_id and q.variable_id = wants.wanted_id
            and (q.rank, q.ticket) < (wants.rank, wants.ticket)
        order by q.rank, q.ticket
        limit 1
    ) ahead on true
),
yes as materialized (
    select verdict.token from verdict
    where not verdict.blocked and verdict.missing = '' and verdict.derived = ''
),
-- The one that had one of the variables last and left a checkpoint, or was handed one.
heritage as materialized (
    select case when p.checkpoint_at is not null then p.optimization_id else p.inherits_id end as inherits_id
    from wants
    cross join lateral (
        select o.optimization_id, o.checkpoint_at, o.inherits_id, o.started_at from setpoint.optimizations o
        where o.session_id = @session_id and o.optimization_id = wants.optimization_id
        limit 1
    ) p
    where p.checkpoint_at is not null or p.inherits_id is not null
    order by p.started_at desc, p.optimization_id desc
    limit 1
),
granted as (
    update setpoint.optimizations o
    set state = 'active', fencing_token = yes.token, started_at = clk.t, wait_until = null,
        renewed_until = clk.t + o.ttl_us * interval '1 microsecond',
        progress_until = clk.t + o.progress_us * interval '1 microsecond',
        inherits_id = (select heritage.inherits_id from heritage)
    from mine, yes, clk
    where o.session_id = @session_id and o.optimization_id = @optimization_id
    returning o.session_id, o.optimization_id, o.optimizer_id, o.fencing_token, o.started_at, o.expires_at, o.started_by,
        o.inherits_id
),
leased as (
    update setpoint.variables v
    set optimization_id = granted.optimization_id, fencing_token = granted.fencing_token,
        lease_optimizer_id = granted.optimizer_id, lease_started_at = granted.started_at,
        lease_expires_at = granted.expires_at
    from granted, wants
    where v.ctid = wants.place
),
left_queue as (
    delete from setpoint.optimization_waiters w using granted, wants where w.ctid = wants.waits_at
),
hist as (
    insert into setpoint.history (session_id, revision, variable_id, name, type, change, metadata, changed_by, changed_at,
        optimization_id)
    select granted.session_id, ses.revision + row_number() over (order by wants.variable_id), wants.variable_id, wants.name,
        wants.type, 'lease_granted', wants.metadata, granted.started_by, ses.changed_at, granted.optimization_id
    from granted cross join ses cross join wants
),
adv as (
    update setpoint.sessions s
    set revision = s.revision + n.added, changed_at = ses.changed_at, expires_at = ses.expires_at
    from ses, (select count(*) as added from granted, wants) n
    where s.session_id = ses.session_id and n.added > 0
)
select
    exists (select from granted)::boolean as granted,
    verdict.blocked::boolean as blocked,
    verdict.missing::text as missing,
    verdict.derived::text as derived,
    clk.t::timestamptz as granted_at,
    mine.requested_at,
    mine.optimizer_id,
    mine.variables,
    coalesce(granted.fencing_token, 0)::bigint as fencing_token,
    granted.expires_at,
    granted.inherits_id
from mine cross join verdict cross join clk left join granted on true;

-- name: OptimizationPreempt :many
-- Tells those who have what an optimization waits for that they are to lose it; a row for each that did not know. Who was told
-- before may now have less time, and be told of another.
with clk as materialized (
    select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t, @grace_us::bigint as grace_us,
        @optimization_id::text as by
),
ses as materialized (
    select s.session_id, s.revision, greatest(clk.t, s.changed_at) as changed_at
    from setpoint.sessions s cross join clk
    where s.session_id = @session_id and s.expires_at > clk.t
),
mine as (
    update setpoint.optimizations o
    set grace_until = clk.t + clk.grace_us * interval '1 microsecond'
    from clk
    where o.session_id = @session_id and o.optimization_id = @optimization_id
),
holders as materialized (
    select distinct o.optimization_id, o.state as was, o.place
    from ses
    cross join clk
    cross join lateral (
        select q.variable_id from setpoint.optimization_waiters q
        where q.session_id = @session_id and q.optimization_id between @optimization_id and @optimization_id
        order by q.optimization_id, q.variable_id
    ) w
    cross join lateral (
        select i.optimization_id from setpoint.variables i
        where i.session_id = @session_id and i.variable_id = w.variable_id and i.lease_expires_at > clk.t
        limit 1
    ) v
    cross join lateral (
        select x.optimization_id, x.state, x.ctid::tid as place from setpoint.optimizations x
        where x.session_id = @session_id and x.optimization_id = v.optimization_id
        limit 1
    ) o
),
told as (
    update setpoint.optimizations o
    set state = 'preempting', preempted_by = clk.by,
        preempt_until = least(o.preempt_until, clk.t + clk.grace_us * interval '1 microsecond')
    from holders h, clk
    where o.ctid = h.place
    returning o.session_id, o.optimization_id, o.optimizer_id, o.variables, o.started_at, o.expires_at, h.was
),
held as materialized (
    select told.optimization_id, told.expires_at, told.was, v.variable_id, v.name, v.type, v.metadata, v.lease_expires_at, v.place
    from told
    cross join lateral (
        select x.variable_id from setpoint.optimization_variables x
        where x.session_id = @session_id and x.optimization_id between told.optimization_id and told.optimization_id
        order by x.optimization_id, x.variable_id
    ) x
    cross join lateral (
        select i.variable_id, i.name, i.type, i.metadata, i.lease_expires_at, i.ctid::tid as place
        from setpoint.variables i
        where i.session_id = @session_id and i.variable_id = x.variable_id and i.optimization_id = told.optimization_id
        limit 1
    ) v
),
leased as (
    update setpoint.variables v
    set lease_expires_at = held.expires_at
    from held
    where v.ctid = held.place and held.lease_expires_at is not null
),
news as materialized (
    select held.optimization_id, held.variable_id, held.name, held.type, held.metadata,
        ses.revision + row_number() over (order by held.optimization_id, held.variable_id) as revision
    from held
    cross join ses
    where held.was = 'active'
),
hist as (
    insert into setpoint.history (session_id, revision, variable_id, name, type, change, metadata, reason, changed_by,
        changed_at, optimization_id)
    select @session_id, n.revision, n.variable_id, n.name, n.type, 'lease_preempting', n.metadata,
        'preempted by ' || @optimization_id::text, @principal, ses.changed_at, n.optimization_id
    from news n cross join ses
),
adv as (
    update setpoint.sessions s
    set revision = m.revision, changed_at = ses.changed_at
    from ses, (select max(n.revision) as revision from news n) m
    where s.session_id = ses.session_id and m.revision is not null
)
select told.optimization_id, told.optimizer_id, told.variables, told.started_at, clk.t::timestamptz as told_at
from told cross join clk
where told.was = 'active'
order by told.optimization_id;

-- name: OptimizationKeep :many
-- Has those keep their leases who were to lose them to somebody who no longer waits; a row for each. Who is still to lose it
-- to somebody else is told so.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
ses as materialized (
    select s.session_id, s.revision, greatest(clk.t, s.changed_at) as changed_at
    from setpoint.sessions s cross join clk
    where s.session_id = @session_id and s.expires_at > clk.t
),
-- Who is to come of those who are alive: the first of them in the queue is named, and the shortest grace of them holds.
coming as materialized (
    select o.ctid::tid as place, p.by, p.until
    from ses
    cross join clk
    join setpoint.optimizations o on o.session_id = @session_id and o.ended_at is null
    cross join lateral (
        select (array_agg(q.optimization_id order by q.rank, q.ticket))[1] as by, min(i.grace_until) as until
        from (
            select x.variable_id from setpoint.optimization_variables x
            where x.session_id = @session_id and x.optimization_id between o.optimization_id and o.optimization_id
            order by x.optimization_id, x.variable_id
        ) x
        cross join lateral (
            select q.optimization_id, q.rank, q.ticket from setpoint.optimization_waiters q
            where q.session_id = @session_id and q.variable_id = x.variable_id and q.rank < 0
            order by q.rank, q.ticket
        ) q
        cross join lateral (
            select y.grace_until from setpoint.optimizations y
            where y.session_id = @session_id and y.optimization_id = q.optimization_id and y.ended_at is null
                and y.expires_at > clk.t and y.priority > o.priority
            limit 1
        ) i
    ) p
    where o.state = 'preempting' and o.expires_at > clk.t
        and (p.by is distinct from o.preempted_by or p.until is distinct from o.preempt_until)
),
kept as (
    update setpoint.optimizations o
    set state = case when coming.by is null then 'active' else 'preempting' end, preempted_by = coming.by,
        preempt_until = coming.until
    from coming
    where o.ctid = coming.place
    returning o.session_id, o.optimization_id, o.optimizer_id, o.variables, o.expires_at, o.state
),
held as materialized (
    select kept.optimization_id, kept.expires_at, kept.state, v.variable_id, v.name, v.type, v.metadata, v.place,
        ses.revision + row_number() over (partition by kept.state order by kept.optimization_id, v.variable_id) as revision
    from kept
    cross join ses
    cross join lateral (
        select x.variable_id from setpoint.optimization_variables x
        where x.session_id = @session_id and x.optimization_id between kept.optimization_id and kept.optimization_id
        order by x.optimization_id, x.variable_id
    ) x
    cross join lateral (
        select i.variable_id, i.name, i.type, i.metadata, i.ctid::tid as place from setpoint.variables i
        where i.session_id = @session_id and i.variable_id = x.variable_id and i.optimization_id = kept.optimization_id
        limit 1
    ) v
),
leased as (
    update setpoint.variables v
    set lease_expires_at = held.expires_at
    from held
    where v.ctid = held.place
),
hist as (
    insert into setpoint.history (session_id, revision, variable_id, name, type, change, metadata, changed_by, changed_at,
        optimization_id)
    select @session_id, held.revision, held.variable_id, held.name, held.type, 'lease_kept', held.metadata, @principal,
        ses.changed_at, held.optimization_id
    from held cross join ses
    where held.state = 'active'
),
adv as (
    update setpoint.sessions s
    set revision = m.revision, changed_at = ses.changed_at
    from ses, (select max(held.revision) as revision from held where held.state = 'active') m
    where s.session_id = ses.session_id and m.revision is not null
)
select kept.optimization_id, kept.optimizer_id, kept.variables
from kept
where kept.state = 'active'
order by kept.optimization_id;

-- name: OptimizationEnd :many
-- Ends the session's optimizations whose time is over, as what and when their time made them, and besides the one with
-- @optimization_id as @state. A row for each. An empty @optimization_id: only the former.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
ses as materialized (
    select s.session_id, s.revision, s.ttl_us, greatest(clk.t, s.changed_at) as changed_at
    from setpoint.sessions s cross join clk
    where s.session_id = @session_id and s.expires_at > clk.t
),
due as materialized (
    select o.ctid::tid as place, o.optimization_id, o.optimizer_id, o.state as was, o.variables, o.fencing_token, o.started_at,
        case when o.expires_at <= clk.t then o.ends_as else @state::text end as state,
        case when o.expires_at <= clk.t then o.ends_because else @reason::text end as reason,
        case when o.expires_at <= clk.t then 'service:setpoint' else @principal::text end as principal,
        least(o.expires_at, clk.t) as ended_at
    from ses
    cross join clk
    join setpoint.optimizations o on o.session_id = @session_id and o.ended_at is null
    where (o.expires_at <= clk.t or o.optimization_id = @optimization_id)
),
ended as (
    update setpoint.optimizations o
    set state = due.state, ended_at = due.ended_at, end_reason = due.reason
    from due
    where o.ctid = due.place
),
queued as materialized (
    select w.place
    from due
    cross join lateral (
        select q.ctid::tid as place from setpoint.optimization_waiters q
        where q.session_id = @session_id and q.optimization_id between due.optimization_id and due.optimization_id
        order by q.optimization_id, q.variable_id
    ) w
),
left_queue as (
    delete from setpoint.optimization_waiters w using queued where w.ctid = queued.place
),
held as materialized (
    select due.optimization_id, due.reason, due.principal, v.variable_id, v.name, v.type, v.metadata, v.place,
        ses.revision + row_number() over (order by due.optimization_id, v.variable_id) as revision
    from due
    cross join ses
    cross join lateral (
        select x.variable_id from setpoint.optimization_variables x
        where x.session_id = @session_id and x.optimization_id between due.optimization_id and due.optimization_id
        order by x.optimization_id, x.variable_id
    ) x
    cross join lateral (
        select i.variable_id, i.name, i.type, i.metadata, i.ctid::tid as place from setpoint.variables i
        where i.session_id = @session_id and i.variable_id = x.variable_id and i.optimization_id = due.optimization_id
        limit 1
    ) v
    where due.was <> 'waiting'
),
freed as (
    update setpoint.variables v
    set lease_expires_at = null
    from held
    where v.ctid = held.place
),
hist as (
    insert into setpoint.history (session_id, revision, variable_id, name, type, change, metadata, reason, changed_by,
        changed_at, optimization_id)
    select @session_id, held.revision, held.variable_id, held.name, held.type, 'lease_ended', held.metadata, held.reason,
        held.principal, ses.changed_at, held.optimization_id
    from held cross join ses
),
adv as (
    update setpoint.sessions s
    set revision = greatest(s.revision, m.revision), changed_at = ses.changed_at,
        -- What the clock ends is no sign of life.
        expires_at = case
            when @optimization_id::text = '' then s.expires_at
            when s.ttl_us = 0 then 'infinity'
            else clk.t + s.ttl_us * interval '1 microsecond'
        end
    from ses, clk, (select max(held.revision) as revision from held) m
    where s.session_id = ses.session_id and (m.revision is not null or @optimization_id::text <> '')
)
select due.optimization_id, due.optimizer_id, due.was, due.state::text as state, due.variables, due.reason::text as reason,
    due.started_at, due.ended_at::timestamptz as ended_at
from due
order by due.optimization_id;

-- name: OptimizationRenew :one
-- Extends a lease, or a stay in the queue, and tells what there is; nothing is extended of one that has ended, or that the caller
-- does not hold. The grace of a preemption goes on as it is: a lease is not extended beyond it. No row: no such session. An
-- empty state: no such optimization, or the caller may not optimize all of its variables.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
who as materialized (select @principal::text as principal, @groups::text as groups, @authority::int as authority),
ses as materialized (
    select s.session_id, s.owner, s.created_revision
    from setpoint.sessions s cross join clk
    where s.session_id = @session_id and s.expires_at > clk.t
),
mine as materialized (
    select o.session_id, o.optimization_id, o.state, o.ends_as, o.ended_at, o.expires_at, o.fencing_token, o.started_by,
        case
            when o.ended_at is not null or o.expires_at <= clk.t then 'OPTIMIZATION_ENDED'
            when o.state = 'waiting' and o.started_by <> who.principal then 'ACCESS_DENIED'
            when o.state <> 'waiting' and o.fencing_token <> @fencing_token then 'LEASE_LOST'
        end as refused
    from ses
    cross join clk
    cross join who
    join setpoint.optimizations o on o.session_id = @session_id and o.optimization_id = @optimization_id
    cross join lateral setpoint.access_optimization(ses.session_id, ses.owner, o.optimization_id, who.principal, who.groups,
        who.authority, 8, clk.t) as a(mask, lacking)
    where o.created_revision = ses.created_revision and a.mask & 8 <> 0
),
renewed as (
    update setpoint.optimizations o
    set renewed_until = clk.t + o.ttl_us * interval '1 microsecond'
    from mine, clk
    where o.session_id = @session_id and o.optimization_id = @optimization_id and mine.refused is null
    returning o.session_id, o.optimization_id, o.state, o.expires_at
),
held as materialized (
    select v.place
    from mine
    cross join lateral (
        select x.variable_id from setpoint.optimization_variables x
        where x.session_id = @session_id and x.optimization_id between @optimization_id and @optimization_id
        order by x.optimization_id, x.variable_id
    ) x
    cross join lateral (
        select i.ctid::tid as place from setpoint.variables i
        where i.session_id = @session_id and i.variable_id = x.variable_id and i.optimization_id = @optimization_id
        limit 1
    ) v
),
leased as (
    update setpoint.variables v
    set lease_expires_at = renewed.expires_at
    from renewed, held
    where renewed.state <> 'waiting' and v.ctid = held.place
),
adv as (
    update setpoint.sessions s
    set expires_at = case when s.ttl_us = 0 then 'infinity' else clk.t + s.ttl_us * interval '1 microsecond' end
    from mine, clk
    where s.session_id = mine.session_id and mine.refused is null
)
select
    coalesce(mine.refused, '')::text as refused,
    coalesce(case when mine.ended_at is null and mine.expires_at <= clk.t then mine.ends_as else mine.state end, '')::text as state
from ses cross join clk left join mine on true;

-- name: OptimizationHeld :many
-- Those of the leases that hold.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
lease as materialized (
    select unnest(@optimization_ids::text[]) as optimization_id, unnest(@fencing_tokens::bigint[]) as fencing_token
)
select o.optimization_id
from lease
cross join clk
cross join lateral (
    select x.optimization_id from setpoint.optimizations x
    where x.session_id = @session_id and x.optimization_id = lease.optimization_id and x.fencing_token = lease.fencing_token
        and x.ended_at is null and x.state <> 'waiting' and x.expires_at > clk.t
    limit 1
) o;

-- name: OptimizationStay :many
-- Extends the stays in the queue of a session, for those who follow them; the ids back of those that still wait.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
ses as (
    update setpoint.sessions s
    set expires_at = case when s.ttl_us = 0 then 'infinity' else clk.t + s.ttl_us * interval '1 microsecond' end
    from clk
    where s.session_id = @session_id and s.expires_at > clk.t
    returning s.session_id, s.created_revision
),
stays as materialized (
    select o.place
    from ses
    cross join clk
    cross join (select distinct i.id from unnest(@optimization_ids::text[]) as i(id)) i
    cross join lateral (
        select x.ctid::tid as place from setpoint.optimizations x
        where x.session_id = @session_id and x.optimization_id = i.id and x.created_revision = ses.created_revision
            and x.state = 'waiting' and x.expires_at > clk.t
        limit 1
    ) o
)
update setpoint.optimizations o
set renewed_until = clk.t + o.ttl_us * interval '1 microsecond'
from stays, clk
where o.ctid = stays.place
returning o.optimization_id;

-- name: OptimizationQueue :many
-- Where optimizations are in the queue, of any sessions: a row for each, in its place. An empty state: it is gone, or its session is.
-- ready: nothing stands in the way of its grant. Each queue is read once, however many of those in it ask.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
req as materialized (
    select r.session_id, r.optimization_id, row_number() over () as ord
    from (select unnest(@session_ids::text[]) as session_id, unnest(@optimization_ids::text[]) as optimization_id) r
),
wanted as materialized (
    select distinct w.session_id, w.variable_id
    from req
    cross join lateral (
        select q.session_id, q.variable_id from setpoint.optimization_waiters q
        where q.session_id = req.session_id and q.optimization_id between req.optimization_id and req.optimization_id
        order by q.optimization_id, q.variable_id
    ) w
),
places as materialized (
    select q.session_id, q.optimization_id,
        row_number() over (partition by q.session_id, q.variable_id order by q.rank, q.ticket) as place,
        coalesce(v.lease_expires_at > clk.t, false) as held
    from wanted
    cross join clk
    left join lateral (
        select i.lease_expires_at from setpoint.variables i
        where i.session_id = wanted.session_id and i.variable_id = wanted.variable_id
        limit 1
    ) v on true
    cross join lateral (
        select x.session_id, x.variable_id, x.optimization_id, x.rank, x.ticket from setpoint.optimization_waiters x
        where x.session_id = wanted.session_id and x.variable_id = wanted.variable_id
        order by x.rank, x.ticket
    ) q
    cross join lateral (
        select o.optimization_id from setpoint.optimizations o
        where o.session_id = q.session_id and o.optimization_id = q.optimization_id and o.ended_at is null
            and o.expires_at > clk.t
        limit 1
    ) alive
),
standing as materialized (
    select p.session_id, p.optimization_id, max(p.place) as place, bool_or(p.held) as held
    from places p
    group by p.session_id, p.optimization_id
)
select
    coalesce(case when o.ended_at is null and o.expires_at <= clk.t then o.ends_as else o.state end, '')::text as state,
    coalesce(p.place, 0)::int as queue_position,
    coalesce(o.state = 'waiting' and p.place = 1 and not p.held, false)::boolean as ready,
    coalesce(o.session_ttl_us, 0)::bigint as session_ttl_us,
    o.expires_at,
    clk.t::timestamptz as read_at
from req
cross join clk
left join lateral (
    select x.state, x.ended_at, x.expires_at, x.ends_as, s.ttl_us as session_ttl_us
    from setpoint.optimizations x
    join setpoint.sessions s on s.session_id = x.session_id and s.created_revision = x.created_revision
    where x.session_id = req.session_id and x.optimization_id = req.optimization_id and s.expires_at > clk.t
    limit 1
) o on true
left join standing p on p.session_id = req.session_id and p.optimization_id = req.optimization_id
order by req.ord;

-- name: OptimizationReport :one
-- Records a report, and extends the lease unless it is late. @metrics by name, as in the trial; of those
-- that count the names and values again. The caller has looked the optimization up at @now, and the report is none that was
-- made before.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
mine as materialized (
    select o.session_id, o.optimization_id, coalesce(sqlc.narg('number')::bigint, o.last_number + 1) as number,
        o.objective_metric, o.minimizes, o.best_objective, o.best_number, not @late::boolean and @step::bigint < 0 as counts
    from setpoint.optimizations o
    where o.session_id = @session_id and o.optimization_id = @optimization_id
),
measured as materialized (
    select unnest(@metric_names::text[]) as metric, unnest(@metric_values::float8[]) as value
),
objective as materialized (
    select m.value
    from mine join measured m on m.metric = mine.objective_metric
    where mine.counts and m.value <> 'NaN'
        and (mine.best_objective is null
            or m.value = mine.best_objective and mine.number < mine.best_number
            or case when mine.minimizes then m.value < mine.best_objective else m.value > mine.best_objective end)
),
trial as (
    insert into setpoint.trials (session_id, optimization_id, number, step, vals, payloads, metrics, note, applied, late,
        reported_by, reported_at, bytes)
    select mine.session_id, mine.optimization_id, mine.number, @step, @vals, sqlc.narg('payloads'), @metrics, @note, @applied,
        @late, @principal, clk.t, @bytes
    from mine cross join clk
),
metric as (
    insert into setpoint.trial_metrics (session_id, optimization_id, metric, value, number)
    select mine.session_id, mine.optimization_id, m.metric, m.value, mine.number
    from mine cross join measured m
    where mine.counts and m.value <> 'NaN'
),
reported as (
    update setpoint.optimizations o
    set last_number = greatest(o.last_number, mine.number), last_report_at = clk.t,
        trial_count = o.trial_count + case when mine.counts then 1 else 0 end,
        late_count = o.late_count + case when @late then 1 else 0 end,
        best_number = case when exists (select from objective) then mine.number else o.best_number end,
        best_objective = coalesce((select objective.value from objective), o.best_objective),
        renewed_until = case when @late then o.renewed_until
            else clk.t + o.ttl_us * interval '1 microsecond' end,
        progress_until = case when @late then o.progress_until
            else clk.t + o.progress_us * interval '1 microsecond' end,
        -- A successor may have gone on from the one that there was.
        checkpoint = case when @late then o.checkpoint else coalesce(sqlc.narg('checkpoint')::bytea, o.checkpoint) end,
        checkpoint_number = case when @late or sqlc.narg('checkpoint')::bytea is null then o.checkpoint_number else mine.number end,
        checkpoint_at = case when @late or sqlc.narg('checkpoint')::bytea is null then o.checkpoint_at else clk.t end
    from mine, clk
    where o.session_id = @session_id and o.optimization_id = @optimization_id
    returning o.session_id, o.optimization_id, o.state, o.expires_at, o.preempted_by, o.preempt_until
),
held as materialized (
    select v.place
    from mine
    cross join lateral (
        select x.variable_id from setpoint.optimization_variables x
        where x.session_id = @session_id and x.optimization_id between @optimization_id and @optimization_id
        order by x.optimization_id, x.variable_id
    ) x
    cross join lateral (
        select i.ctid::tid as place from setpoint.variables i
        where i.session_id = @session_id and i.variable_id = x.variable_id and i.optimization_id = @optimization_id
        limit 1
    ) v
),
leased as (
    update setpoint.variables v
    set lease_expires_at = reported.expires_at
    from reported, held
    where not @late and v.ctid = held.place
),
adv as (
    update setpoint.sessions s
    set expires_at = case when s.ttl_us = 0 then 'infinity' else clk.t + s.ttl_us * interval '1 microsecond' end
    from clk
    where s.session_id = @session_id
)
select mine.number::bigint as number, clk.t::timestamptz as reported_at, exists (select from objective)::boolean as is_best,
    reported.expires_at
from mine cross join clk cross join reported;

-- name: OptimizationVariables :many
-- The variables of an optimization, as they were when it was asked for, and whether they still exist.
select x.variable_id, x.name, x.type, (v.variable_id is not null)::boolean as found
from (
    select i.variable_id, i.name, i.type from setpoint.optimization_variables i
    where i.session_id = @session_id and i.optimization_id between @optimization_id::text and @optimization_id::text
    order by i.optimization_id, i.variable_id
) x
left join lateral (
    select i.variable_id from setpoint.variables i where i.session_id = @session_id and i.variable_id = x.variable_id limit 1
) v on true
order by x.name;

-- name: OptimizationFinal :many
-- The values of an optimization's variables, by name, of those that still exist. A value is null from the one on with which they
-- would be more than @max_bytes together.
with held as materialized (
    select v.session_id, v.name, v.type, v.value, v.payload_sha256,
        sum(v.value_bytes) over (order by v.name) <= @max_bytes::bigint as fits
    from (
        select x.variable_id from setpoint.optimization_variables x
        where x.session_id = @session_id and x.optimization_id between @optimization_id and @optimization_id
        order by x.optimization_id, x.variable_id
    ) x
    cross join lateral (
        select i.session_id, i.name, i.type, i.value, i.payload_sha256, i.value_bytes from setpoint.variables i
        where i.session_id = @session_id and i.variable_id = x.variable_id
        limit 1
    ) v
)
select h.name, h.type, h.fits::boolean as fits, case when h.fits then h.value end::jsonb as value, p.data as payload
from held h
left join lateral (
    select y.data from setpoint.payloads y
    where h.fits and y.session_id = @session_id and y.sha256 = h.payload_sha256
    limit 1
) p on true
order by h.name;

-- name: OptimizationGet :one
-- No row: no such session. An empty optimization_id: no such optimization. hidden is not empty where the caller may not see it,
-- or may do nothing in the session; lacking is the first variable with which the caller may not do what @permission says.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
who as materialized (
    select @principal::text as principal, @groups::text as groups, @authority::int as authority, @permission::int as permission
),
ses as materialized (
    select s.session_id, s.owner, s.ttl_us, s.created_revision
    from setpoint.sessions s cross join clk
    where s.session_id = @session_id and s.expires_at > clk.t
)
select
    ses.owner::text as owner,
    ses.ttl_us::bigint as session_ttl_us,
    clk.t::timestamptz as read_at,
    coalesce(a.mask, 0)::int as access,
    coalesce(a.lacking, '')::text as lacking,
    coalesce(case when o.optimization_id is null or a.mask & 1 = 0 then (
        select case when n.anything then 'OPTIMIZATION_NOT_FOUND' else 'SESSION_HIDDEN' end
        from setpoint.access_session(ses.session_id, ses.owner, who.principal, who.groups, who.authority, clk.t)
            as n(mask, anything, reads_all)
    ) end, '')::text as hidden,
    coalesce(o.optimization_id, '')::text as optimization_id,
    coalesce(case when o.ended_at is null and o.expires_at <= clk.t then o.ends_as else o.state end, '')::text as state,
    coalesce(o.optimizer_id, '')::text as optimizer_id,
    coalesce(o.optimizer_process, '')::text as optimizer_process,
    o.variables::text[] as variables,
    coalesce(o.conflict, '')::text as conflict,
    coalesce(o.priority, 0)::int as priority,
    coalesce(o.ttl_us, 0)::bigint as ttl_us,
    o.progress_us,
    o.objective_metric,
    coalesce(o.minimizes, false)::boolean as minimizes,
    o.config,
    coalesce(o.started_by, '')::text as started_by,
    o.requested_at,
    coalesce(o.fencing_token, 0)::bigint as fencing_token,
    o.started_at,
    o.expires_at,
    o.wait_until,
    o.preempt_until,
    o.preempted_by,
    p.optimizer_id as preempting_optimizer_id,
    case when o.ended_at is null and o.expires_at <= clk.t then o.expires_at else o.ended_at end::timestamptz as ended_at,
    coalesce(case when o.ended_at is null and o.expires_at <= clk.t then o.ends_because else o.end_reason end, '')::text
        as end_reason,
    coalesce(o.trial_count, 0)::bigint as trial_count,
    coalesce(o.late_count, 0)::bigint as late_count,
    coalesce(o.last_number, 0)::bigint as last_number,
    o.last_report_at,
    coalesce(case when o.state = 'waiting' and o.expires_at > clk.t then (
        select max(1 + ahead.waiters)
        from (
            select i.variable_id, i.rank, i.ticket from setpoint.optimization_waiters i
            where i.session_id = @session_id and i.optimization_id between @optimization_id and @optimization_id
            order by i.optimization_id, i.variable_id
        ) w
        cross join lateral (
            select count(*) as waiters
            from (
                select i.optimization_id from setpoint.optimization_waiters i
                where i.session_id = @session_id and i.variable_id = w.variable_id and (i.rank, i.ticket) < (w.rank, w.ticket)
                order by i.rank, i.ticket
            ) q
            cross join lateral (
                select from setpoint.optimizations x
                where x.session_id = @session_id and x.optimization_id = q.optimization_id and x.ended_at is null
                    and x.expires_at > clk.t
                limit 1
            ) alive
        ) ahead
    ) end, 0)::int as queue_position,
    o.best_number,
    t.vals as best_vals,
    t.payloads as best_payloads,
    t.metrics as best_metrics,
    t.note as best_note,
    t.applied as best_applied,
    t.reported_at as best_reported_at,
    1::bigint as candidates,
    c.optimization_id as checkpoint_id,
    c.checkpoint_number,
    c.checkpoint_at,
    c.checkpoint::bytea as checkpoint
from ses
cross join clk
cross join who
left join setpoint.optimizations o
    on o.session_id = @session_id and o.optimization_id = @optimization_id and o.created_revision = ses.created_revision
left join lateral setpoint.access_optimization(ses.session_id, ses.owner, o.optimization_id, who.principal, who.groups,
    who.authority, who.permission, clk.t) as a(mask, lacking) on true
left join lateral (
    select x.optimizer_id from (values (true)) one (row)
    left join setpoint.optimizations x on x.session_id = @session_id and x.optimization_id = o.preempted_by
    limit 1
) p on true
left join lateral (
    select x.vals, x.payloads, x.metrics, x.note, x.applied, x.reported_at from (values (true)) one (row)
    left join setpoint.trials x
        on x.session_id = @session_id and x.optimization_id = @optimization_id and x.number = o.best_number and x.step = -1
    limit 1
) t on true
left join lateral (
    select x.optimization_id, x.checkpoint, x.checkpoint_number, x.checkpoint_at from (values (true)) one (row)
    left join setpoint.optimizations x
        on @with_checkpoint::boolean and x.session_id = @session_id and x.checkpoint_at is not null
        and x.optimization_id = case when o.checkpoint_at is not null then o.optimization_id else o.inherits_id end
    limit 1
) c on true;

-- name: OptimizationList :many
-- A page, newest first, below @before. candidates counts the rows before the page was cut at @max_bytes; the first row is
-- always in. No row: no such session. An empty optimization_id, alone: none. states and variable_id
-- select; empty is all. Of those all of whose variables the caller may read; access is what the caller may do with all of them.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
who as materialized (select @principal::text as principal, @groups::text as groups, @authority::int as authority),
ses as materialized (
    select s.session_id, s.owner, s.ttl_us, s.created_revision
    from setpoint.sessions s cross join clk
    where s.session_id = @session_id and s.expires_at > clk.t
),
-- The ids on the page: of one variable, of those that are open alone, which are few, or of all.
found as materialized (
    (
        select o.optimization_id
        from (
            select x.variable_id, x.optimization_id from setpoint.optimization_variables x
            where @variable_id::text <> '' and x.session_id = @session_id
                and x.variable_id between @variable_id::text and @variable_id::text and x.optimization_id < @before::text
            order by x.variable_id desc, x.optimization_id desc
        ) o
        cross join ses
        cross join clk
        cross join lateral (
            select from setpoint.optimizations i
            where i.session_id = @session_id and i.optimization_id = o.optimization_id
                and i.created_revision = ses.created_revision and (cardinality(@states::text[]) = 0
                    or case when i.ended_at is null and i.expires_at <= clk.t then i.ends_as else i.state end = any(@states::text[]))
            limit 1
        ) of_those
        cross join lateral (
            select a.mask
            from who
            cross join lateral setpoint.access_optimization(ses.session_id, ses.owner, o.optimization_id, who.principal,
                who.groups, who.authority, 1, clk.t) as a(mask, lacking)
            offset 0
        ) may
        where may.mask & 1 <> 0
        order by o.variable_id desc, o.optimization_id desc
        limit @row_limit
    )
    union all
    (
        select o.optimization_id
        from setpoint.optimizations o
        cross join ses
        cross join clk
        cross join lateral (
            select a.mask
            from who
            cross join lateral setpoint.access_optimization(ses.session_id, ses.owner, o.optimization_id, who.principal,
                who.groups, who.authority, 1, clk.t) as a(mask, lacking)
            offset 0
        ) may
        where may.mask & 1 <> 0 and @variable_id::text = '' and (cardinality(@states::text[]) > 0 and @states::text[] <@ array['waiting', 'active', 'preempting'])
            and o.session_id = @session_id and o.optimization_id < @before::text and o.ended_at is null
            and o.created_revision = ses.created_revision and o.expires_at > clk.t and o.state = any(@states::text[])
        order by o.optimization_id desc
        limit @row_limit
    )
    union all
    (
        select o.optimization_id
        from setpoint.optimizations o
        cross join ses
        cross join clk
        cross join lateral (
            select a.mask
            from who
            cross join lateral setpoint.access_optimization(ses.session_id, ses.owner, o.optimization_id, who.principal,
                who.groups, who.authority, 1, clk.t) as a(mask, lacking)
            offset 0
        ) may
        where may.mask & 1 <> 0 and @variable_id::text = '' and not (cardinality(@states::text[]) > 0 and @states::text[] <@ array['waiting', 'active', 'preempting'])
            and o.session_id = @session_id and o.optimization_id < @before::text
            and o.created_revision = ses.created_revision and (cardinality(@states::text[]) = 0
                or case when o.ended_at is null and o.expires_at <= clk.t then o.ends_as else o.state end = any(@states::text[]))
        order by o.optimization_id desc
        limit @row_limit
    )
),
page as materialized (
    select o.session_id, o.optimization_id, o.state, o.ends_as, o.ends_because, o.optimizer_id, o.optimizer_process,
        o.variables, o.conflict, o.priority, o.ttl_us, o.progress_us, o.objective_metric, o.minimizes, o.config, o.started_by,
        o.requested_at, o.fencing_token, o.started_at, o.expires_at, o.wait_until, o.preempt_until, o.preempted_by, o.ended_at, o.end_reason,
        o.trial_count, o.late_count, o.last_number, o.last_report_at, o.best_number
    from found
    cross join lateral (
        select x.* from setpoint.optimizations x
        where x.session_id = @session_id and x.optimization_id = found.optimization_id
        limit 1
    ) o
),
-- Each queue for which one of the page waits is read once.
queues as materialized (
    select distinct w.variable_id
    from page
    cross join lateral (
        select q.variable_id from setpoint.optimization_waiters q
        where page.state = 'waiting' and q.session_id = @session_id
            and q.optimization_id between page.optimization_id and page.optimization_id
        order by q.optimization_id, q.variable_id
    ) w
),
places as materialized (
    select q.optimization_id, row_number() over (partition by queues.variable_id order by q.rank, q.ticket) as place
    from queues
    cross join clk
    cross join lateral (
        select x.optimization_id, x.rank, x.ticket from setpoint.optimization_waiters x
        where x.session_id = @session_id and x.variable_id = queues.variable_id
        order by x.rank, x.ticket
    ) q
    cross join lateral (
        select from setpoint.optimizations o
        where o.session_id = @session_id and o.optimization_id = q.optimization_id and o.ended_at is null and o.expires_at > clk.t
        limit 1
    ) alive
),
standing as materialized (
    select jsonb_object_agg(s.optimization_id, s.place) as place_of
    from (select p.optimization_id, max(p.place) as place from places p group by p.optimization_id) s
),
sized as materialized (
    select
        page.*,
        sum(coalesce(octet_length(page.config::text), 0) + octet_length(page.variables::text)
            + coalesce(b.bytes, 0))
            over (order by page.optimization_id desc) as running_bytes,
        row_number() over (order by page.optimization_id desc) as place,
        count(*) over () as candidates
    from page
    left join lateral (
        select x.bytes from setpoint.trials x
        where x.session_id = @session_id and x.optimization_id = page.optimization_id and x.number = page.best_number
            and x.step = -1
        limit 1
    ) b on true
)
select
    ses.owner::text as owner,
    ses.ttl_us::bigint as session_ttl_us,
    clk.t::timestamptz as read_at,
    coalesce(a.mask, 0)::int as access,
    ''::text as lacking,
    ''::text as hidden,
    coalesce(o.optimization_id, '')::text as optimization_id,
    coalesce(case when o.ended_at is null and o.expires_at <= clk.t then o.ends_as else o.state end, '')::text as state,
    coalesce(o.optimizer_id, '')::text as optimizer_id,
    coalesce(o.optimizer_process, '')::text as optimizer_process,
    o.variables::text[] as variables,
    coalesce(o.conflict, '')::text as conflict,
    coalesce(o.priority, 0)::int as priority,
    coalesce(o.ttl_us, 0)::bigint as ttl_us,
    o.progress_us,
    o.objective_metric,
    coalesce(o.minimizes, false)::boolean as minimizes,
    o.config,
    coalesce(o.started_by, '')::text as started_by,
    o.requested_at,
    coalesce(o.fencing_token, 0)::bigint as fencing_token,
    o.started_at,
    o.expires_at,
    o.wait_until,
    o.preempt_until,
    o.preempted_by,
    p.optimizer_id as preempting_optimizer_id,
    case when o.ended_at is null and o.expires_at <= clk.t then o.expires_at else o.ended_at end::timestamptz as ended_at,
    coalesce(case when o.ended_at is null and o.expires_at <= clk.t then o.ends_because else o.end_reason end, '')::text
        as end_reason,
    coalesce(o.trial_count, 0)::bigint as trial_count,
    coalesce(o.late_count, 0)::bigint as late_count,
    coalesce(o.last_number, 0)::bigint as last_number,
    o.last_report_at,
    coalesce(case when o.state = 'waiting' and o.expires_at > clk.t then (standing.place_of ->> o.optimization_id)::int end, 0)::int as queue_position,
    o.best_number,
    t.vals as best_vals,
    t.payloads as best_payloads,
    t.metrics as best_metrics,
    t.note as best_note,
    t.applied as best_applied,
    t.reported_at as best_reported_at,
    coalesce(o.candidates, 0)::bigint as candidates,
    null::text as checkpoint_id,
    null::bigint as checkpoint_number,
    null::timestamptz as checkpoint_at,
    null::bytea as checkpoint
from ses
cross join clk
cross join standing
cross join who
left join sized o on o.place = 1 or o.running_bytes <= @max_bytes::bigint
left join lateral setpoint.access_optimization(ses.session_id, ses.owner, o.optimization_id, who.principal, who.groups,
    who.authority, 1, clk.t) as a(mask, lacking) on true
left join lateral (
    select x.optimizer_id from (values (true)) one (row)
    left join setpoint.optimizations x on x.session_id = @session_id and x.optimization_id = o.preempted_by
    limit 1
) p on true
left join lateral (
    select x.vals, x.payloads, x.metrics, x.note, x.applied, x.reported_at from (values (true)) one (row)
    left join setpoint.trials x
        on x.session_id = @session_id and x.optimization_id = o.optimization_id and x.number = o.best_number and x.step = -1
    limit 1
) t on true
order by o.optimization_id desc;

-- name: OptimizationOf :one
-- Who has the lease of a variable, and how many wait for it. No row: no such session. An empty variable_id: no such variable.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
ses as materialized (
    select s.session_id, s.ttl_us
    from setpoint.sessions s cross join clk
    where s.session_id = @session_id and s.expires_at > clk.t
)
select
    ses.ttl_us::bigint as session_ttl_us,
    clk.t::timestamptz as read_at,
    coalesce(v.variable_id, '')::text as variable_id,
    coalesce(case when v.lease_expires_at > clk.t then v.optimization_id end, '')::text as optimization_id,
    (
        select count(*)
        from (
            select i.optimization_id from setpoint.optimization_waiters i
            where i.session_id = @session_id and i.variable_id = v.variable_id
            order by i.rank, i.ticket
        ) q
        cross join lateral (
            select from setpoint.optimizations o
            where o.session_id = @session_id and o.optimization_id = q.optimization_id and o.ended_at is null
                and o.expires_at > clk.t
            limit 1
        ) alive
    )::bigint as waiting
from ses
cross join clk
left join lateral (
    select i.* from setpoint.variables i where i.session_id = ses.session_id and i.variable_id = @variable
    union all
    select n.* from setpoint.variables n where n.session_id collate "POSIX" = ses.session_id and n.name = @variable
) v on true;

-- name: TrialGet :one
select t.number, t.step, t.vals, t.payloads, t.metrics, t.note, t.applied, t.late, t.reported_at
from setpoint.trials t
where t.session_id = @session_id and t.optimization_id = @optimization_id and t.number = @number::bigint
    and t.step = @step::bigint;

-- name: TrialList :many
-- A page by number and step, after @number and @step; results alone, which have an index of their own, or intermediate reports
-- too. candidates counts the rows before the page was cut at @max_bytes; the first row is always in.
with page as materialized (
    (
        select t.number, t.step, t.bytes
        from setpoint.trials t
        where not @include_intermediate::boolean and t.session_id = @session_id and t.optimization_id = @optimization_id
            and t.step = -1 and t.number > @number::bigint
        order by t.number
        limit @row_limit
    )
    union all
    (
        select t.number, t.step, t.bytes
        from setpoint.trials t
        where @include_intermediate::boolean and t.session_id = @session_id and t.optimization_id = @optimization_id
            and (t.number, t.step) > (@number::bigint, @step::bigint)
        order by t.number, t.step
        limit @row_limit
    )
),
sized as materialized (
    select
        page.number, page.step,
        sum(page.bytes) over (order by page.number, page.step) as running_bytes,
        row_number() over (order by page.number, page.step) as place,
        count(*) over () as candidates
    from page
)
select t.number, t.step, t.vals, t.payloads, t.metrics, t.note, t.applied, t.late, t.reported_at,
    z.candidates::bigint as candidates
from sized z
cross join lateral (
    select x.* from setpoint.trials x
    where x.session_id = @session_id and x.optimization_id = @optimization_id and x.number = z.number and x.step = z.step
    limit 1
) t
where z.place = 1 or z.running_bytes <= @max_bytes::bigint
order by z.number, z.step;

-- name: TrialLeast :many
-- A page of the trials that count by a metric, the least first and then by number, after @value and @number, or from the
-- beginning. candidates counts the rows before the page was cut at @max_bytes; the first row is always in.
with best as materialized (
    select m.value, m.number
    from setpoint.trial_metrics m
    where m.session_id = @session_id and m.optimization_id = @optimization_id and m.metric = @metric
        and (m.value, m.number) > (
            case when @from_start::boolean then '-Infinity' else @value::float8 end,
            case when @from_start::boolean then -1 else @number::bigint end
        )
    order by m.value, m.number
    limit @row_limit
),
page as materialized (
    select b.value, b.number, t.bytes
    from best b
    cross join lateral (
        select x.bytes from setpoint.trials x
        where x.session_id = @session_id and x.optimization_id = @optimization_id and x.number = b.number and x.step = -1
        limit 1
    ) t
),
sized as materialized (
    select
        page.value, page.number,
        sum(page.bytes) over (order by page.value, page.number) as running_bytes,
        row_number() over (order by page.value, page.number) as place,
        count(*) over () as candidates
    from page
)
select t.number, t.step, t.vals, t.payloads, t.metrics, t.note, t.applied, t.late, t.reported_at,
    z.candidates::bigint as candidates, z.value::float8 as value
from sized z
cross join lateral (
    select x.* from setpoint.trials x
    where x.session_id = @session_id and x.optimization_id = @optimization_id and x.number = z.number and x.step = -1
    limit 1
) t
where z.place = 1 or z.running_bytes <= @max_bytes::bigint
order by z.value, z.number;

-- name: TrialGreatest :many
-- As TrialLeast, the greatest first. NaN, which none has, is greater than every number.
with best as materialized (
    select k.value, k.number
    from (
        (select m.value, m.number from setpoint.trial_metrics m
            where m.session_id = @session_id and m.optimization_id = @optimization_id and m.metric = @metric
                and not @from_start::boolean and m.value = @value::float8 and m.number > @number::bigint
            order by m.value desc, m.number limit @row_limit)
        union all
        (select m.value, m.number from setpoint.trial_metrics m
            where m.session_id = @session_id and m.optimization_id = @optimization_id and m.metric = @metric
                and m.value < case when @from_start::boolean then 'NaN' else @value::float8 end
            order by m.value desc, m.number limit @row_limit)
    ) k
    order by k.value desc, k.number
    limit @row_limit
),
page as materialized (
    select b.value, b.number, t.bytes
    from best b
    cross join lateral (
        select x.bytes from setpoint.trials x
        where x.session_id = @session_id and x.optimization_id = @optimization_id and x.number = b.number and x.step = -1
        limit 1
    ) t
),
sized as materialized (
    select
        page.value, page.number,
        sum(page.bytes) over (order by page.value desc, page.number) as running_bytes,
        row_number() over (order by page.value desc, page.number) as place,
        count(*) over () as candidates
    from page
)
select t.number, t.step, t.vals, t.payloads, t.metrics, t.note, t.applied, t.late, t.reported_at,
    z.candidates::bigint as candidates, z.value::float8 as value
from sized z
cross join lateral (
    select x.* from setpoint.trials x
    where x.session_id = @session_id and x.optimization_id = @optimization_id and x.number = z.number and x.step = -1
    limit 1
) t
where z.place = 1 or z.running_bytes <= @max_bytes::bigint
order by z.value desc, z.number;
