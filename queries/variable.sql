-- name: VariableGetMany :many
-- Every item's variable, by id or, if none has that id, by name; all as of one moment. A row back for each, in its place.
-- alive is false: no such session. An empty variable_id: no such variable. refused is why the item's caller may not have the
-- item's permission; hidden are the names of what the variable depends on, and is stale for, that the caller may not read. Values are left out (null) from the one on with
-- which they would be more than @max_bytes together, but the first is always in; total_bytes tells how many they are.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
req as materialized (
    select r.*, row_number() over () as ord
    from (
        select
            unnest(@session_ids::text[]) as session_id,
            unnest(@variables::text[]) as variable,
            unnest(@principals::text[]) as principal,
            unnest(@groups::text[]) as groups,
            unnest(@authorities::int[]) as authority,
            unnest(@permissions::int[]) as permission
    ) r
),
found as materialized (
    select
        req.ord, req.variable, req.principal, req.groups, req.authority, s.session_id, s.owner,
        coalesce(s.ttl_us, 0) as ttl_us, clk.t as read_at, a.mask, req.permission,
        s.session_id is not null and (v.variable_id is null or a.mask & req.permission = 0) as denied,
        v.access_mode, v.stale_cause_id, v.variable_id, v.name, v.type, v.payload_sha256, v.constraints, v.metadata, v.version, v.revision,
        v.definition_revision, v.history_limit, v.created_at, v.updated_at, v.updated_by, v.value,
        v.expression, v.strict, v.has_dependents, v.has_dependencies, v.stale_revision, v.stale_cause, v.stale_error,
        v.optimization_id, v.lease_optimizer_id, v.lease_started_at, v.lease_expires_at,
        a.mask & req.permission <> 0 and (req.ord = 1
            or sum(v.value_bytes) filter (where a.mask & req.permission <> 0) over (order by req.ord) <= @max_bytes::bigint)
            as fits,
        coalesce(sum(v.value_bytes) filter (where a.mask & req.permission <> 0) over (), 0) as total_bytes
    from req
    cross join clk
    left join lateral (
        select o.session_id, o.owner, o.ttl_us from setpoint.sessions o
        where o.session_id = req.session_id and o.expires_at > clk.t
        limit 1
    ) s on true
    left join lateral (
        select i.* from setpoint.variables i where i.session_id = s.session_id and i.variable_id = req.variable
        union all
        select n.* from setpoint.variables n where n.session_id collate "POSIX" = s.session_id and n.name = req.variable
    ) v on true
    left join lateral setpoint.access(s.session_id, s.owner, v.variable_id, v.access_mode, req.principal, req.groups,
        req.authority, clk.t) as a(mask) on s.session_id is not null
),
-- What those may do in their sessions who were denied a variable of which that decides the answer.
standing as materialized (
    select d.session_id, d.principal, d.groups, d.authority, n.anything, n.reads_all
    from (
        select distinct f.session_id, f.owner, f.principal, f.groups, f.authority, f.read_at
        from found f
        where f.denied and (f.variable_id is null or f.mask = 0)
    ) d
    cross join lateral setpoint.access_session(d.session_id, d.owner, d.principal, d.groups, d.authority, d.read_at)
        as n(mask, anything, reads_all)
)
select
    (x.session_id is not null)::boolean as alive,
    x.variable::text as identifier,
    x.ttl_us::bigint as ttl_us,
    x.read_at::timestamptz as read_at,
    coalesce(x.variable_id, '')::text as variable_id,
    coalesce(x.name, '')::text as name,
    coalesce(x.type, '')::text as type,
    case when x.fits then x.value end::jsonb as value,
    p.data as payload,
    x.constraints,
    x.metadata,
    coalesce(x.version, 0)::bigint as version,
    coalesce(x.revision, 0)::bigint as revision,
    coalesce(x.definition_revision, 0)::bigint as definition_revision,
    coalesce(x.history_limit, 0)::bigint as history_limit,
    x.created_at,
    x.updated_at,
    coalesce(x.updated_by, '')::text as updated_by,
    coalesce(x.expression, '')::text as expression,
    coalesce(x.strict, false)::boolean as strict,
    coalesce(x.has_dependents, false)::boolean as has_dependents,
    coalesce(x.stale_revision, 0)::bigint as stale_revision,
    coalesce(x.stale_cause, '')::text as stale_cause,
    coalesce(x.stale_error, '')::text as stale_error,
    case when x.has_dependencies then array(
        select i.name
        from setpoint.dependencies e
        cross join lateral (
            select w.name from setpoint.variables w
            where w.session_id = e.session_id and w.variable_id = e.dependency_id
            limit 1
        ) i
        where e.session_id = x.session_id and e.dependent_id = x.variable_id
        order by i.name
    ) end::text[] as depends_on,
    case when (x.has_dependencies or x.stale_revision is not null) and not setpoint.access_unbound(x.session_id, x.owner, x.principal,
            x.authority) then array(
        select h.name
        from (
            select w.variable_id, w.name, w.access_mode
            from setpoint.dependencies e
            cross join lateral (
                select i.* from setpoint.variables i
                where i.session_id = x.session_id and i.variable_id = e.dependency_id
                limit 1
            ) w
            where x.has_dependencies and e.session_id = x.session_id and e.dependent_id = x.variable_id
            union all
            select x.stale_cause_id, x.stale_cause, w.access_mode
            from (values (x.stale_cause_id)) c(variable_id)
            left join lateral (
                select i.* from setpoint.variables i
                where i.session_id = x.session_id and i.variable_id = c.variable_id
                limit 1
            ) w on true
            where x.stale_revision is not null
        ) h
        cross join lateral setpoint.access(x.session_id, x.owner, h.variable_id, h.access_mode, x.principal,
            x.groups, x.authority, x.read_at) as b(mask)
        where b.mask & 1 = 0
    ) end::text[] as hidden,
    coalesce(x.access_mode, '')::text as access_mode,
    coalesce(x.mask, 0)::int as access,
    coalesce(case when x.denied then
        setpoint.access_answer(x.variable_id, x.mask, x.permission, n.anything, n.reads_all) end, '')::text as refused,
    coalesce(case when x.denied and x.variable_id is not null and x.mask & 1 <> 0 and x.authority & x.permission <> 0 then
        setpoint.access_rule(x.session_id, x.variable_id, x.principal, x.groups, x.permission, x.read_at) end, '')::text as rule_id,
    coalesce(case when x.lease_expires_at > x.read_at then x.optimization_id end, '')::text as optimization_id,
    coalesce(case when x.lease_expires_at > x.read_at then x.lease_optimizer_id end, '')::text as lease_optimizer_id,
    case when x.lease_expires_at > x.read_at then x.lease_started_at end::timestamptz as lease_started_at,
    case when x.lease_expires_at > x.read_at then x.lease_expires_at end::timestamptz as lease_expires_at,
    x.total_bytes::bigint as total_bytes,
    (count(*) over ())::bigint as candidates
