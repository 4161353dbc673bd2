"""Numbered notifications, what subscriptions made of them, and the one checker that judges it.

Each number is sent to all channels in one transaction, on a connection that no fault is meant for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import psycopg

from pgnotifier import Gap


def now() -> datetime:
    return datetime.now(timezone.utc)


@dataclass(frozen=True)
class Sent:
    """One number: when it was about to be sent, when its commit was confirmed (None: it may be lost, or not)."""

    number: int
    before: datetime
    after: datetime | None


@dataclass
class Stream:
    """What one subscription was told, in order: numbers, None (listening), gaps. Called on one worker at a time."""

    channel: str
    items: list[int | Gap | None] = field(default_factory=list)
    listening_at: datetime | None = None
    last: int = 0

    def heard(self, id: Hashable, channel: str, payload: Any, pid: int) -> None:
        self.items.append(payload)
        self.last = payload

    def told(self, id: Hashable, channel: str, gap: Gap | None) -> None:
        self.listening_at = self.listening_at or now()
        self.items.append(gap)

    def gaps(self) -> list[Gap]:
        return [item for item in list(self.items) if isinstance(item, Gap)]


@dataclass
class Verdict:
    """Figures, and what is wrong in words."""

    delivered: int = 0
    covered: int = 0
    lost: int = 0
    problems: list[str] = field(default_factory=list)


def judge(stream: Stream, sent: Sequence[Sent]) -> Verdict:
    """Guarantee 10: in order, none twice, and every hole has a Gap, at that place and around that time."""
    verdict = Verdict()
    problems = verdict.problems
    if not stream.items or stream.items[0] is not None or stream.items.count(None) != 1:
        problems.append("on_listen(None) must come once, and before all else")
    last = 0
    holes: list[tuple[int, int, list[Gap]]] = []  # numbers above the first and below the second; gaps between
    gaps: list[Gap] = []
    for item in stream.items:
        if isinstance(item, Gap):
            if item.channel != stream.channel or item.since > item.until or item.since.utcoffset() is None:
                problems.append(f"a wrong gap: {item}")
            gaps.append(item)
        elif item is not None:
            if item <= last:
                problems.append(f"{item} came {'twice' if item == last else 'after'} {last}")
            else:
                holes.append((last, item, gaps))
                last, gaps = item, []
            verdict.delivered += 1
    holes.append((last, sent[-1].number + 1 if sent else last + 1, gaps))
    by_number = {one.number: one for one in sent}
    start = stream.listening_at
    for low, high, gaps in holes:
        for number in range(low + 1, high):
            one = by_number.get(number)
            if one is None or one.after is None or start is None or one.before <= start:
                continue  # not sent, perhaps never committed, or before there was anything to promise
            if any(gap.since <= one.after and gap.until >= one.before for gap in gaps):
                verdict.covered += 1
            else:
                verdict.lost += 1
                problems.append(f"{one} is missing between {low} and {high}, where the gaps are {gaps}")
    return verdict


class Traffic:
    """A thread that sends number after number, `pause` seconds apart, and connects again when it has to."""

    def __init__(self, dsn: str, channels: Sequence[str], pause: float = 0.002) -> None:
        self._dsn = dsn
        self._channels = list(channels)
        self.pause = pause
        self._sent: list[Sent] = []
        self._ending = threading.Event()
        self._going = threading.Event()
        self._going.set()
        self._idle = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic")
        self._thread.start()

    def __enter__(self) -> Traffic:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._ending.set()
        self._going.set()
        self._thread.join()

    def hold(self) -> None:
        """Send nothing until `resume`; returns when the last one has been answered."""
        self._idle.clear()
        self._going.clear()
        self._idle.wait()

    def resume(self) -> None:
        self._going.set()

    def sent(self) -> list[Sent]:
        return list(self._sent)

    def last_certain(self) -> int:
        """The highest number whose commit was confirmed, 0 where there is none."""
        return next((one.number for one in reversed(self.sent()) if one.after is not None), 0)

    def _run(self) -> None:
        conn: psycopg.Connection[Any] | None = None
        number = 0
        while not self._ending.wait(self.pause):
            if not self._going.is_set():
                self._idle.set()
                self._going.wait()
                continue
            try:
                if conn is None:
                    conn = psycopg.connect(self._dsn, autocommit=True, connect_timeout=2)
            except psycopg.OperationalError:
                time.sleep(0.01)  # the server is down
                continue
            number += 1
            before = now()
            try:
                conn.execute("select pg_notify(c, %s) from unnest(%s::text[]) c", [str(number), self._channels])
                self._sent.append(Sent(number, before, now()))
            except psycopg.OperationalError:
                self._sent.append(Sent(number, before, None))
                conn.close()
                conn = None
        if conn is not None:
            conn.close()
        self._idle.set()


def settle(traffic: Traffic, *streams: Stream, timeout: float = 15.0) -> list[Verdict]:
    """With the last fault mended: wait until all that is sent arrives again, stop the traffic, judge each stream."""
    deadline = time.monotonic() + timeout
    traffic.resume()
    mark = traffic.last_certain()
    while any(stream.last <= mark for stream in streams) and time.monotonic() < deadline:
        time.sleep(0.002)
    traffic.stop()
    mark = traffic.last_certain()
    while any(stream.last < mark for stream in streams) and time.monotonic() < deadline:
        time.sleep(0.002)
    return [judge(stream, traffic.sent()) for stream in streams]


def assert_whole(traffic: Traffic, *streams: Stream, timeout: float = 15.0) -> list[Verdict]:
    """`settle`, and fail where the checker found anything wrong."""
    verdicts = settle(traffic, *streams, timeout=timeout)
    for stream, verdict in zip(streams, verdicts, strict=True):
        assert not verdict.problems, (stream.channel, len(verdict.problems), verdict.problems[:5])
    return verdicts
