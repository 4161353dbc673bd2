"""Guarantee 10: an on_listen that fails is called again until it returns; only its own subscriber waits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

import conftest
from oracle import Heard, Witness, exact, send
from pgnotifier import Gap, Notifier

Conn = psycopg.Connection[Any]


def until(condition: Callable[[], object], timeout: float = 4.0) -> None:
    conftest.until(condition, timeout)


class Failing(Heard):
    """Its `told` fails `times` times (None: until `mend`)."""

    def __init__(self, times: int | None = None) -> None:
        super().__init__()
        self.tries: list[Gap | None] = []
        self.at: list[float] = []
        self.left = 10**9 if times is None else times

    def mend(self) -> None:
        self.left = 0

    def told(self, id: Any, channel: str, gap: Gap | None) -> None:
        self.tries.append(gap)
        self.at.append(time.monotonic())
        if self.left:
            self.left -= 1
            raise RuntimeError("the database is not quite back")
        super().told(id, channel, gap)

    async def told_on_a_loop(self, id: Any, channel: str, gap: Gap | None) -> None:
        await asyncio.sleep(0)
        self.told(id, channel, gap)


@contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.parametrize("how", ["worker", "loop"])
def test_until_it_returns(server: str, sender: Conn, channel: str, how: str) -> None:
    """Four failures, then None, then the stream; each failure is counted and reported."""
    heard, events = Failing(4), []
    with running_loop() as loop, Notifier(server, retry_delay=(0.01, 0.1)) as n:
        n.subscribe("watch", n.SYSCHAN, lambda *a: events.append(a[2]["event"]))
        told = heard.told if how == "worker" else heard.told_on_a_loop
        n.subscribe(1, channel, heard.fn, on_listen=told, loop=loop)
        send(sender, channel, 1, 3)
        until(lambda: heard.entered == 3)
        assert heard.items == [None, 1, 2, 3]
        assert heard.tries == [None] * 5
        until(lambda: events.count("callback_failed") == 4)
        assert n.status()["failed"] == 4


def test_the_same_gap_or_a_wider_one(server: str, sender: Conn, channel: str) -> None:
    """A second loss of the session while it fails: one gap, which covers both."""
    heard = Failing(0)
    with Notifier(server, retry_delay=(0.01, 0.1)) as n:
        n.subscribe(1, channel, heard.fn, on_listen=heard.told)
        until(lambda: heard.items == [None])
        heard.left = 10**9
        for kills in (1, 2):
            sender.execute("select pg_terminate_backend(%s)", (n.status()["pid"],))
            until(lambda: n.status()["reconnects"] == kills and n.status()["connected"])  # noqa: B023
            seen = len(heard.tries)
            until(lambda: len(heard.tries) >= seen + 3)  # noqa: B023
        send(sender, channel, 1)
        heard.mend()
        until(lambda: heard.entered == 1)
        first, last = heard.tries[1], heard.gaps[-1]
        assert first is not None
        assert last.reason == "connection"
        assert last.since <= first.since
        assert last.until >= first.until
        assert heard.items == [None, last, 1]


def test_after_the_backoff(server: str, channel: str) -> None:
    """Not in a busy loop: fewer than thirty calls in half a second; and not later than the longest delay."""
    heard = Failing()
    with Notifier(server, retry_delay=(0.05, 0.1)) as n:
        n.subscribe(1, channel, heard.fn, on_listen=heard.told)
        until(lambda: len(heard.at) >= 6, 5)
        assert heard.at[5] - heard.at[0] > 0.02
        assert all(b - a < 1.0 for a, b in zip(heard.at, heard.at[1:], strict=False))
        before = len(heard.at)
        time.sleep(0.5)
        assert 1 <= len(heard.at) - before < 30


@pytest.mark.parametrize("workers", [1, 2])
def test_no_other_waits(server: str, sender: Conn, channel: str, workers: int) -> None:
    """Neither for a worker, nor for its mailbox, which is full: it spends nothing of the budget of others."""
    heard, other, gate = Failing(), Heard(), threading.Semaphore(0)
    late = Heard(gate)
    with Notifier(server, workers=workers, max_pending=50, retry_delay=(0.05, 0.1)) as n:
        witness = Witness(n, sender)
        n.subscribe(1, channel, heard.fn, on_listen=heard.told)
        n.subscribe(2, f"{channel}_2", other.fn)
        until(lambda: len(heard.tries) > 1)
        for i in range(5):
            since = time.monotonic()
            send(sender, channel, 100 * i + 1, 100 * i + 100)
            send(sender, f"{channel}_2", i)
            witness.look()
            assert time.monotonic() - since < 0.5
        until(lambda: other.numbers == [0, 1, 2, 3, 4])
        if workers == 2:  # the budget is there for another: it is waited for, until its gate opens
            n.subscribe(3, f"{channel}_3", late.fn, on_listen=late.told)
            send(sender, f"{channel}_3", 1, 200)
            timer = threading.Timer(0.4, gate.release, (1000,))
            timer.start()
            until(lambda: late.entered == 200)
            timer.join()
            assert exact(late, 1, 200) == 0
        heard.mend()
        until(lambda: heard.entered == 500)
        assert heard.items[0] is None
        assert exact(heard, 1, 500) == 450


@pytest.mark.parametrize("how", ["stop", "mute_channels", "mute_subscriber", "unsubscribe", "remove_channels"])
def test_what_ends_it(server: str, sender: Conn, channel: str, how: str) -> None:
    """No call begins after it; one that comes back begins anew."""
    heard = Failing()
    with Notifier(server, retry_delay=(0.02, 0.05)) as n:
        n.subscribe(1, channel, heard.fn, on_listen=heard.told)
        until(lambda: len(heard.tries) > 2)
        arguments: dict[str, tuple[Any, ...]] = {
            "stop": (),
            "mute_channels": (channel,),
            "mute_subscriber": (1,),
            "unsubscribe": (1, channel),
            "remove_channels": (channel,),
        }
        since = time.monotonic()
        getattr(n, how)(*arguments[how])
        assert time.monotonic() - since < 1
        before = len(heard.tries)
        time.sleep(0.3)
        assert len(heard.tries) <= before + 1  # one may have been decided on
        heard.mend()
        if how == "stop":
            n.start()
        elif how.startswith("mute"):
            getattr(n, f"un{how}")(*arguments[how])
        else:
            n.subscribe(1, channel, heard.fn, on_listen=heard.told)
        send(sender, channel, 1)
        until(lambda: heard.entered == 1)
        assert heard.items == [None, 1], heard.words()


def test_drain_tries_until_the_time_is_over(server: str, sender: Conn, channel: str) -> None:
    """It goes on while there is time; mended in time, the stream is delivered."""
    heard = Failing()
    with Notifier(server, retry_delay=(0.02, 0.05)) as n:
        n.subscribe(1, channel, heard.fn, on_listen=heard.told)
        send(sender, channel, 1, 3)
        until(lambda: n.status()["received"] == 3)
        before, since = len(heard.tries), time.monotonic()
        n.stop(0.5, drain=True)
        assert 0.4 < time.monotonic() - since < 1.5
        assert len(heard.tries) > before + 2
        assert heard.items == []
        n.start()
        send(sender, channel, 4, 6)
        until(lambda: n.status()["received"] == 6)
        timer = threading.Timer(0.3, heard.mend)
        timer.start()
        n.stop(5, drain=True)
        timer.join()
        assert heard.items == [None, 4, 5, 6], heard.words()
