-- Access: who may do what in a session, who callers are, and what was audited.

-- +goose Up
alter table setpoint.variables
    -- What callers may do whom no rule is about: nothing, read and observe, or also write and optimize.
    add column access_mode text collate "C" not null default 'private',
    add constraint variables_access_mode_known check (access_mode in ('private', 'protected', 'public'));

-- Whether a session has variables for everybody. Only those pay for it.
create index variables_open on setpoint.variables (session_id, variable_id) where access_mode <> 'private';

create table setpoint.access_rules (
    session_id  text collate "C" not null,
    rule_id     text collate "C" not null,
    -- Empty is all variables of the session. A rule outlives its variable: it goes on to decide about its history.
    variable_id text collate "C" not null default '',
    subject     text collate "C" not null,
    -- The subject as LIKE reads it, where it has a wildcard; null where it is exact.
    pattern     text collate "C",
    -- Read is 1, write 2, observe 4, optimize 8, admin 16: as given.
    permissions integer not null,
    -- What the rule decides: of one that allows its permissions and what they include, of one that denies also what includes
    -- them.
    reach       integer not null,
    allows      boolean not null,
    priority    integer not null,
    expires_at  timestamptz,
    granted_by  text collate "C" not null,
    granted_at  timestamptz not null,
    revision    bigint not null,
    constraint access_rules_pkey primary key (session_id, rule_id),
    -- A server that knows of no rules forgets sessions that have some.
    constraint access_rules_session_fkey foreign key (session_id) references setpoint.sessions (session_id) on delete cascade,
    constraint access_rules_permissions_known check (permissions between 1 and 31 and reach between 1 and 31)
);
-- By other names of the same collation, so that none of the searches can use another's index (see variables_name_unique).
create index access_rules_exact on setpoint.access_rules (session_id collate "POSIX", subject, variable_id)
    where pattern is null;
create index access_rules_patterns on setpoint.access_rules (session_id collate "POSIX", variable_id)
    where pattern is not null;
-- Whether there is anything that a caller with a rule for the whole session may not read.
create index access_rules_hiding on setpoint.access_rules (session_id collate "POSIX")
    where not allows and variable_id <> '' and reach & 1 <> 0;

-- What has expired, for the sweeper.
create index access_rules_expiring on setpoint.access_rules (expires_at) where expires_at is not null;

comment on table setpoint.access_rules is
    'Rules change under the lock of their session, so every write that starts after a change sees it.';

-- Rules end with the life of their session. A server that knows of none begins the next one without a look at them, so the database
-- removes them, and with its own rights: that server may have none here. Only what begins a life names the column.
-- +goose StatementBegin
create function setpoint.access_rules_end()
returns trigger
language plpgsql security definer
set search_path = pg_catalog
as $$
begin
    delete from setpoint.access_rules x where x.session_id = new.session_id;
    return null;
end;
$$;
-- +goose StatementEnd
create trigger access_rules_end
after update of created_revision on setpoint.sessions
for each row when (old.created_revision is distinct from new.created_revision)
execute function setpoint.access_rules_end();

-- The decision is made here and nowhere else. These functions are such that PostgreSQL puts their text in place of the call: a
-- statement that joins one laterally is planned, and cached, as if it had been written out. Callers are given as a principal, its
-- groups with a space before each (no name has spaces), and an authority: what the credentials may be used for, in bits as in
-- permissions, and 32 for a server admin.

-- The rules that are about a caller and a variable, or with a null variable_id about a variable that there is not yet. Each is
-- looked up by a whole key, whatever the planner believes of the table: `= any(array)` it makes a filter where the table was small.
-- +goose StatementBegin
create function setpoint.access_matches(
    session_id text, variable_id text, principal text, groups text, at timestamptz)
