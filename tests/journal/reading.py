"""What a test reads: a callback that remembers and can be held, and rows of the database."""

from __future__ import annotations

import os
from threading import Event
from typing import Any

import psycopg

from conftest import until
from pgnotifier import Gap
from pgnotifier.journal import Entry

LONG = os.environ.get("PGNOTIFIER_LONG") == "1"
PUBLISH = "insert into pgnotifier.journal (channel, payload) values ('orders', %s)"


def run(dsn: str, query: str, *params: Any) -> list[tuple[Any, ...]]:
    """One statement, committed."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        cursor = conn.execute(query.encode(), params or None)
        return cursor.fetchall() if cursor.description else []


def effects(dsn: str) -> list[str]:
    """The payloads in the table, in the order of the calls that were committed."""
    return [payload for (payload,) in run(dsn, "select payload from effect order by place")]


class Reader:
    """A callback that notes each call, writes its effect, and stops at the payloads that it was told."""

    def __init__(self, *, writes: bool = True) -> None:
        self._writes = writes
        self.entries: list[Entry] = []
        self.gaps: list[Gap] = []
        self._held: dict[str, tuple[Event, Event]] = {}

    def hold(self, payload: object) -> tuple[Event, Event]:
        """Two events: the next call with that payload sets one, and waits for the other."""
        self._held[str(payload)] = Event(), Event()
        return self._held[str(payload)]

    def release(self) -> None:
        for _, go in self._held.values():
            go.set()

    @property
    def payloads(self) -> list[Any]:
        return [entry.payload for entry in self.entries]

    def has(self, *payloads: object, timeout: float = 15.0) -> None:
        """Wait until there have been so many calls, which are these in that order."""
        try:
            until(lambda: len(self.entries) >= len(payloads), timeout)
        finally:
            assert self.payloads == list(payloads)

    def __call__(self, entry: Entry, conn: psycopg.Connection[Any]) -> None:
        self.entries.append(entry)
        reached, go = self._held.get(str(entry.payload), (None, None))
        if reached is not None and go is not None and not reached.is_set():
            reached.set()
            assert go.wait(30)
        if self._writes:
            write(conn, entry)

    def on_gap(self, name: str, channel: str, gap: Gap) -> None:
        assert channel == gap.channel
        self.gaps.append(gap)


def write(conn: psycopg.Connection[Any], entry: Entry) -> None:
    """An effect that cannot happen twice."""
    conn.execute("insert into effect (id, payload) values (%s, %s)", [entry.id, str(entry.payload)])
