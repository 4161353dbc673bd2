"""Registering consumers, trimming, restored databases, and the journal's state (guarantee 18).

Everything runs on the thread of its session, without a lock.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, NamedTuple

import psycopg

from .sessions import Session
from .work import Work, statement

STEP = 5000  # entries that one transaction of trimming looks at

# Committed before the snapshots are taken, so that trimming keeps entries that they don't show.
ADD = """
    with made as (
        insert into {s}.consumer (name) values (%(name)s) on conflict (name) do nothing returning 1)
    insert into {s}.consumer_channel (consumer, channel)
    select name, channel from (select %(name)s::text as name, pg_catalog.unnest(%(channels)s::text[]) as channel) c
    where (select pg_catalog.count(*) from made) >= 0
    on conflict (consumer, channel) do nothing returning channel, exists(select from made)"""

ADDED = """
    insert into {s}.gap (consumer, channel, reason, since, until)
    select name, pg_catalog.unnest(%(channels)s::text[]), 'channels', moved, pg_catalog.clock_timestamp()
    from {s}.consumer where name = %(name)s
    on conflict (consumer, channel, reason) do update set until = excluded.until returning 1"""

BEGIN = """
    with begun as (
        update {s}.consumer_channel h set start = case when c.since is null and %(beginning)s
            then '1:1:'::pg_snapshot else pg_catalog.pg_current_snapshot() end
        from {s}.consumer c where c.name = h.consumer and c.name = %(name)s and h.start is null)
    update {s}.consumer set since = case when %(beginning)s
            then '1:1:'::pg_snapshot else pg_catalog.pg_current_snapshot() end,
        newest = case when %(beginning)s then 0 else (select coalesce(pg_catalog.max(id), 0) from {s}.journal) end
    where name = %(name)s and since is null returning 1"""

PRUNE = """
    delete from {s}.consumer_channel where consumer = %(name)s and channel <> all(%(channels)s::text[]) returning 1"""

CHECK = """
    select m.version, m.keep, m.system = c.system_identifier, pg_catalog.pg_is_in_recovery()
    from {s}.meta m, pg_catalog.pg_control_system() c"""


class State(NamedTuple):
    """The version of a journal's tables, how long it keeps entries, and whether it is of this cluster."""

    version: int
    keep: timedelta | None
    is_home: bool
    is_standby: bool


def state(schema: str) -> Work[State]:
    rows = yield statement(schema, CHECK)
    return State(*rows[0])


def prepare(session: Session, schema: str) -> None:
    """Adopt a journal that was restored from another cluster. Raises `psycopg.OperationalError` on a standby."""
    known = session.run(state(schema))
    if known.is_standby:
        raise psycopg.OperationalError("a journal can't be used on a standby: connect to the primary")
    if not known.is_home:
        session.run(restore(schema), transaction=True)


def register(session: Session, schema: str, name: str, channels: list[str], beginning: bool = False) -> None:
    """Register the consumer and its channels. New ones begin now, or at the beginning."""
    session.run(_add(schema, name, channels), transaction=True)
    session.ask(statement(schema, BEGIN, name=name, beginning=beginning))


def _add(schema: str, name: str, channels: list[str]) -> Work[None]:
    added = yield statement(schema, ADD, name=name, channels=channels)
    if added and not added[0][1]:
        yield statement(schema, ADDED, name=name, channels=[channel for channel, _ in added])


def prune(schema: str, name: str, channels: list[str]) -> Work[None]:
    """Forget all channels of the consumer but these."""
    yield statement(schema, PRUNE, name=name, channels=channels)


def restore(schema: str) -> Work[None]:
    """Adopt a journal that was restored from another cluster. In a transaction.

    Its transaction ids mean nothing here. Every entry becomes visible, and each consumer goes on after the newest
    entry that it is known to have had.
    """
    rows = yield statement(schema, "select system from {s}.meta for update")
    home = yield statement(schema, "select system_identifier from pg_catalog.pg_control_system()")
    if rows == home:
        return
    yield statement(schema, "with u as (update {s}.journal set xid = '2' where xid <> '2') select 1")
    yield statement(schema, "with u as (update {s}.consumer_channel set start = '1:1:') select 1")
    yield statement(
        schema,
        """insert into {s}.gap (consumer, channel, reason, since, until)
        select h.consumer, h.channel, 'restored', c.moved, pg_catalog.clock_timestamp()
        from {s}.consumer_channel h join {s}.consumer c on c.name = h.consumer
        on conflict (consumer, channel, reason) do update set until = excluded.until returning 1""",
    )
    yield statement(
        schema,
        """update {s}.consumer set since = '1:1:', upto = pg_catalog.pg_current_snapshot(), done = newest,
        last = (select coalesce(pg_catalog.max(id), 0) from {s}.journal), gaps = gaps + 1
        where since is not null returning 1""",
    )
    yield statement(schema, "update {s}.meta set system = %(system)s returning 1", system=home[0][0])


class Trimmed(NamedTuple):
    """The number of deleted entries, the last id that was looked at, and whether more may be old."""

    deleted: int
    after: int
    more: bool


