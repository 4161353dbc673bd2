"""The entries that a consumer gets, and how its position moves (guarantee 18). Generators of statements, without I/O.

A slice is the entries that are visible in a new snapshot and were not in the one before, in order of id. The snapshot
is taken in a separate statement, outside a transaction: a transaction that writes is visible in its own snapshots, so
its later entries would be left out. The position keeps both snapshots of a slice until its last entry is delivered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from ..gap import Gap
from .work import Call, Statement, Work, statement

BATCH_BYTES = 4_000_000  # of payloads in a batch; a longer entry comes alone
NOTHING = "1:1:"  # the snapshot in which nothing is visible
MANY = 1000  # entries of other channels after which an idle consumer's position moves


class Entry(NamedTuple):
    """An entry of the journal: its id, channel, decoded payload, and when it was written (aware)."""

    id: int
    channel: str
    payload: Any
    at: datetime


class Removed(Exception):
    """The journal does not have the consumer any more."""

    def __init__(self, name: str) -> None:
        super().__init__(f"consumer {name!r} has been removed")


class Moved(Exception):
    """The stored position is not the expected one, or another session has locked it."""


class TurnEnded(Exception):
    """The transaction is not the one in which the batch began."""


@dataclass(frozen=True)
class Position:
    """Everything visible in `since` has been delivered, and of the entries visible in `upto` the ids up to `done`.

    `last` is the greatest id of the slice that ends with `upto`, if one is under way.
    """

    since: str
    upto: str | None = None
    done: int = 0
    last: int = 0


NEWS = """
    select pg_catalog.pg_current_snapshot()::text, (select gaps from {s}.consumer where name = %(name)s), count(*),
        min(e.id) filter (where owed), max(e.id) filter (where owed)
    from (
        select e.id, not pg_catalog.pg_visible_in_snapshot(e.xid, h.start) as owed
        from {s}.journal e
        left join {s}.consumer_channel h on h.consumer = %(name)s and h.channel = e.channel
        where e.xid >= %(xmax)s::xid8 or e.xid = any(%(open)s::xid8[])) e"""

LOCK = """
    select since::text, upto::text, done, last, gaps,
        (select holder from {s}.lease where consumer = name) = %(holder)s::uuid,
        array(select channel from {s}.consumer_channel where consumer = name order by channel collate "C"),
        pg_catalog.set_config('pgnotifier.turn', %(turn)s, true),
        case when gaps = 0 and not %(tell)s then pg_catalog.set_config('search_path', %(path)s, true) end
    from {s}.consumer where name = %(name)s for no key update skip locked"""

READ = """
    select * from {s}.slice(%(name)s, %(since)s::pg_catalog.pg_snapshot, %(upto)s::pg_catalog.pg_snapshot, %(done)s,
        %(last)s, %(most)s, %(bytes)s)"""

# Runs after a callback, under the search_path of its role: no operator, and every type has its schema.
MOVE = """
    select moved from {s}.move(%(name)s, %(turn)s, %(since)s::pg_catalog.pg_snapshot,
        %(upto)s::pg_catalog.pg_snapshot, %(done)s, %(last)s, %(newest)s) as moved"""

GAPS = """
    select channel, reason, since, until, dropped from {s}.gap where consumer = %(name)s
    order by since, channel collate "C" """

TOLD = "delete from {s}.gap where consumer = %(name)s and channel = %(channel)s and reason = %(reason)s returning 1"
SETTLE = """
    with settled as (update {s}.consumer set gaps = 0 where name = %(name)s and gaps <> 0)
    select pg_catalog.set_config('search_path', %(path)s, true)"""


TAIL = """
    select s.now::text, e.id, e.channel, e.payload, e.at
    from (select pg_catalog.pg_current_snapshot() as now) s
    left join {s}.journal e on e.channel = any(%(channels)s)
        and (e.xid >= %(xmax)s::xid8 or e.xid = any(%(open)s::xid8[]))
    order by e.id"""

LEADS = """
    select (select holder from {s}.lease where consumer = name) = %(holder)s::uuid and %(channels)s =
        array(select channel from {s}.consumer_channel where consumer = name order by channel collate "C")
    from {s}.consumer where name = %(name)s"""


def news(schema: str, name: str, position: Position) -> Statement:
    """Ask for the snapshot of now, the numbers of gaps and of new entries, and the first and last id to deliver."""
    return statement(schema, NEWS, name=name, **_parts(position.since))


def tail(schema: str, channels: list[str], since: str) -> Statement:
    """Ask for the snapshot of now and the entries that it shows and `since` does not: at least one row."""
    return statement(schema, TAIL, channels=channels, **_parts(since))


def _parts(snapshot: str) -> dict[str, str]:
    """Return a snapshot as parameters, so that the server uses the index on xid."""
    _, xmax, open = snapshot.split(":")
    return {"xmax": xmax, "open": f"{{{open}}}"}


def stored(schema: str, name: str) -> Work[Position]:
    """Return the stored position. Raises `Removed`."""
    rows = yield statement(
        schema, "select since::text, upto::text, done, last from {s}.consumer where name = %(name)s", name=name
    )
    if not rows:
        raise Removed(name)
    return Position(*rows[0])


def leads(schema: str, name: str, holder: str, channels: list[str]) -> Work[bool]:
    """Return True if `holder` has the lease and the list of channels is `channels`. Raises `Removed`."""
    rows = yield statement(schema, LEADS, name=name, holder=holder, channels=channels)
    if not rows:
        raise Removed(name)
    return bool(rows[0][0])


@dataclass
class Turn:
    """Delivers a batch in one transaction. If `stopping()`, it ends before the next entry."""

    schema: str
    name: str
    holder: str
    channels: list[str]
    call: Callable[[Entry], Call]
    tell: Callable[[str, Gap], Call]
    stopping: Callable[[], bool]
    skipped: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self.current: Entry | None = None  # that is being delivered
        self.called: list[Entry] = []
        self._number = 0

    def take(self, before: Position, slice: Position, most: int, gaps: bool, path: str) -> Work[Position]:
        """Report gaps, call for the next entries of `slice`, move the position from `before`, and return it.

        Callbacks run under the search_path `path`. `most` is the greatest number of entries; 0 only stores the slice.
        Raises `Moved` if the stored position is not `before`, or the lease or the list of channels is another's.
        """
        self._number += 1
        turn = f"{self.holder} {self._number}"
        rows = yield statement(self.schema, LOCK, name=self.name, holder=self.holder, turn=turn, tell=gaps, path=path)
        if not rows or not rows[0][5] or rows[0][6] != self.channels or Position(*rows[0][:4]) != before:
            raise Moved
        if gaps or rows[0][4]:
            yield from self._tell(path)
        after = slice
        if slice.upto is not None and most:
            after = yield from self._deliver(slice, most)
        if after != before:
            values = {"since": after.since, "upto": after.upto, "done": after.done, "last": after.last}
            newest = self.called[-1].id if self.called else 0
            moved = yield statement(self.schema, MOVE, name=self.name, turn=turn, newest=newest, **values)
            if not moved[0][0]:
                raise TurnEnded("the callback has ended the transaction")
        return after

    def _deliver(self, slice: Position, most: int) -> Work[Position]:
        parameters = {"since": slice.since, "upto": slice.upto, "done": slice.done, "last": slice.last}
        rows = yield statement(self.schema, READ, name=self.name, most=most, bytes=BATCH_BYTES, **parameters)
        done = slice.done
        for row in rows:
            if self.stopping():
                return replace(slice, done=done)
            entry = Entry(*row)
            self.called.append(entry)
            if entry.id not in self.skipped:
                self.current = entry
                yield self.call(entry)
            done = entry.id
        if not rows or done >= slice.last:
            return Position(slice.upto or slice.since)
        return replace(slice, done=done)

    def _tell(self, path: str) -> Work[None]:
        rows = yield statement(self.schema, GAPS, name=self.name)
        for channel, reason, since, until, dropped in rows:
            self.current = None
            yield self.tell(channel, Gap(channel, reason, since, until, dropped))
            yield statement(self.schema, TOLD, name=self.name, channel=channel, reason=reason)
        yield statement(self.schema, SETTLE, name=self.name, path=path)