returns table (rule_id text, reach integer, allows boolean, priority integer)
language sql stable parallel safe
begin atomic
    select x.rule_id, x.reach, x.allows, x.priority
    from unnest(array[access_matches.variable_id, '']) w(variable_id)
    cross join unnest(string_to_array(access_matches.principal || access_matches.groups, ' ')) s(name)
    cross join lateral (
        select y.*
        from setpoint.access_rules y
        where y.session_id collate "POSIX" = access_matches.session_id and y.pattern is null and y.subject = s.name
            and y.variable_id = w.variable_id and (y.expires_at is null or y.expires_at > access_matches.at)
        offset 0
    ) x
    union all
    select x.rule_id, x.reach, x.allows, x.priority
    from unnest(array[access_matches.variable_id, '']) w(variable_id)
    cross join lateral (
        select y.*
        from setpoint.access_rules y
        where y.session_id collate "POSIX" = access_matches.session_id and y.pattern is not null
            and y.variable_id = w.variable_id and (y.expires_at is null or y.expires_at > access_matches.at)
        offset 0
    ) x
    where exists (
        select from unnest(string_to_array(access_matches.principal || access_matches.groups, ' ')) s(name)
        where s.name like x.pattern
    );
end;
-- +goose StatementEnd

-- Whether a caller is bound by no rule: a server admin, the session's owner, or the session itself. What the credentials are
-- narrowed to binds them all the same.
-- +goose StatementBegin
create function setpoint.access_unbound(session_id text, owner text, principal text, authority integer)
returns boolean
language sql immutable parallel safe
begin atomic
    select coalesce(access_unbound.authority >= 32 or access_unbound.owner = access_unbound.principal
        or access_unbound.principal = 'session:' || access_unbound.session_id, false);
end;
-- +goose StatementEnd

-- What a caller may do with a variable, in bits. With a null variable_id: with one that is yet to be registered, which is what
-- the caller may do in the session as a whole.
-- +goose StatementBegin
create function setpoint.access(
    session_id text, owner text, variable_id text, access_mode text, principal text, groups text, authority integer,
    at timestamptz)
returns table (mask integer)
language sql stable parallel safe
begin atomic
    select access.authority & case
        when setpoint.access_unbound(access.session_id, access.owner, access.principal, access.authority) then 31
        else (
            -- The greatest rank decides: it is even where that rule allows.
            select case when d.read is null then d.mode & 1 when d.read & 1 = 0 then 1 else 0 end
                + case when d.write is null then d.mode & 2 when d.write & 1 = 0 then 2 else 0 end
                + case when d.observe is null then d.mode & 4 when d.observe & 1 = 0 then 4 else 0 end
                + case when d.optimize is null then d.mode & 8 when d.optimize & 1 = 0 then 8 else 0 end
                + case when d.admin is null then 0 when d.admin & 1 = 0 then 16 else 0 end
            from (
                select
                    case access.access_mode when 'public' then 15 when 'protected' then 5 else 0 end as mode,
                    max(r.rank) filter (where m.reach & 1 <> 0) as read,
                    max(r.rank) filter (where m.reach & 2 <> 0) as write,
                    max(r.rank) filter (where m.reach & 4 <> 0) as observe,
                    max(r.rank) filter (where m.reach & 8 <> 0) as optimize,
                    max(r.rank) filter (where m.reach & 16 <> 0) as admin
                from setpoint.access_matches(access.session_id, access.variable_id, access.principal, access.groups,
                    access.at) m
                cross join lateral (select m.priority::bigint * 2 + case when m.allows then 0 else 1 end as rank) r
            ) d
        )
    end
    offset 0; -- So that it is worked out once, however often the statement looks at it.
end;
-- +goose StatementEnd

-- The rule that decides about one permission, given as its bit; null where none is about it. Asked by those who were denied and
-- by those who want to know: plans of others need not have room for it.
-- +goose StatementBegin
create function setpoint.access_rule(
    session_id text, variable_id text, principal text, groups text, permission integer, at timestamptz)
