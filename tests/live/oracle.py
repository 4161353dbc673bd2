"""What a subscription was told, in order, and what must hold of it whatever was done to it. Knows no private name."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

import psycopg

from conftest import until
from pgnotifier import Gap, Notifier

Conn = psycopg.Connection[Any]


class Heard:
    """One subscription: None, gaps and numbers in the order of the calls. With `gate`, a call waits for a permit.

    `entered` is the latest number whose call has begun; `stuck` says that a call waits for its permit. `sent()` is
    the latest number sent, and `read` what it was when `on_listen(None)` came: the state read then holds all those.
    """

    def __init__(self, gate: threading.Semaphore | None = None, sent: Callable[[], int] = lambda: 0) -> None:
        self.items: list[Any] = []
        self.read = 0
        self._sent = sent
        self.entered: int = 0
        self.stuck = False
        self._gate = gate

    def fn(self, id: Any, channel: str, payload: Any, pid: int) -> None:
        self.items.append(payload)
        self.entered = payload
        if self._gate is not None:
            self.stuck = True
            self._gate.acquire(timeout=30)
            self.stuck = False

    def told(self, id: Any, channel: str, gap: Gap | None) -> None:
        if gap is None:
            self.read = self._sent()
        self.items.append(gap)

    @property
    def numbers(self) -> list[int]:
        return [item for item in list(self.items) if type(item) is int]

    @property
    def gaps(self) -> list[Gap]:
        return [item for item in list(self.items) if isinstance(item, Gap)]

    def words(self) -> str:
        """Readable: `None 1 2 Gap(muted) 5`."""
        return " ".join(
            f"Gap({item.reason}, {item.dropped})" if isinstance(item, Gap) else str(item) for item in list(self.items)
        )


def problems(heard: Heard, sent: list[int]) -> list[str]:
    """`sent`: all numbers since listening began. One that is missing needs a gap between its neighbours."""
    found: list[str] = []
    items = heard.items
    sent = [number for number in sent if number > heard.read]
    if items and (items[0] is not None or items.count(None) != 1):
        found.append("on_listen(None) must come once, and first")
    last, gap = 0, False
    for item in items:
        if isinstance(item, Gap):
            gap = True
        elif item is not None:
            if item <= last:
                found.append(f"{item} came after {last}")
            missing = [number for number in sent if last < number < item]
            if missing and not gap:
                found.append(f"{missing} are missing before {item}, without a gap there")
            last, gap = max(last, item), False
    missing = [number for number in sent if number > last]
    if missing and not gap:
        found.append(f"{missing} are missing at the end")
    return found


def exact(heard: Heard, first: int, last: int) -> int:
    """From `first` to `last` each number was heard, or counted by a gap in its place; returns how many were."""
    due, counted, total = first, 0, 0
    for item in heard.items:
        if isinstance(item, Gap):
            assert item.reason == "overflow", item
            assert item.dropped, item
            counted += item.dropped
        elif item is not None:
            assert item == due + counted, f"{item} came instead of {due}, and {counted} were told of"
            total, counted, due = total + counted, 0, item + 1
    assert due + counted == last + 1
    return total + counted


class Witness:
    """A subscriber on a channel of its own: when it has heard its probe, what was sent before has arrived."""

    def __init__(self, n: Notifier, sender: Conn) -> None:
        self.channel = f"w_{uuid.uuid4().hex[:12]}"
        self._n, self._sender = n, sender
        self._seen = 0
        n.subscribe("witness", self.channel, self._fn)
        self._sent = 0

    def _fn(self, id: Any, channel: str, payload: Any, pid: int) -> None:
        self._seen = payload

    def look(self, timeout: float = 10) -> None:
        self._sent += 1
        send(self._sender, self.channel, self._sent)
        until(lambda: self._seen == self._sent, timeout)


def send(conn: Conn, channel: str, first: int, last: int | None = None) -> None:
    """The numbers from `first` to `last`, in one transaction."""
    last = first if last is None else last
    conn.execute("select pg_notify(%s, i::text) from generate_series(%s::int, %s::int) i", (channel, first, last))


def is_heard(n: Notifier, sender: Conn, timeout: float = 10) -> None:
    """A subscription that is made now hears what is sent now."""
    Witness(n, sender).look(timeout)
