-- What the sweeper asks and removes. A history row goes when it is beyond its variable's history_limit and beyond
-- the retention, both; a snapshot or a watch that would need it is refused from before on: the floors are raised first, in
-- a statement of their own, and rows go after.

-- name: SweepEnded :many
-- Sessions that have expired and still hold something.
select s.session_id
from setpoint.sessions s
where s.ended_at is null and s.session_id > @after and s.expires_at <= coalesce(sqlc.narg('now')::timestamptz, clock_timestamp())
order by s.session_id
limit @row_limit;

-- name: SweepRemoveVariables :execrows
-- One bounded batch of an ended session's variables; nothing may depend on anything any more. The caller holds the
-- session's lock and has seen that it has ended.
delete from setpoint.variables v
where v.session_id = @session_id
    and v.variable_id in (
        select d.variable_id from setpoint.variables d
        where d.session_id = @session_id order by d.variable_id limit @row_limit
    );

-- name: SweepRemoveDependencies :execrows
-- One bounded batch of an ended session's edges, as SweepRemoveVariables.
delete from setpoint.dependencies e
where e.session_id = @session_id and e.ctid = any(array(
    select d.ctid from setpoint.dependencies d
    where d.session_id = @session_id
    order by d.dependent_id, d.dependency_id
    limit @row_limit
));

-- name: SweepRemoveWaiters :execrows
-- One bounded batch of an ended session's queue, as SweepRemoveVariables.
delete from setpoint.optimization_waiters w
where w.session_id = @session_id and w.ctid = any(array(
    select d.ctid from setpoint.optimization_waiters d
    where d.session_id = @session_id
    order by d.optimization_id, d.variable_id
    limit @row_limit
));

-- name: SweepRemoveRules :execrows
-- One bounded batch of an ended session's access rules, as SweepRemoveVariables.
delete from setpoint.access_rules x
where x.session_id = @session_id and x.rule_id in (
    select d.rule_id from setpoint.access_rules d
    where d.session_id = @session_id order by d.rule_id limit @row_limit
);

-- name: SweepExpiredRules :many
-- Sessions after @after, by id, with access rules that expired more than an hour ago.
with cut as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) - interval '1 hour' as t)
select distinct x.session_id
from setpoint.access_rules x
where x.expires_at < (select cut.t from cut) and x.session_id > @after
order by x.session_id
limit @row_limit;

-- name: SweepForgetRules :execrows
-- Removes one bounded batch of a session's access rules that expired more than an hour ago. The caller holds its lock: somebody may
-- be about to remove one, with a row of history.
with cut as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) - interval '1 hour' as t)
delete from setpoint.access_rules x
where x.session_id = @session_id and x.rule_id in (
    select d.rule_id from setpoint.access_rules d
    where d.session_id = @session_id and d.expires_at < (select cut.t from cut)
    limit @row_limit
);

-- name: SweepEndOptimizations :many
-- Ends an ended session's optimizations, one bounded batch; their records stay for as long as history does.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
open as materialized (
    select o.session_id, o.optimization_id, o.state as was
    from setpoint.optimizations o
    where o.session_id = @session_id and o.ended_at is null
    order by o.optimization_id
    limit @row_limit
)
update setpoint.optimizations o
set state = case when o.expires_at <= s.expires_at then o.ends_as else 'expired' end,
    ended_at = least(o.expires_at, s.expires_at),
    end_reason = case when o.expires_at <= s.expires_at then o.ends_because else 'the session ended' end
from open, setpoint.sessions s, clk
where o.session_id = open.session_id and o.optimization_id = open.optimization_id and s.session_id = @session_id
    and s.expires_at <= clk.t
returning o.optimization_id, o.optimizer_id, o.variables, open.was, o.state, o.end_reason;

-- name: SweepPatience :exec
-- How long this transaction waits for a lock.
-- @sqlc-vet-disable session-id-everywhere
select set_config('lock_timeout', @patience::text, true) as lock_timeout;

