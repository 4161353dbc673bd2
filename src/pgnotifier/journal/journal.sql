-- The tables and functions of the journal. This file can be run again; `Journal.install` runs it.
--
-- Grants: `usage` on the schema, and for a role that publishes `insert (channel, payload)` on table journal; for a role
-- that consumes all on all tables of the schema. A role that attaches publish_changes() needs `execute` on it; one that
-- writes such a table needs nothing. Nothing depends on the search_path, neither of the role that runs this file nor of
-- one that publishes.
begin isolation level read committed read write;
set local client_min_messages = warning;
set local search_path = pg_catalog, pg_temp;
select pg_catalog.pg_advisory_xact_lock(7308604895632785008);

do $$ begin
    if not exists (select from pg_catalog.pg_namespace where nspname = {schema_text}) then
        create schema {schema};
    end if;
end $$;

-- One row: the version of this file, how long entries are kept, and the cluster whose transaction ids they hold.
create table if not exists {schema}.meta (
    one boolean primary key default true check (one),
    version integer not null,
    keep interval,
    system bigint not null
);

do $$ begin
    if (select version > {version} from {schema}.meta) then
        raise exception 'the journal is of version %, and this library knows version {version}: update the library',
            (select version from {schema}.meta);
    end if;
end $$;

create table if not exists {schema}.journal (
    id bigint generated always as identity primary key,
    channel text not null check (pg_catalog.octet_length(channel) between 1 and 63),
    payload text not null default '',
    at timestamptz not null default pg_catalog.clock_timestamp(),  -- now() is when the transaction began
    xid xid8 not null default pg_catalog.pg_current_xact_id()      -- of the top-level transaction
);

-- A consumer's position: it has had what is visible in `since`, and of what is visible in `upto` too all ids up to `done`.
create table if not exists {schema}.consumer (
    name text primary key check (pg_catalog.octet_length(name) between 1 and 200),
    since pg_snapshot,                      -- null: it is being registered
    upto pg_snapshot,                       -- of the slice that is under way, or null
    done bigint not null default 0,
    last bigint not null default 0,         -- the greatest id of that slice
    newest bigint not null default 0,       -- the greatest id that it has ever had
    gaps integer not null default 0,        -- grows with each gap that it has to be told
    moved timestamptz not null default pg_catalog.clock_timestamp()
);

-- Its channels. What is visible in `start` was committed before the channel was added to it.
create table if not exists {schema}.consumer_channel (
    consumer text references {schema}.consumer on delete cascade,
    channel text check (pg_catalog.octet_length(channel) between 1 and 63),
    start pg_snapshot,                      -- null: it is being added
    primary key (consumer, channel)
);

-- The active process of a name: its session, and until when no other may become active.
create table if not exists {schema}.lease (
    consumer text primary key references {schema}.consumer on delete cascade,
    holder uuid not null,
    pid integer not null,
    began timestamptz not null,             -- when that session began: pids are used again
    expires timestamptz not null
);

create table if not exists {schema}.gap (
    consumer text references {schema}.consumer on delete cascade,
    channel text,
    reason text check (reason in ('trimmed', 'restored', 'channels')),
    dropped bigint,
    since timestamptz not null,
    until timestamptz not null,
    primary key (consumer, channel, reason)
);

-- Entries that consumers have not had.
create or replace view {schema}.owed as
    select e.id, e.channel, e.at, c.name
    from {schema}.journal e
    join {schema}.consumer_channel h on h.channel = e.channel
    join {schema}.consumer c on c.name = h.consumer
    where c.since is null or h.start is null or not (
        pg_catalog.pg_visible_in_snapshot(e.xid, c.since)
        or pg_catalog.pg_visible_in_snapshot(e.xid, h.start)
        or (c.upto is not null and e.id <= c.done and pg_catalog.pg_visible_in_snapshot(e.xid, c.upto)));