from found x
left join standing n
    on n.session_id = x.session_id and n.principal = x.principal and n.groups = x.groups and n.authority = x.authority
left join setpoint.payloads p
    on p.session_id = x.session_id and p.sha256 = x.payload_sha256 and x.fits
order by x.ord;

-- name: VariableList :many
-- A page by name from @lo (inclusive) to @hi, a range that holds every match of the pattern: of what the caller may read. No
-- row: no such session. An empty variable_id, alone: no variable; refused: the caller may do nothing in the session. candidates counts the rows before the page was cut at @max_bytes of values; the
-- first row is always in.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
who as materialized (select @principal::text as principal, @groups::text as groups, @authority::int as authority),
ses as materialized (
    select s.session_id, s.owner, s.ttl_us, clk.t as read_at, a.anything, a.mask & 1 <> 0 as readable
    from clk
    cross join who
    join setpoint.sessions s on s.session_id = @session_id and s.expires_at > clk.t
    cross join lateral setpoint.access_session(s.session_id, s.owner, who.principal, who.groups, who.authority, clk.t)
        as a(mask, anything, reads_all)
),
-- A caller who may not read the session as a whole is shown the exceptions, where they are few among many.
exceptions as materialized (
    select x.variable_id
    from ses
    cross join who
    cross join lateral setpoint.access_exceptions(ses.session_id, who.principal, who.groups) as x(variable_id)
    where not ses.readable
    limit 2001
),
walk as materialized (
    select ses.anything and (ses.readable or (select count(*) from exceptions) > 2000) as all_of_it from ses
),
page as materialized (
    (
        select v.*
        from setpoint.variables v
        cross join lateral ( -- For each row in the order of the index, up to the limit.
            select b.mask
            from ses
            cross join who
            cross join lateral setpoint.access(ses.session_id, ses.owner, v.variable_id, v.access_mode, who.principal,
                who.groups, who.authority, ses.read_at) as b(mask)
            offset 0
        ) a
        where (select walk.all_of_it from walk) and v.session_id collate "POSIX" = @session_id and v.name >= @lo and v.name < @hi
            and v.name like @pattern and (cardinality(@types::text[]) = 0 or v.type = any(@types::text[])) and a.mask & 1 <> 0
        order by v.name
        limit @row_limit
    )
    union all
    (
        select v.*
        from (select distinct exceptions.variable_id from exceptions, walk where not walk.all_of_it) x
        cross join ses
        cross join who
        cross join lateral (
            select i.* from setpoint.variables i
            where i.session_id = @session_id and i.variable_id = x.variable_id
            limit 1
        ) v
        cross join lateral setpoint.access(ses.session_id, ses.owner, v.variable_id, v.access_mode, who.principal, who.groups,
            who.authority, ses.read_at) as a(mask)
        where v.name >= @lo and v.name < @hi and v.name like @pattern
            and (cardinality(@types::text[]) = 0 or v.type = any(@types::text[])) and a.mask & 1 <> 0
        order by v.name
        limit @row_limit
    )
),
sized as materialized (
    select
        page.*,
        sum(page.value_bytes + octet_length(page.metadata::text) + octet_length(page.constraints::text))
            over (order by page.name) as running_bytes,
        row_number() over (order by page.name) as place,
        count(*) over () as candidates
    from page
)
select
    true::boolean as alive,
    ''::text as identifier,
    ses.ttl_us::bigint as ttl_us,
    ses.read_at::timestamptz as read_at,
    coalesce(x.variable_id, '')::text as variable_id,
    coalesce(x.name, '')::text as name,
    coalesce(x.type, '')::text as type,
    x.value::jsonb as value,
    p.data as payload,
    x.constraints,
    x.metadata,
    coalesce(x.version, 0)::bigint as version,
    coalesce(x.revision, 0)::bigint as revision,
    coalesce(x.definition_revision, 0)::bigint as definition_revision,
    coalesce(x.history_limit, 0)::bigint as history_limit,
    x.created_at,
    x.updated_at,
    coalesce(x.updated_by, '')::text as updated_by,
    coalesce(x.expression, '')::text as expression,
    coalesce(x.strict, false)::boolean as strict,
    coalesce(x.has_dependents, false)::boolean as has_dependents,
    coalesce(x.stale_revision, 0)::bigint as stale_revision,
    coalesce(x.stale_cause, '')::text as stale_cause,
    coalesce(x.stale_error, '')::text as stale_error,
    case when x.has_dependencies then array(
        select i.name
        from setpoint.dependencies e
        cross join lateral (
            select w.name from setpoint.variables w
            where w.session_id = e.session_id and w.variable_id = e.dependency_id
            limit 1
        ) i
        where e.session_id = ses.session_id and e.dependent_id = x.variable_id
        order by i.name
    ) end::text[] as depends_on,
    case when (x.has_dependencies or x.stale_revision is not null) and not setpoint.access_unbound(ses.session_id, ses.owner,
            who.principal, who.authority) then array(
        select h.name
        from (
            select w.variable_id, w.name, w.access_mode
            from setpoint.dependencies e
            cross join lateral (
                select i.* from setpoint.variables i
                where i.session_id = ses.session_id and i.variable_id = e.dependency_id
                limit 1
            ) w
            where x.has_dependencies and e.session_id = ses.session_id and e.dependent_id = x.variable_id
            union all
            select x.stale_cause_id, x.stale_cause, w.access_mode
            from (values (x.stale_cause_id)) c(variable_id)
            left join lateral (
                select i.* from setpoint.variables i
                where i.session_id = ses.session_id and i.variable_id = c.variable_id
                limit 1
            ) w on true
            where x.stale_revision is not null
        ) h
        cross join lateral setpoint.access(ses.session_id, ses.owner, h.variable_id, h.access_mode, who.principal,
            who.groups, who.authority, ses.read_at) as b(mask)
        where b.mask & 1 = 0
    ) end::text[] as hidden,
    coalesce(x.access_mode, '')::text as access_mode,
    0::int as access,
    (case when ses.anything then '' else 'SESSION_HIDDEN' end)::text as refused,
    ''::text as rule_id,
    coalesce(case when x.lease_expires_at > ses.read_at then x.optimization_id end, '')::text as optimization_id,
    coalesce(case when x.lease_expires_at > ses.read_at then x.lease_optimizer_id end, '')::text as lease_optimizer_id,
    case when x.lease_expires_at > ses.read_at then x.lease_started_at end::timestamptz as lease_started_at,
    case when x.lease_expires_at > ses.read_at then x.lease_expires_at end::timestamptz as lease_expires_at,
    coalesce(x.running_bytes, 0)::bigint as total_bytes,
    coalesce(x.candidates, 0)::bigint as candidates
