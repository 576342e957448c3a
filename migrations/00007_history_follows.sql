-- The parts of 00006 that take long where there is much history, and hold up no writer.

-- +goose NO TRANSACTION
-- +goose Up
-- Which transaction a revision is in the midst of. Only what follows pays for it. One that was broken off is made again.
drop index concurrently if exists setpoint.history_follows;
create index concurrently history_follows
    on setpoint.history (session_id collate "POSIX", revision) where transaction_first is not null;
alter table setpoint.history validate constraint history_cause_whole;
alter table setpoint.history validate constraint history_transaction_whole;

-- +goose Down
drop index concurrently if exists setpoint.history_follows;
alter table setpoint.history
    drop constraint history_cause_whole,
    drop constraint history_transaction_whole,
    add constraint history_cause_whole check (
        (cause_revision is null) = (cause_id is null) and (cause_revision is null) = (cause is null)) not valid,
    add constraint history_transaction_whole check (
        (cause_revision is null) = (transaction_first is null) and (cause_revision is null) = (transaction_last is null))
        not valid;