-- name: SweepLeases :many
-- Live sessions with optimizations whose time is over and of which nobody has written so yet.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t)
select distinct o.session_id
from clk
join setpoint.optimizations o on o.ended_at is null and o.expires_at <= clk.t
join setpoint.sessions s on s.session_id = o.session_id and s.expires_at > clk.t
where o.session_id > @after
order by o.session_id
limit @row_limit;

-- name: SweepOldOptimizations :many
-- Optimizations of earlier lives of sessions that ended before the retention. A server that knew no optimizations has left
-- theirs open. Ids grow: of a session that lives, whose first one is of this life, no other is looked at.
with cut as materialized (
    select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t, @retention_us::bigint as kept_us
)
select s.session_id, o.optimization_id
from setpoint.sessions s
cross join lateral (
    select x.created_revision from setpoint.optimizations x
    where x.session_id = s.session_id
    order by x.optimization_id
    limit 1
) oldest
cross join lateral (
    select x.optimization_id from setpoint.optimizations x
    where x.session_id = s.session_id and (x.session_id, x.optimization_id) > (@after_session, @after_optimization)
        and (s.ended_at is not null or oldest.created_revision <> s.created_revision)
        and (s.ended_at is not null or x.created_revision <> s.created_revision)
        and coalesce(x.ended_at, s.ended_at) < (select cut.t - cut.kept_us * interval '1 microsecond' from cut)
    order by x.optimization_id
    limit @row_limit
) o
where s.session_id >= @after_session
order by s.session_id, o.optimization_id
limit @row_limit;

-- name: SweepRemoveMetrics :execrows
-- One bounded batch of an optimization's metrics.
delete from setpoint.trial_metrics m
where m.session_id = @session_id and m.optimization_id = @optimization_id and m.ctid = any(array(
    select d.ctid from setpoint.trial_metrics d
    where d.session_id = @session_id and d.optimization_id = @optimization_id
    limit @row_limit
));

-- name: SweepRemoveTrials :execrows
-- One bounded batch of an optimization's trials.
delete from setpoint.trials t
where t.session_id = @session_id and t.optimization_id = @optimization_id and t.ctid = any(array(
    select d.ctid from setpoint.trials d
    where d.session_id = @session_id and d.optimization_id = @optimization_id
    limit @row_limit
));

-- name: SweepRemoveOptimization :exec
-- An optimization whose trials are gone.
with vars as (
    delete from setpoint.optimization_variables x where x.session_id = @session_id and x.optimization_id = @optimization_id
),
waiters as (
    delete from setpoint.optimization_waiters w where w.session_id = @session_id and w.optimization_id = @optimization_id
)
delete from setpoint.optimizations o where o.session_id = @session_id and o.optimization_id = @optimization_id;

-- name: SweepEnd :execrows
update setpoint.sessions s
set ended_at = coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()), variable_count = 0
where s.session_id = @session_id and s.ended_at is null
    and s.expires_at <= coalesce(sqlc.narg('now')::timestamptz, clock_timestamp());

-- name: SweepSessions :many
-- Sessions whose oldest kept row is beyond the retention, after @after, by id.
with cut as materialized (
    select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t,
        @retention_us::bigint as kept_us
)
select s.session_id
from setpoint.sessions s
cross join lateral (
    select h.changed_at from setpoint.history h where h.session_id = s.session_id order by h.revision limit 1
) oldest
where s.session_id > @after
    and oldest.changed_at < (select cut.t - cut.kept_us * interval '1 microsecond' from cut)
order by s.session_id
limit @row_limit;

-- name: SweepVersions :many
-- For variables after @after, by id: up to which version rows are to go (-1: none), how many they are, at most @per_variable,
-- and the revisions of the last of them and of the first that stays.
with cut as materialized (
    select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t,
        @retention_us::bigint as kept_us
)
select
    v.variable_id,
    coalesce(old.up_to, -1)::bigint as up_to,
    old.found::bigint as found,
    coalesce(old.last_revision, 0)::bigint as last_revision,
    coalesce(stays.revision, 0)::bigint as stays_revision