TRIM = """
    with cut as materialized (select pg_catalog.clock_timestamp() - %(age)s::interval as at),
    step as materialized (
        select e.id, e.channel, e.at, e.at < cut.at as old from {s}.journal e, cut
        where e.id > %(after)s order by e.id limit %(step)s),
    owed as materialized (
        select o.name, s.id, s.channel, s.at from step s join {s}.owed o on o.id = s.id where s.old),
    kept as materialized (select id from owed where name <> all(%(evicted)s)),
    lost as materialized (select * from owed where id not in (select id from kept)),
    told as (
        insert into {s}.gap (consumer, channel, reason, dropped, since, until)
        select name, channel, 'trimmed', pg_catalog.count(*), pg_catalog.min(at), pg_catalog.max(at)
        from lost group by name, channel
        on conflict (consumer, channel, reason) do update set dropped = gap.dropped + excluded.dropped,
            since = least(gap.since, excluded.since), until = greatest(gap.until, excluded.until)),
    marked as (
        update {s}.consumer set gaps = gaps + 1 where name in (select name from lost) returning 1),
    gone as (
        delete from {s}.journal e using step s
        where e.id = s.id and s.old and s.id not in (select id from kept) returning 1)
    select (select pg_catalog.count(*) from gone), coalesce(pg_catalog.max(id), 0),
        coalesce(pg_catalog.bool_or(old), false), (select pg_catalog.count(*) from marked) from step"""


def trim(schema: str, age: timedelta, after: int = 0, evict: bool = False) -> Work[Trimmed]:
    """Delete entries older than `age` that no consumer is owed; with `evict`, also owed ones. In a transaction.

    Without `evict` no lock is needed: positions only grow, so a position that was read before owes more, not less.
    With it the positions are locked, so that no batch is under way: nothing is both delivered and counted as lost.
    A consumer that registers while this waits for the locks of others is not locked, and keeps what it is owed.
    """
    locked = []
    if evict:
        yield statement(schema, "select pg_catalog.set_config('lock_timeout', '15s', true)")
        locked = yield statement(schema, "select name from {s}.consumer order by name for no key update")
    evicted = [name for (name,) in locked]
    rows = yield statement(schema, TRIM, age=age, after=after, evicted=evicted, step=STEP)
    deleted, last, more, marked = rows[0]
    if marked:
        yield statement(schema, "select pg_catalog.pg_notify('pgnotifier_journal', '1')")
    return Trimmed(deleted, last, more)


# The notification ends a consumer that runs.
REMOVE = """
    with gone as (delete from {s}.consumer where name = %(name)s returning 1)
    select pg_catalog.pg_notify('pgnotifier_journal', '1') from gone"""

ENTRIES = """
    select pg_catalog.count(*), pg_catalog.pg_total_relation_size(%(table)s::regclass), pg_catalog.min(at),
        pg_catalog.max(at) from {s}.journal"""

CONSUMERS = """
    with owed as (
        select o.name, pg_catalog.count(*) as lag, pg_catalog.min(o.at) as oldest,
            pg_catalog.count(*) filter (where o.at < pg_catalog.clock_timestamp() - m.keep) as held
        from {s}.owed o, {s}.meta m group by o.name)
    select c.name,
        array(select channel from {s}.consumer_channel where consumer = c.name order by channel collate "C"),
        coalesce(l.expires > pg_catalog.clock_timestamp(), false), l.pid, coalesce(o.lag, 0),
        extract(epoch from pg_catalog.clock_timestamp() - o.oldest)::float8, coalesce(o.held, 0), c.moved,
        array(select distinct reason from {s}.gap where consumer = c.name order by 1)
    from {s}.consumer c left join {s}.lease l on l.consumer = c.name left join owed o on o.name = c.name
    order by c.name collate "C" """

# Transactions that have written and are open: their entries, if they have any, come when they commit.
OPEN = """
    select pid, datname, usename, application_name, state,
        extract(epoch from pg_catalog.clock_timestamp() - xact_start)::float8
    from pg_catalog.pg_stat_activity where backend_xid is not null and pid <> pg_catalog.pg_backend_pid()
    order by xact_start limit 1"""


def status(schema: str, table: str) -> Work[dict[str, Any]]:
    """Return the result of `Journal.status`."""
    known = yield from state(schema)
    entries = yield statement(schema, ENTRIES, table=table)
    consumers = yield statement(schema, CONSUMERS)
    opened = yield statement(schema, OPEN)
    names = ("name", "channels", "active", "pid", "lag", "lag_seconds", "held", "moved", "gaps")
    of_open = ("pid", "database", "user", "application_name", "state", "seconds")
    return {
        "version": known.version,
        "keep": known.keep,
        "restored": not known.is_home,
        **dict(zip(("entries", "bytes", "oldest", "newest"), entries[0], strict=True)),
        "consumers": [dict(zip(names, row, strict=True)) for row in consumers],
        "oldest_transaction": dict(zip(of_open, opened[0], strict=True)) if opened else None,
    }