from ses
cross join who
left join sized x on x.place = 1 or x.running_bytes <= @max_bytes::bigint
left join setpoint.payloads p on p.session_id = ses.session_id and p.sha256 = x.payload_sha256
order by x.name;

-- name: VariableRegister :many
-- Adds variables to one session; a row back for each, in its place, with what became of it. The caller holds the
-- session's lock, by an earlier statement. refused is empty where the variable was added. @atomic: all or none. It takes write in
-- the session as a whole, and admin for another access mode than private.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
who as materialized (select @principal::text as principal, @groups::text as groups, @authority::int as authority),
req as (
    select
        unnest(@ords::int[]) as ord,
        unnest(@variable_ids::text[]) as variable_id,
        unnest(@names::text[]) as name,
        unnest(@types::text[]) as type,
        unnest(@vals::jsonb[]) as value,
        unnest(@payload_hashes::bytea[]) as payload_hash,
        unnest(@payloads::bytea[]) as payload,
        unnest(@value_bytes::bigint[]) as value_bytes,
        unnest(@constraints::jsonb[]) as constraints,
        unnest(@metadatas::jsonb[]) as metadata,
        unnest(@history_limits::bigint[]) as history_limit,
        unnest(@access_modes::text[]) as access_mode,
        -- Empty unless the variable is derived.
        unnest(@expressions::text[]) as expression,
        unnest(@stricts::boolean[]) as strict,
        -- Why the value of a derived variable could not be computed, so that it begins stale; else empty.
        unnest(@stale_errors::text[]) as stale_error,
        -- Why the server refused the value before it asked: JSON null, or {reason, message, metadata}.
        unnest(@refusals::jsonb[]) as refusal
),
ses as materialized (
    select
        s.session_id, s.revision, s.variable_count, greatest(clk.t, s.changed_at) as changed_at,
        case when s.ttl_us = 0 then 'infinity' else clk.t + s.ttl_us * interval '1 microsecond' end as expires_at,
        a.mask, a.anything
    from clk
    cross join who
    join setpoint.sessions s on s.session_id = @session_id and s.expires_at > clk.t
    cross join lateral setpoint.access_session(s.session_id, s.owner, who.principal, who.groups, who.authority, clk.t)
        as a(mask, anything, reads_all)
),
ask as materialized (
    select q.body_hash, q.outcome
    from setpoint.requests q cross join clk
    where q.session_id = @session_id and q.principal = (select who.principal from who) and q.request_id = @request_id
        and q.created_at > clk.t - interval '24 hours'
),
cur as (
    select
        r.*,
        case
            -- Credentials that are narrowed to less are told nothing of what others of the same principal did.
            when who.authority & 31 = 0 then 'SESSION_HIDDEN'
            when who.authority & 2 = 0 and ask.body_hash is not null then 'ACCESS_DENIED'
            when ask.body_hash = @body_hash::bytea then 'REPLAYED'
            when ask.body_hash is not null then 'REQUEST_ID_REUSED'
            when ses.session_id is null then 'SESSION_NOT_FOUND'
            when not ses.anything then 'SESSION_HIDDEN'
            when ses.mask & 2 = 0 then 'ACCESS_DENIED'
            when ses.mask & 16 = 0 and r.access_mode <> 'private' then 'ADMIN_DENIED'
            when v.variable_id is not null then 'VARIABLE_EXISTS'
            when r.refusal <> 'null' then 'VALUE_REFUSED'
        end as first_refused
    from req r
    cross join who
    left join ses on true
    left join ask on true
    left join lateral (
        -- One lookup per item, whatever the planner believes of the session's size.
        select x.variable_id
        from setpoint.variables x
        where x.session_id collate "POSIX" = @session_id and x.name = r.name
        limit 1
    ) v on true
),
fits as materialized (
    select
        cur.*,
        case
            when cur.first_refused is not null then cur.first_refused
            when ses.variable_count + row_number() over (partition by cur.first_refused is null order by cur.ord)
                > @max_variables::bigint then 'LIMIT_EXCEEDED'
        end as refused
    from cur left join ses on true
),
halted as materialized (
    select @atomic::boolean and coalesce(bool_or(f.refused is not null), false) as yes from fits f
),
done as materialized (
    select
        f.*, ses.changed_at,
        case when f.refused is null and not halted.yes then
            ses.revision + count(*) filter (where f.refused is null) over (order by f.ord)
        end as revision
    from fits f cross join halted left join ses on true
),
pay as (
    insert into setpoint.payloads (session_id, sha256, size, data)
    select distinct on (d.payload_hash) @session_id, d.payload_hash, length(d.payload), d.payload
    from done d where d.revision is not null and length(d.payload_hash) > 0
    order by d.payload_hash
    on conflict (session_id, sha256) do nothing
),
ins as (
    insert into setpoint.variables (session_id, variable_id, name, type, value, payload_sha256, value_bytes, constraints,
        metadata, version, revision, definition_revision, history_limit, access_mode, created_at, updated_at, updated_by,
        expression, strict, stale_revision, stale_cause_id, stale_cause, stale_error)
    select @session_id, d.variable_id, d.name, d.type, d.value,
        case when length(d.payload_hash) > 0 then d.payload_hash end, d.value_bytes, d.constraints,
        d.metadata, 0, d.revision, d.revision, d.history_limit, d.access_mode, d.changed_at, d.changed_at, @principal, d.expression,
        d.strict, case when d.stale_error <> '' then d.revision end, case when d.stale_error <> '' then d.variable_id end,
        case when d.stale_error <> '' then d.name end, nullif(d.stale_error, '')
    from done d where d.revision is not null
),
hist as (
    insert into setpoint.history (session_id, revision, variable_id, name, type, change, version, value, payload_sha256,
        value_bytes, metadata, changed_by, changed_at, error, expression)
    select @session_id, d.revision, d.variable_id, d.name, d.type, 'registered', 0, d.value,
        case when length(d.payload_hash) > 0 then d.payload_hash end, d.value_bytes, d.metadata, @principal,
        d.changed_at, d.stale_error, nullif(d.expression, '')
    from done d where d.revision is not null
),
adv as (
    update setpoint.sessions s
    set revision = m.revision, changed_at = ses.changed_at, expires_at = ses.expires_at,
        variable_count = s.variable_count + m.added
    from ses, (select max(d.revision) as revision, count(d.revision) as added from done d) m
    where s.session_id = ses.session_id and m.added > 0
),
rec as (
    insert into setpoint.requests (session_id, principal, request_id, body_hash, outcome, created_at)
    select @session_id, @principal, @request_id, @body_hash::bytea,
        jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
            'ord', d.ord, 'refused', d.refused, 'variable_id', case when d.revision is not null then d.variable_id end,
            'revision', d.revision, 'changed_at', d.changed_at,
            'refusal', case when d.refused = 'VALUE_REFUSED' then d.refusal end
        )) order by d.ord),
        max(clk.t)
    from done d cross join clk
    where @request_id::text <> ''
    -- A refusal for lack of a permission is for this time only, and writes nothing.
    having bool_and(d.refused is null or d.refused not in
        ('REPLAYED', 'REQUEST_ID_REUSED', 'SESSION_NOT_FOUND', 'SESSION_HIDDEN'))
        and bool_or(d.refused is null or d.refused not in ('ACCESS_DENIED', 'ADMIN_DENIED'))
    on conflict (session_id, principal, request_id) do update
    set body_hash = excluded.body_hash, outcome = excluded.outcome, created_at = excluded.created_at
)
select
    d.ord::int as ord,
    coalesce(d.refused, '')::text as refused,
    d.variable_id::text as variable_id,
    coalesce(d.revision, 0)::bigint as revision,
    d.changed_at::timestamptz as changed_at,
    case when d.refused = 'REPLAYED' and d.ord = 0 then ask.outcome end::jsonb as outcome