from (
    select x.variable_id, x.version - x.history_limit as oldest_listed
    from setpoint.variables x
    where x.session_id = @session_id and x.variable_id > @after and x.history_limit > 0 and x.version > x.history_limit
    order by x.variable_id
    limit @row_limit
) v
cross join lateral (
    select max(o.version) as up_to, max(o.revision) as last_revision, count(*) as found
    from (
        select h.version, h.revision, h.changed_at
        from setpoint.history h
        where h.session_id collate "POSIX" = @session_id and h.variable_id = v.variable_id and h.version < v.oldest_listed
        order by h.version
        limit @per_variable
    ) o
    where o.changed_at < (select cut.t - cut.kept_us * interval '1 microsecond' from cut)
) old
left join lateral (
    select h.revision
    from setpoint.history h
    where h.session_id collate "POSIX" = @session_id and h.variable_id = v.variable_id and h.version > old.up_to
    order by h.version
    limit 1
) stays on true
order by v.variable_id;

-- name: SweepDeletions :many
-- Variables whose deletion is beyond the retention: all their rows are.
with cut as materialized (
    select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t,
        @retention_us::bigint as kept_us
)
select h.variable_id, max(h.revision)::bigint as revision, max(h.changed_at)::timestamptz as changed_at
from setpoint.history h
where h.session_id = @session_id and h.change = 'deleted'
    and h.changed_at < (select cut.t - cut.kept_us * interval '1 microsecond' from cut)
group by h.variable_id
order by h.variable_id
limit @row_limit;

-- name: SweepRaiseFloors :execrows
-- Raises the floors, unless somebody has the session locked: no writer waits for the sweeper. Nor does one wait for this
-- commit to reach the disk: it does before that of the removal, which comes after it in the log.
with soon as materialized (select set_config('synchronous_commit', 'off', true) as setting)
update setpoint.sessions s
set history_floor = greatest(s.history_floor, @history_floor::bigint),
    snapshot_floor = greatest(s.snapshot_floor, @snapshot_floor::bigint),
    snapshot_floor_at = greatest(s.snapshot_floor_at, sqlc.narg('snapshot_floor_at')::timestamptz)
from soon, (
    select l.session_id from setpoint.sessions l where l.session_id = @session_id for no key update skip locked
) free
where s.session_id = free.session_id and soon.setting = 'off';

-- name: SweepRemoveVersions :execrows
-- Removes the rows up to a version of variables, and what else is told before the first that stays and is beyond the
-- retention too. Looks again at the limits: they may have been raised since. Rows of history do not move, so the places of
-- those that were found are theirs: to look them up by key the planner might read all of a session.
with cut as materialized (
    select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t, @retention_us::bigint as kept_us
),
old as materialized (
    select unnest(@variable_ids::text[]) as variable_id, unnest(@up_to::bigint[]) as up_to,
        unnest(@stays_revisions::bigint[]) as stays_revision
)
delete from setpoint.history h
where h.session_id = @session_id and h.ctid = any(array(
    select x.place
    from old
    cross join lateral (
        select y.version, y.history_limit
        from setpoint.variables y
        where y.session_id = @session_id and y.variable_id = old.variable_id
        limit 1
    ) v
    cross join lateral (
        select y.ctid as place
        from setpoint.history y
        where y.session_id collate "POSIX" = @session_id and y.variable_id = old.variable_id and y.version <= old.up_to
        union all
        select y.ctid as place
        from setpoint.history y
        where y.session_id collate "POSIX" = @session_id and y.variable_id = old.variable_id and y.version is null
            and y.revision < old.stays_revision
            and y.changed_at < (select cut.t - cut.kept_us * interval '1 microsecond' from cut)
    ) x
    where v.history_limit > 0 and old.up_to < v.version - v.history_limit
));

-- name: SweepRemoveVariable :execrows
-- Removes one bounded batch of a deleted variable's rows, its deletion last.
delete from setpoint.history h
where h.session_id = @session_id and h.ctid = any(array(
    select x.ctid
    from setpoint.history x
    where x.session_id collate "POSIX" = @session_id and x.variable_id = @variable_id and x.revision <= @up_to_revision::bigint
    order by x.version nulls last, x.revision
    limit @row_limit
));