returns text
language plpgsql stable parallel safe
as $$
begin
    return (
        select m.rule_id
        from setpoint.access_matches(access_rule.session_id, access_rule.variable_id, access_rule.principal,
            access_rule.groups, access_rule.at) m
        where m.reach & access_rule.permission <> 0
        order by m.priority desc, m.allows, m.rule_id
        limit 1
    );
end;
$$;
-- +goose StatementEnd

-- The variables with which a caller may perhaps do more than in the session as a whole, some more than once: those that a rule allows
-- something of, and those for everybody.
-- +goose StatementBegin
create function setpoint.access_exceptions(session_id text, principal text, groups text)
returns table (variable_id text)
language sql stable parallel safe
begin atomic
    select x.variable_id
    from unnest(string_to_array(access_exceptions.principal || access_exceptions.groups, ' ')) s(name)
    cross join lateral (
        select y.variable_id
        from setpoint.access_rules y
        where y.session_id collate "POSIX" = access_exceptions.session_id and y.pattern is null and y.subject = s.name
            and y.allows and y.variable_id <> ''
        offset 0
    ) x
    union all
    select x.variable_id
    from (
        select y.variable_id, y.pattern
        from setpoint.access_rules y
        where y.session_id collate "POSIX" = access_exceptions.session_id and y.pattern is not null and y.allows
            and y.variable_id <> ''
        offset 0
    ) x
    where exists (
        select from unnest(string_to_array(access_exceptions.principal || access_exceptions.groups, ' ')) s(name)
        where s.name like x.pattern
    )
    union all
    select x.variable_id
    from (
        select y.variable_id
        from setpoint.variables y
        where y.session_id = access_exceptions.session_id and y.access_mode <> 'private'
        offset 0
    ) x;
end;
-- +goose StatementEnd

-- What a caller may do in a session: with a variable that is yet to be registered, in bits; whether there is anything at all;
-- and whether there is nothing that the caller may not read. A function with plans of its own: each is for few calls.
-- +goose StatementBegin
create function setpoint.access_session(
    session_id text, owner text, principal text, groups text, authority integer, at timestamptz,
    out mask integer, out anything boolean, out reads_all boolean)
language plpgsql stable parallel safe
as $$
declare
    names constant text[] := string_to_array(access_session.principal || access_session.groups, ' ');
begin
    mask := (
        select a.mask
        from setpoint.access(access_session.session_id, access_session.owner, null, 'private', access_session.principal,
            access_session.groups, access_session.authority, access_session.at) a
    );
    anything := mask <> 0;
    reads_all := mask & 1 <> 0;
    if access_session.session_id is null or access_session.authority & 31 = 0 or setpoint.access_unbound(
        access_session.session_id, access_session.owner, access_session.principal, access_session.authority) then
        return;
    end if;
    if reads_all then
        reads_all := not exists (
            select
            from setpoint.access_rules x
            where x.session_id collate "POSIX" = access_session.session_id and not x.allows and x.variable_id <> ''
                and x.reach & 1 <> 0 and (x.expires_at is null or x.expires_at > access_session.at)
                and exists (select from unnest(names) s(name) where s.name = x.subject or s.name like x.pattern)
        );
    end if;
    if not anything then
        anything := exists (
            select
            from setpoint.access_exceptions(access_session.session_id, access_session.principal, access_session.groups) x
            left join lateral (
                select i.access_mode from setpoint.variables i
                where i.session_id = access_session.session_id and i.variable_id = x.variable_id
                limit 1
            ) v on true
            cross join lateral setpoint.access(access_session.session_id, access_session.owner, x.variable_id, v.access_mode,
                access_session.principal, access_session.groups, access_session.authority, access_session.at) b
            where b.mask <> 0
        );
    end if;
end;
$$;
-- +goose StatementEnd