from done d left join ask on true
order by d.ord;

-- name: VariableSet :many
-- The write of values: any number of items in any sessions; a row back for each, in its place, with what became of it.
-- The caller holds the locks of all the sessions, by an earlier statement. refused is empty where the value was written.
--
-- The server has checked each value against the definition whose revision it gives. Where the variable has another one
-- the item is DEFINITION_CHANGED, comes back with the definition, and is for the server to check and send again.
--
-- @batch: all items are one request. Then one DEFINITION_CHANGED, or one variable twice (DUPLICATE), holds all of it
-- up; and with @atomic so does every refusal. Otherwise each item is a request of its own, and of several for one
-- variable the first that can be written is. The others come after it: those that expect a version find another one, and
-- those that do not are NEXT_GROUP, to be sent again.
--
-- Each item takes write on its variable, or optimize where it presents a lease: who may is decided here, after the lock.
--
-- Each item may present a lease: the fence is here, for every way in which a value is written. ALREADY_OPTIMIZING comes back with
-- who has the lease.
--
-- A value that others would have to follow is HAS_DEPENDENTS, and so is all of its request, unless @follows: then the caller
-- sees to those, in the same transaction.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
req as (
    select
        unnest(@ords::int[]) as ord,
        unnest(@session_ids::text[]) as session_id,
        unnest(@variables::text[]) as variable,
        unnest(@definitions::bigint[]) as definition,
        unnest(@vals::jsonb[]) as value,
        unnest(@payload_hashes::bytea[]) as payload_hash,
        unnest(@payloads::bytea[]) as payload,
        unnest(@value_bytes::bigint[]) as value_bytes,
        -- JSON null keeps the last metadata.
        unnest(@metadatas::jsonb[]) as metadata,
        -- -1 is any version.
        unnest(@expected_versions::bigint[]) as expected_version,
        -- Why the server refused the value before it asked: JSON null, or {reason, message, metadata}.
        unnest(@refusals::jsonb[]) as refusal,
        unnest(@principals::text[]) as principal,
        unnest(@groups::text[]) as groups,
        unnest(@authorities::int[]) as authority,
        unnest(@reasons::text[]) as reason,
        -- Empty is none.
        unnest(@request_ids::text[]) as request_id,
        unnest(@body_hashes::bytea[]) as body_hash,
        -- An empty id is no lease.
        unnest(@lease_ids::text[]) as lease_id,
        unnest(@lease_tokens::bigint[]) as lease_token
),
judged as materialized (
    select
        r.*, n.need, clk.t,
        coalesce(s.expires_at > clk.t, false) as alive, s.owner, s.revision as session_revision,
        greatest(clk.t, s.changed_at) as changed_at,
        v.variable_id, v.name, v.type, v.version, v.definition_revision, v.constraints, v.value as old_value,
        v.metadata as old_metadata, v.has_dependents, v.expression, v.optimization_id, v.fencing_token, v.lease_optimizer_id,
        v.lease_started_at, v.lease_expires_at, a.mask
    from req r
    cross join clk
    cross join lateral (select case when r.lease_id <> '' then 8 else 2 end as need) n
    left join setpoint.sessions s on s.session_id = r.session_id
    left join lateral (
        select i.* from setpoint.variables i where i.session_id = r.session_id and i.variable_id = r.variable
        union all
        select n.* from setpoint.variables n where n.session_id collate "POSIX" = r.session_id and n.name = r.variable
    ) v on true
    left join lateral setpoint.access(s.session_id, s.owner, v.variable_id, v.access_mode, r.principal, r.groups,
        r.authority, clk.t) as a(mask) on s.expires_at > clk.t
),
-- What those may do in their sessions who were denied a variable of which that decides the answer.
standing as materialized (
    select d.session_id, d.principal, d.groups, d.authority, n.anything, n.reads_all
    from (
        select distinct j.session_id, j.owner, j.principal, j.groups, j.authority, j.t
        from judged j
        where j.alive and (j.variable_id is null or j.mask = 0)
    ) d
    cross join lateral setpoint.access_session(d.session_id, d.owner, d.principal, d.groups, d.authority, d.t)
        as n(mask, anything, reads_all)
),
cur as (
    select
        j.ord, j.session_id, j.value, j.payload_hash, j.payload, j.value_bytes, j.expected_version, j.refusal,
        j.principal, j.reason, j.request_id, j.body_hash, j.lease_id, j.session_revision, j.changed_at,
        j.variable_id, j.name, j.type, j.version, j.definition_revision, j.constraints,
        coalesce(j.has_dependents and j.old_value is distinct from j.value, false) as disturbs,
        case when j.metadata = 'null' then j.old_metadata else j.metadata end as metadata,
        j.optimization_id, j.lease_optimizer_id, j.lease_started_at, j.lease_expires_at,
        q.outcome, j.mask,
        case when j.mask & 1 <> 0 and j.mask & j.need = 0 and j.authority & j.need <> 0 and j.variable_id is not null then
            setpoint.access_rule(j.session_id, j.variable_id, j.principal, j.groups, j.need, j.t)
        end as rule_id,
        case
            -- Credentials that are narrowed to less are told nothing of what others of the same principal did.
            when j.authority & 31 = 0 then 'SESSION_HIDDEN'
            when j.authority & j.need = 0 and q.body_hash is not null then 'ACCESS_DENIED'
            when q.body_hash = j.body_hash then 'REPLAYED'
            when q.body_hash is not null then 'REQUEST_ID_REUSED'
            when not j.alive then 'SESSION_NOT_FOUND'
            when a.refusal is not null then a.refusal
            when j.expression <> '' then 'DERIVED_VARIABLE'
            when @batch::boolean and count(*) over (partition by j.session_id, j.variable_id) > 1 then 'DUPLICATE'
            when f.refusal is not null then f.refusal
            when j.expected_version >= 0 and j.expected_version <> j.version then 'VERSION_MISMATCH'
            when j.definition <> j.definition_revision then 'DEFINITION_CHANGED'
            when j.refusal <> 'null' then 'VALUE_REFUSED'
            when not @follows::boolean and j.has_dependents and j.old_value is distinct from j.value then 'HAS_DEPENDENTS'
        end as first_refused
    from judged j
    left join standing n
        on n.session_id = j.session_id and n.principal = j.principal and n.groups = j.groups and n.authority = j.authority
    left join lateral (
        -- One lookup per item, whatever the planner believes of the table's size.
        select x.body_hash, x.outcome
        from setpoint.requests x
        where j.request_id <> '' and x.session_id = j.session_id and x.principal = j.principal
            and x.request_id = j.request_id and x.created_at > j.t - interval '24 hours'
        limit 1
    ) q on true
    cross join lateral (
        select setpoint.access_answer(j.variable_id, j.mask, j.need, n.anything, n.reads_all) as refusal
    ) a
    cross join lateral (
        select setpoint.lease_refusal(j.optimization_id, j.fencing_token, j.lease_expires_at, j.t, j.lease_id, j.lease_token)
            as refusal
    ) f
),
ordered as (
    select
        cur.*,
        cur.first_refused is null and row_number() over (
            partition by cur.session_id, cur.variable_id, cur.first_refused is null order by cur.ord) > 1 as follows
    from cur
),
turns as materialized (
    select
        o.*,
        case
            when o.follows and o.expected_version >= 0 then 'VERSION_MISMATCH'
            when o.follows then 'NEXT_GROUP'
            else o.first_refused
        end as refused,
        case when o.follows then o.version + 1 else o.version end as found_version
    from ordered o
),
halted as materialized (
    select @batch::boolean and coalesce(bool_or(
        t.refused in ('DEFINITION_CHANGED', 'DUPLICATE', 'HAS_DEPENDENTS') or (@atomic::boolean and t.refused is not null)), false) as yes
    from turns t
),
done as materialized (
    select
        t.*,
        case when t.refused is null and not halted.yes then
            t.session_revision + count(*) filter (where t.refused is null) over (partition by t.session_id order by t.ord)
        end as revision
    from turns t cross join halted
),
pay as (
    insert into setpoint.payloads (session_id, sha256, size, data)
    select distinct on (d.session_id, d.payload_hash) d.session_id, d.payload_hash, length(d.payload), d.payload
    from done d where d.revision is not null and length(d.payload_hash) > 0
    order by d.session_id, d.payload_hash
    on conflict (session_id, sha256) do nothing
),
upd as (
    update setpoint.variables v
    set value = d.value, payload_sha256 = case when length(d.payload_hash) > 0 then d.payload_hash end,
        value_bytes = d.value_bytes, metadata = d.metadata, version = d.version + 1, revision = d.revision,
        updated_at = d.changed_at, updated_by = d.principal, stale_revision = null, stale_cause_id = null,
        stale_cause = null, stale_error = null
    from done d
    where v.session_id = d.session_id and v.variable_id = d.variable_id and d.revision is not null
),
hist as (
    insert into setpoint.history (session_id, revision, variable_id, name, type, change, version, value, payload_sha256,
        value_bytes, metadata, reason, changed_by, changed_at, optimization_id, trial_number)
    select d.session_id, d.revision, d.variable_id, d.name, d.type, @change::text, d.version + 1, d.value,
        case when length(d.payload_hash) > 0 then d.payload_hash end, d.value_bytes, d.metadata, d.reason,
        d.principal, d.changed_at, nullif(d.lease_id, ''), sqlc.narg('trial_number')::bigint
    from done d where d.revision is not null
),
adv as (
    update setpoint.sessions s
    set revision = m.revision, changed_at = m.changed_at,
        expires_at = case when s.ttl_us = 0 then 'infinity' else clk.t + s.ttl_us * interval '1 microsecond' end
    from (
        select d.session_id, max(d.revision) as revision, max(d.changed_at) as changed_at
        from done d where d.revision is not null group by d.session_id
    ) m, clk
    where s.session_id = m.session_id
),
rec as (
    insert into setpoint.requests (session_id, principal, request_id, body_hash, outcome, created_at)
    select d.session_id, d.principal, d.request_id, d.body_hash,
        jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
            'ord', d.ord, 'refused', d.refused, 'variable_id', d.variable_id, 'name', d.name,
            'found_version', d.found_version, 'revision', d.revision, 'changed_at', d.changed_at, 'rule', d.rule_id,
            'access', case when d.refused = 'ACCESS_DENIED' then d.mask end,
            'disturbs', case when d.disturbs and d.revision is not null then true end,
            'holder', case when d.refused = 'ALREADY_OPTIMIZING' then jsonb_build_object(
                'optimization_id', d.optimization_id, 'optimizer_id', d.lease_optimizer_id,
                'started_at', d.lease_started_at, 'expires_at', d.lease_expires_at) end,
            'refusal', case when d.refused = 'VALUE_REFUSED' then d.refusal end
        )) order by d.ord),
        max(clk.t)
    from done d cross join clk
    where d.request_id <> ''
    group by d.session_id, d.principal, d.request_id, d.body_hash
    having bool_and(d.refused is null or d.refused not in
        ('REPLAYED', 'REQUEST_ID_REUSED', 'SESSION_NOT_FOUND', 'SESSION_HIDDEN', 'NEXT_GROUP'))
        -- A refusal for lack of a permission is for this time only, and writes nothing.
        and bool_or(d.refused is null or d.refused <> 'ACCESS_DENIED')
        and not bool_or(d.refused is not null and d.refused in ('DEFINITION_CHANGED', 'HAS_DEPENDENTS'))
    on conflict (session_id, principal, request_id) do update
    set body_hash = excluded.body_hash, outcome = excluded.outcome, created_at = excluded.created_at
)
select
    d.ord::int as ord,
    coalesce(d.refused, '')::text as refused,
    coalesce(d.variable_id, '')::text as variable_id,
    coalesce(d.name, '')::text as name,
    coalesce(d.found_version, -1)::bigint as found_version,
    coalesce(d.revision, 0)::bigint as revision,
    d.changed_at::timestamptz as changed_at,
    coalesce(d.type, '')::text as type,
    coalesce(d.definition_revision, 0)::bigint as definition_revision,
    d.disturbs::boolean as disturbs,
    coalesce(case when d.refused = 'ALREADY_OPTIMIZING' then d.optimization_id end, '')::text as optimization_id,
    coalesce(case when d.refused = 'ALREADY_OPTIMIZING' then d.lease_optimizer_id end, '')::text as lease_optimizer_id,
    case when d.refused = 'ALREADY_OPTIMIZING' then d.lease_started_at end::timestamptz as lease_started_at,
    case when d.refused = 'ALREADY_OPTIMIZING' then d.lease_expires_at end::timestamptz as lease_expires_at,
    coalesce(d.mask, 0)::int as access,
    coalesce(d.rule_id, '')::text as rule_id,
    case when d.refused = 'DEFINITION_CHANGED' then d.constraints end::jsonb as constraints,
    case when d.refused = 'REPLAYED' then d.outcome end::jsonb as outcome
