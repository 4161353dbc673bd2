"""Threads that read a stream, and what they were given."""

from __future__ import annotations

import threading
from typing import Any

import psycopg

from conftest import until
from pgnotifier import Listening, Notification, Notifier, Stream

Conn = psycopg.Connection[Any]


class Reader:
    """A thread that iterates until the stream ends, or raises."""

    def __init__(self, stream: Stream) -> None:
        self.events: list[Any] = []
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(stream,), daemon=True)
        self.thread.start()

    def _run(self, stream: Stream) -> None:
        try:
            for event in stream:
                self.events.append(event)
        except BaseException as error:
            self.error = error

    def ended(self, timeout: float = 2.0) -> bool:
        self.thread.join(timeout)
        return not self.thread.is_alive() and self.error is None

    @property
    def payloads(self) -> list[Any]:
        return payloads(self.events)


def send(sender: Conn, channel: str, *payloads: object) -> None:
    for payload in payloads:
        sender.execute("select pg_notify(%s, %s)", (channel, str(payload)))


def series(sender: Conn, channel: str, first: int, last: int) -> None:
    """The numbers from `first` to `last`, in one transaction."""
    sender.execute("select pg_notify(%s, i::text) from generate_series(%s::int, %s) i", (channel, first, last))


def take(stream: Stream, count: int) -> list[Any]:
    """The next events; each has ten seconds."""
    return [stream.get(10) for _ in range(count)]


def rest(stream: Stream) -> list[Any]:
    """What waits, without waiting for more."""
    events: list[Any] = []
    while True:
        try:
            events.append(stream.get(0))
        except TimeoutError:
            return events


def payloads(events: list[Any]) -> list[Any]:
    return [event.payload for event in events if isinstance(event, Notification)]


def words(events: list[Any]) -> list[Any]:
    """Readable: payloads, and of each Listening the reasons of its gaps by channel."""
    return [
        {gap.channel: gap.reason for gap in event.gaps} if isinstance(event, Listening) else event.payload
        for event in events
    ]


def gone(n: Notifier, *channels: str) -> None:
    """Neither registry nor server nor memory has anything of these."""
    until(lambda: not set(channels) & set(n.active_channels()), 3)
    assert not set(channels) & n.channels().keys()
    assert n.subscribers() == {}
    until(lambda: not set(n._dispatcher.boxes), 3)