-- What a caller may do with all variables of an optimization, in bits, and the first variable, by name, with which the caller may
-- not do what is asked, given as its bit.
-- +goose StatementBegin
create function setpoint.access_optimization(
    session_id text, owner text, optimization_id text, principal text, groups text, authority integer, permission integer,
    at timestamptz)
returns table (mask integer, lacking text)
language sql stable parallel safe
begin atomic
    select
        case when setpoint.access_unbound(access_optimization.session_id, access_optimization.owner,
                access_optimization.principal, access_optimization.authority)
            then access_optimization.authority & 31 else coalesce(bit_and(a.mask), 0) end,
        min(o.name) filter (where a.mask & access_optimization.permission = 0)
    from (
        select x.variable_id, x.name
        from setpoint.optimization_variables x
        -- Of those who may do everything no variable is looked up.
        where x.session_id = case when setpoint.access_unbound(access_optimization.session_id, access_optimization.owner,
                access_optimization.principal, access_optimization.authority)
            then null else access_optimization.session_id end
            and x.optimization_id between access_optimization.optimization_id and access_optimization.optimization_id
        order by x.optimization_id, x.variable_id
    ) o
    left join lateral (
        select i.access_mode from setpoint.variables i
        where i.session_id = access_optimization.session_id and i.variable_id = o.variable_id
        limit 1
    ) v on true
    cross join lateral setpoint.access(access_optimization.session_id, access_optimization.owner, o.variable_id, v.access_mode,
        access_optimization.principal, access_optimization.groups, access_optimization.authority,
        access_optimization.at) a;
end;
-- +goose StatementEnd

-- The answer to a caller who wants to do something, given as its bit, with a variable, whose id is null where there is no such
-- variable; null where the caller may. One that the caller may not read is as one that there is not, and so is a session in which the
-- caller may do nothing: SESSION_HIDDEN is answered as SESSION_NOT_FOUND. anything and reads_all are access_session's, which
-- statements about many variables ask once for each caller: where the mask is not 0 of a variable that there is, they are not needed.
-- +goose StatementBegin
create function setpoint.access_answer(
    variable_id text, mask integer, permission integer, anything boolean, reads_all boolean)
returns text
language sql immutable parallel safe
begin atomic
    select case
        when access_answer.variable_id is not null and access_answer.mask & access_answer.permission <> 0 then null
        when access_answer.variable_id is not null and access_answer.mask <> 0 then 'ACCESS_DENIED'
        when access_answer.variable_id is null and access_answer.reads_all then 'VARIABLE_NOT_FOUND'
        when access_answer.anything then 'ACCESS_DENIED'
        else 'SESSION_HIDDEN'
    end;
end;
-- +goose StatementEnd

-- access_answer where access_session has not been asked yet.
-- +goose StatementBegin
create function setpoint.access_refusal(
    session_id text, owner text, variable_id text, mask integer, permission integer, principal text, groups text,
    authority integer, at timestamptz)
returns text
language plpgsql stable parallel safe
as $$
begin
    return (
        select setpoint.access_answer(access_refusal.variable_id, access_refusal.mask, access_refusal.permission, s.anything,
            s.reads_all)
        from setpoint.access_session(access_refusal.session_id, access_refusal.owner, access_refusal.principal,
            access_refusal.groups, access_refusal.authority, access_refusal.at) s
    );
end;
$$;
-- +goose StatementEnd

-- Whether a caller may do one thing, given as its bit, with a variable, whose id is null where there is no such variable.
-- refusal is null where the caller may; else it is the answer. Who may read the variable may know which rule denies more.
-- +goose StatementBegin
create function setpoint.access_check(
    session_id text, owner text, variable_id text, access_mode text, principal text, groups text, authority integer,
    permission integer, at timestamptz)