-- name: SweepRemoveEnded :execrows
-- Removes one bounded batch of the rows that belong to lives of a session that ended before the retention: all of it, or
-- those up to its creation.
with cut as materialized (
    select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t, @retention_us::bigint as kept_us
),
old as materialized (
    select cut.t - cut.kept_us * interval '1 microsecond' as before from cut
),
ended as materialized (
    select
        case
            when s.ended_at < old.before then s.revision
            when s.created_at < old.before then s.created_revision
            else 0
        end as up_to
    from setpoint.sessions s cross join old
    where s.session_id = @session_id
)
delete from setpoint.history h
where h.session_id = @session_id and h.ctid = any(array(
    select x.ctid
    from setpoint.history x
    where x.session_id = @session_id and x.revision <= (select ended.up_to from ended)
        and x.changed_at < (select old.before from old)
    order by x.revision
    limit @row_limit
));

-- name: SweepPayloads :execrows
-- Removes one bounded batch of bytes that nothing refers to. The caller holds the session's lock: a writer may be about to
-- refer to them again.
delete from setpoint.payloads p
where p.session_id = @session_id and p.sha256 in (
    select x.sha256
    from setpoint.payloads x
    where x.session_id = @session_id
        and not exists (
            select from setpoint.variables v where v.session_id = x.session_id and v.payload_sha256 = x.sha256)
        and not exists (
            select from setpoint.history h where h.session_id = x.session_id and h.payload_sha256 = x.sha256)
    limit @row_limit
);

-- name: SweepUnusedPayloads :many
-- Sessions after @after, by id, with bytes that nothing refers to.
select distinct x.session_id
from setpoint.payloads x
where x.session_id > @after
    and not exists (
        select from setpoint.variables v where v.session_id = x.session_id and v.payload_sha256 = x.sha256)
    and not exists (
        select from setpoint.history h where h.session_id = x.session_id and h.payload_sha256 = x.sha256)
order by x.session_id
limit @row_limit;

-- name: SweepForget :execrows
-- Forgets a session that has ended and of which nothing is left, but rules that a server has left which knew of none: they go with
-- it. The caller holds its lock.
delete from setpoint.sessions s
where s.session_id = @session_id and s.ended_at is not null
    and not exists (select from setpoint.history h where h.session_id = s.session_id)
    and not exists (select from setpoint.optimizations o where o.session_id = s.session_id)
    and not exists (select from setpoint.payloads p where p.session_id = s.session_id)
    and not exists (select from setpoint.variables v where v.session_id = s.session_id);

-- name: SweepForgettable :many
-- Sessions after @after, by id, that ended before the retention and have no history left.
with cut as materialized (
    select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t,
        @retention_us::bigint as kept_us
)
select s.session_id
from setpoint.sessions s
where s.ended_at is not null and s.session_id > @after
    and s.ended_at < (select cut.t - cut.kept_us * interval '1 microsecond' from cut)
    and not exists (select from setpoint.history h where h.session_id = s.session_id)
    and not exists (select from setpoint.optimizations o where o.session_id = s.session_id)
order by s.session_id
limit @row_limit;

-- name: SweepRequests :execrows
-- One bounded batch of records that no longer count. The clock is read in a query of its own: compared with a volatile
-- function the column could not use its index.
with cut as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t)
delete from setpoint.requests q
where (q.session_id, q.principal, q.request_id) in (
    select d.session_id, d.principal, d.request_id
    from setpoint.requests d
    where d.created_at <= (select cut.t - interval '24 hours' from cut)
    limit @row_limit
);

-- name: SweepAudit :execrows
-- Removes one bounded batch of audit events beyond the retention, of all sessions and of none: of the oldest by id, which is about
-- the order in which they happened.
-- @sqlc-vet-disable session-id-everywhere
with cut as materialized (
    select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t, @retention_us::bigint as kept_us
)
delete from setpoint.audit_events e
where e.ctid = any(array(
    select d.ctid
    from (
        select x.ctid, x.occurred_at from setpoint.audit_events x order by x.event_id limit @row_limit
    ) d
    where d.occurred_at < (select cut.t - cut.kept_us * interval '1 microsecond' from cut)
));