-- The next entries of a slice for a consumer: at most that many, and no more once they have so many bytes.
-- It reads in order of id, although the planner knows nothing of a new table.
create or replace function {schema}.slice(
    consumer text, since pg_snapshot, upto pg_snapshot, done bigint, last bigint, most bigint, bytes bigint)
    returns table (id bigint, channel text, payload text, at timestamptz) language sql stable
    set search_path = pg_catalog, pg_temp
    set enable_sort = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
    select s.id, s.channel, s.payload, s.at from (
        select e.id, e.channel, e.payload, e.at, pg_catalog.sum(pg_catalog.octet_length(e.payload))
            over (order by e.id rows between unbounded preceding and 1 preceding) as before
        from {schema}.journal e
        join {schema}.consumer_channel h on h.consumer = slice.consumer and h.channel = e.channel
        where e.id > slice.done and e.id <= slice.last
            and pg_catalog.pg_visible_in_snapshot(e.xid, slice.upto)
            and not pg_catalog.pg_visible_in_snapshot(e.xid, slice.since)
            and not pg_catalog.pg_visible_in_snapshot(e.xid, h.start)
        order by e.id limit slice.most) s
    where coalesce(s.before, 0) < slice.bytes order by s.id
$$;

-- Moves a position, in the transaction in which the turn began.
create or replace function {schema}.move(
    consumer text, turn text, since pg_snapshot, upto pg_snapshot, done bigint, last bigint, newest bigint)
    returns boolean language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    update {schema}.consumer c set since = move.since, upto = move.upto, done = move.done, last = move.last,
        newest = greatest(c.newest, move.newest), moved = clock_timestamp()
        where c.name = move.consumer and current_setting('pgnotifier.turn', true) = move.turn;
    return found;
end $$;

-- Wakes consumers. Many statements of a transaction make one notification, because the payload is always the same.
create or replace function {schema}.wake() returns trigger language plpgsql
    set search_path = pg_catalog, pg_temp as $$
begin
    notify pgnotifier_journal, '1';
    return null;
end $$;

-- Both lock the table against inserts, also if there is nothing to do, so they run once only.
do $$ begin
    if not exists (select from pg_catalog.pg_trigger where tgrelid = {journal_text}::regclass and tgname = 'wake') then
        create index journal_xid on {schema}.journal (xid);
        create trigger wake after insert on {schema}.journal
            for each statement execute function {schema}.wake();
    end if;
end $$;

-- The id of this session's latest entry: a role that may only insert cannot read it.
create or replace function {schema}.last_id() returns bigint language sql
    security definer set search_path = pg_catalog, pg_temp as $$
    select pg_catalog.currval(pg_catalog.pg_get_serial_sequence({journal_text}, 'id'))
$$;

create or replace function {schema}.publish(channel text, payload text) returns bigint language plpgsql
    set search_path = pg_catalog, pg_temp as $$
begin
    insert into {schema}.journal (channel, payload) values (publish.channel, publish.payload);
    return {schema}.last_id();
end $$;

-- create trigger journal after insert or update or delete on TABLE
--     for each row execute function pgnotifier.publish_changes('CHANNEL');
create or replace function {schema}.publish_changes() returns trigger language plpgsql
    security definer set search_path = pg_catalog, pg_temp as $$
declare
    old_row jsonb;
    new_row jsonb;
    key jsonb;
begin
    if tg_nargs <> 1 or tg_when <> 'AFTER' or (tg_level = 'STATEMENT' and tg_op <> 'TRUNCATE') then
        raise exception 'publish_changes is for triggers AFTER ... FOR EACH ROW, or AFTER TRUNCATE, with one argument: the channel';
    end if;
    if tg_op in ('UPDATE', 'DELETE') then
        old_row := pg_catalog.to_jsonb(old);
    end if;
    if tg_op in ('INSERT', 'UPDATE') then
        new_row := pg_catalog.to_jsonb(new);
    end if;
    select pg_catalog.jsonb_object_agg(a.attname, coalesce(new_row, old_row) -> a.attname::text) into key
        from pg_catalog.pg_index i
        join pg_catalog.pg_attribute a on a.attrelid = i.indrelid
            and a.attnum = any (i.indkey[0:i.indnkeyatts - 1])  -- without INCLUDE
        where i.indrelid = tg_relid and i.indisprimary and tg_level = 'ROW';
    insert into {schema}.journal (channel, payload) values (tg_argv[0], pg_catalog.jsonb_build_object(
        'op', tg_op, 'schema', tg_table_schema, 'table', tg_table_name, 'key', key, 'old', old_row, 'new', new_row)::text);
    return null;
end $$;
revoke execute on function {schema}.publish_changes() from public;

insert into {schema}.meta (version, keep, system)
    select {version}, {keep}, system_identifier from pg_catalog.pg_control_system()
    on conflict (one) do update set version = excluded.version, keep = excluded.keep;
commit;