returns table (mask integer, refusal text, rule_id text)
language sql stable parallel safe
begin atomic
    select
        a.mask,
        case when access_check.variable_id is null or a.mask & access_check.permission = 0 then
            setpoint.access_refusal(access_check.session_id, access_check.owner, access_check.variable_id, a.mask,
                access_check.permission, access_check.principal, access_check.groups, access_check.authority, access_check.at)
        end,
        case when access_check.variable_id is not null and a.mask & 1 <> 0 and a.mask & access_check.permission = 0
            and access_check.authority & access_check.permission <> 0 then
            setpoint.access_rule(access_check.session_id, access_check.variable_id, access_check.principal,
                access_check.groups, access_check.permission, access_check.at)
        end
    from setpoint.access(access_check.session_id, access_check.owner, access_check.variable_id, access_check.access_mode,
        access_check.principal, access_check.groups, access_check.authority, access_check.at) a;
end;
-- +goose StatementEnd

alter table setpoint.history
    -- The access rule that came or went: {rule_id, subject, permissions, effect, priority, expires_at}.
    add column access_rule jsonb;

create table setpoint.tokens (
    token_id      text collate "C" not null,
    -- SHA-256 of the secret part, which nobody keeps.
    secret_sha256 bytea not null,
    principal     text collate "C" not null,
    groups        text[] not null,
    -- In bits, as of rules, with what they include; null where the token is not narrowed.
    permissions   integer,
    -- Globs over session ids; empty where the token is not narrowed.
    sessions      text[] not null,
    description   text not null,
    -- Made offline, against the database.
    server_admin  boolean not null,
    created_by    text collate "C" not null,
    created_at    timestamptz not null,
    expires_at    timestamptz,
    revoked_at    timestamptz,
    revoked_by    text collate "C",
    constraint tokens_pkey primary key (token_id),
    constraint tokens_secret_is_hash check (octet_length(secret_sha256) = 32),
    constraint tokens_permissions_known check (permissions between 1 and 31),
    constraint tokens_revoked_whole check ((revoked_at is null) = (revoked_by is null))
);

create table setpoint.audit_events (
    -- Empty where no session is involved.
    session_id      text collate "C" not null,
    -- Ids grow with time.
    event_id        text collate "C" not null,
    occurred_at     timestamptz not null,
    kind            text collate "C" not null,
    principal       text collate "C" not null,
    permission      text collate "C" not null default '',
    variable        text not null default '',
    -- As in history; of a rule that denied, {rule_id}.
    access_rule     jsonb,
    token_id        text collate "C" not null default '',
    optimization_id text collate "C" not null default '',
    method          text not null default '',
    reason          text not null default '',
    detail          text not null default '',
    constraint audit_events_pkey primary key (session_id, event_id),
    constraint audit_events_kind_known check (kind in ('access_denied', 'rule_added', 'rule_removed', 'access_mode_set',
        'token_created', 'token_revoked', 'stop_forced'))
);
-- The whole server's, newest first.
create index audit_events_by_id on setpoint.audit_events (event_id);

create view setpoint_analytics.audit_events with (security_barrier) as
select e.session_id, e.event_id, e.occurred_at, e.kind, e.principal, e.permission, e.variable, e.access_rule, e.token_id,
    e.optimization_id, e.method, e.reason, e.detail
from setpoint.audit_events e;

comment on view setpoint_analytics.audit_events is
    'Every audit event that is still kept, one row each. (session_id, event_id) is the key.';