from done d
order by d.ord;

-- name: VariableLeaseRefusal :one
-- The fence of what has no place in VariableSet: why a change of the variable is refused under the lease; empty if it is not.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t)
select
    coalesce(setpoint.lease_refusal(v.optimization_id, v.fencing_token, v.lease_expires_at, clk.t, @lease_id::text,
        @lease_token::bigint), '')::text as refused
from setpoint.variables v cross join clk
where v.session_id = @session_id and v.variable_id = @variable_id;

-- name: VariableUpdate :one
-- Replaces what a variable allows and carries. The caller holds the session's lock and has read and checked the variable.
-- A history row, but no new version.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
adv as (
    update setpoint.sessions s
    set revision = s.revision + 1, changed_at = greatest(clk.t, s.changed_at),
        expires_at = case when s.ttl_us = 0 then 'infinity' else clk.t + s.ttl_us * interval '1 microsecond' end
    from clk
    where s.session_id = @session_id
    returning s.revision, s.changed_at
),
upd as (
    update setpoint.variables v
    set constraints = @constraints, metadata = @metadata, history_limit = @history_limit, expression = @expression,
        strict = @strict, access_mode = @access_mode, revision = adv.revision,
        -- A variable that is no longer derived is stale for what it depends on, but not for what it was computed by.
        stale_error = case when @expression::text = '' and v.stale_revision is not null then '' else v.stale_error end,
        definition_revision = case when @definition_changed::boolean then adv.revision else v.definition_revision end,
        updated_at = adv.changed_at, updated_by = @principal
    from adv
    where v.session_id = @session_id and v.variable_id = @variable_id
    returning v.variable_id, v.name, v.type
),
hist as (
    insert into setpoint.history (session_id, revision, variable_id, name, type, change, metadata, reason, changed_by,
        changed_at, expression, optimization_id)
    select @session_id, adv.revision, upd.variable_id, upd.name, upd.type, 'updated', @metadata, @reason, @principal,
        adv.changed_at, case when @expression_given::boolean then @expression::text end, nullif(@lease_id::text, '')
    from upd cross join adv
)
select adv.revision::bigint as revision, adv.changed_at::timestamptz as changed_at from adv;