comment on column setpoint_analytics.audit_events.session_id is 'The session; empty where none is involved.';
comment on column setpoint_analytics.audit_events.event_id is 'The event''s id; ids grow with time.';
comment on column setpoint_analytics.audit_events.occurred_at is 'The database''s clock.';
comment on column setpoint_analytics.audit_events.kind is 'access_denied, rule_added, rule_removed, access_mode_set, token_created, token_revoked or stop_forced; later releases add kinds.';
comment on column setpoint_analytics.audit_events.principal is 'Who did it, or was denied it.';
comment on column setpoint_analytics.audit_events.permission is 'What was denied: read, write, observe, optimize, admin or owner; else empty.';
comment on column setpoint_analytics.audit_events.variable is 'The variable''s name, or what the caller named it; empty where none is involved.';
comment on column setpoint_analytics.audit_events.access_rule is 'The rule that came or went; of a rule that denied, its id; else null.';
comment on column setpoint_analytics.audit_events.token_id is 'The token that was created or revoked; of other kinds the token that was shown; empty where there is none.';
comment on column setpoint_analytics.audit_events.optimization_id is 'The optimization that was stopped by force; else empty.';
comment on column setpoint_analytics.audit_events.method is 'The RPC; empty of what was done offline.';
comment on column setpoint_analytics.audit_events.reason is 'In the caller''s words.';
comment on column setpoint_analytics.audit_events.detail is 'What else there is to say, for people.';

create or replace view setpoint_analytics.variable_history with (security_barrier) as
select
    h.session_id,
    h.revision,
    h.variable_id,
    h.name as variable,
    h.type,
    h.change,
    h.version,
    case when h.type = 'boolean' then (h.value #>> '{}')::boolean end as boolean_value,
    case when h.type = 'integer' then (h.value #>> '{}')::numeric end as integer_value,
    case when h.type = 'float' then (h.value #>> '{}')::float8 end as float_value,
    case when h.type in ('string', 'choice', 'module') then h.value #>> '{}' end as text_value,
    h.value as json_value,
    h.value_bytes,
    h.metadata,
    h.reason,
    h.changed_by,
    h.changed_at,
    h.cause_revision as caused_by_revision,
    h.cause as caused_by_variable,
    h.error,
    h.dependency,
    h.expression,
    h.optimization_id,
    h.trial_number,
    h.access_rule
from setpoint.history h;

comment on column setpoint_analytics.variable_history.change is 'registered, set, rolled_back, updated, deleted, recomputed, stale, stale_cleared, dependency_added, dependency_removed, lease_granted, lease_preempting, lease_kept, lease_ended, access_rule_added or access_rule_removed; later releases add kinds.';
comment on column setpoint_analytics.variable_history.access_rule is 'The access rule that came or went: {rule_id, subject, permissions, effect, priority, expires_at}; else null.';
comment on column setpoint_analytics.variable_history.variable_id is 'The variable''s id, unlike its name never used again; empty where an access rule for the whole session came or went.';

-- +goose StatementBegin
do $$
begin
    grant select on all tables in schema setpoint_analytics to setpoint_analyst;
exception
    when insufficient_privilege or undefined_object then
        raise notice 'role setpoint_analyst was not granted: ask an administrator of the cluster';
end
$$;
-- +goose StatementEnd

-- +goose Down
drop view setpoint_analytics.variable_history;
drop view setpoint_analytics.audit_events;
drop table setpoint.audit_events;
drop table setpoint.tokens;
drop function setpoint.access_check;
drop function setpoint.access_refusal;
drop function setpoint.access_answer;
drop function setpoint.access_optimization;
drop function setpoint.access_session;
drop function setpoint.access_exceptions;
drop function setpoint.access_rule;
drop function setpoint.access;
drop function setpoint.access_unbound;
drop function setpoint.access_matches;
drop trigger access_rules_end on setpoint.sessions;
drop function setpoint.access_rules_end;
drop table setpoint.access_rules;

-- A schema that knows no rules has no place for what became of them.
alter table setpoint.history drop column access_rule;

drop index setpoint.variables_open;
alter table setpoint.variables drop column access_mode;

create view setpoint_analytics.variable_history with (security_barrier) as
select
    h.session_id,
    h.revision,
    h.variable_id,
    h.name as variable,
    h.type,
    h.change,
    h.version,
    case when h.type = 'boolean' then (h.value #>> '{}')::boolean end as boolean_value,
    case when h.type = 'integer' then (h.value #>> '{}')::numeric end as integer_value,
    case when h.type = 'float' then (h.value #>> '{}')::float8 end as float_value,
    case when h.type in ('string', 'choice', 'module') then h.value #>> '{}' end as text_value,
    h.value as json_value,
    h.value_bytes,
    h.metadata,
    h.reason,
    h.changed_by,
    h.changed_at,
    h.cause_revision as caused_by_revision,
    h.cause as caused_by_variable,
    h.error,
    h.dependency,
    h.expression,
    h.optimization_id,
    h.trial_number
from setpoint.history h;

comment on view setpoint_analytics.variable_history is
    'Every change of every session that is still kept, one row each. (session_id, revision) is the key.';
comment on column setpoint_analytics.variable_history.session_id is 'The session. Ids may be used again by a later session, which goes on with the revisions.';
comment on column setpoint_analytics.variable_history.revision is 'The session''s revision: no gaps, in commit order.';
comment on column setpoint_analytics.variable_history.variable_id is 'The variable''s id, unlike its name never used again.';
comment on column setpoint_analytics.variable_history.variable is 'The variable''s name.';
comment on column setpoint_analytics.variable_history.type is 'boolean, integer, float, string, choice, module, embedding, tensor or json.';
comment on column setpoint_analytics.variable_history.change is 'registered, set, rolled_back, updated, deleted, recomputed, stale, stale_cleared, dependency_added, dependency_removed, lease_granted, lease_preempting, lease_kept or lease_ended; later releases add kinds.';
comment on column setpoint_analytics.variable_history.version is 'The version that this change made; null where the value did not change.';
comment on column setpoint_analytics.variable_history.boolean_value is 'The value of a boolean; null for other types and where the value did not change.';
comment on column setpoint_analytics.variable_history.integer_value is 'The value of an integer (int64), as numeric; null otherwise.';
comment on column setpoint_analytics.variable_history.float_value is 'The value of a float, NaN and infinities included; null otherwise.';
comment on column setpoint_analytics.variable_history.text_value is 'The value of a string, choice or module; null otherwise.';
comment on column setpoint_analytics.variable_history.json_value is 'The value''s JSON form, of every type; of embeddings and tensors {dtype, shape, norm, sha256}. Null where the value did not change.';
comment on column setpoint_analytics.variable_history.value_bytes is 'The size that counts against the value limit, in bytes.';
comment on column setpoint_analytics.variable_history.metadata is 'The metadata of the variable after this change: a flat object of texts.';
comment on column setpoint_analytics.variable_history.reason is 'Why, in the caller''s words; empty where none was given.';
comment on column setpoint_analytics.variable_history.changed_by is 'The principal, for example user:ada or service:trainer-1.';
comment on column setpoint_analytics.variable_history.changed_at is 'The database''s clock; never runs back within a session.';
comment on column setpoint_analytics.variable_history.caused_by_revision is 'The revision of the change that this one follows from; null where a caller made it.';
comment on column setpoint_analytics.variable_history.caused_by_variable is 'The name of the variable whose change this one follows from; null where a caller made it.';
comment on column setpoint_analytics.variable_history.error is 'Of a derived variable that became stale: why its value could not be computed; else empty.';
comment on column setpoint_analytics.variable_history.dependency is 'The variable that this one now depends on, or no longer does: of dependency_added and dependency_removed.';
comment on column setpoint_analytics.variable_history.expression is 'The expression that a registration or an update gave a derived variable, empty where an update took it away; else null.';
comment on column setpoint_analytics.variable_history.optimization_id is 'The optimization under whose lease the change was made, or whose lease changed; else null.';
comment on column setpoint_analytics.variable_history.trial_number is 'The trial whose values the change applied; else null.';

-- +goose StatementBegin
do $$
begin
    grant select on setpoint_analytics.variable_history to setpoint_analyst;
exception
    when insufficient_privilege or undefined_object then
        raise notice 'role setpoint_analyst was not granted: ask an administrator of the cluster';
end
$$;
-- +goose StatementEnd