-- name: VariableDelete :one
-- Removes a variable; its history stays. The caller holds the session's lock, has read and checked the variable, and has
-- removed its edges.
with clk as materialized (select coalesce(sqlc.narg('now')::timestamptz, clock_timestamp()) as t),
adv as (
    update setpoint.sessions s
    set revision = s.revision + 1, changed_at = greatest(clk.t, s.changed_at), variable_count = s.variable_count - 1,
        expires_at = case when s.ttl_us = 0 then 'infinity' else clk.t + s.ttl_us * interval '1 microsecond' end
    from clk
    where s.session_id = @session_id
    returning s.revision, s.changed_at
),
del as (
    delete from setpoint.variables v
    where v.session_id = @session_id and v.variable_id = @variable_id
    returning v.variable_id, v.name, v.type, v.metadata, v.version, v.history_limit
),
hist as (
    insert into setpoint.history (session_id, revision, variable_id, name, type, change, metadata, reason, changed_by,
        changed_at, oldest_version, optimization_id)
    select @session_id, adv.revision, del.variable_id, del.name, del.type, 'deleted', del.metadata, @reason, @principal,
        adv.changed_at, case when del.history_limit = 0 then 0 else greatest(0, del.version - del.history_limit) end,
        nullif(@lease_id::text, '')
    from del cross join adv
)
select adv.revision::bigint as revision, adv.changed_at::timestamptz as changed_at from adv;
