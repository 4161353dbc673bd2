"""Guarantees 5, 10 and 11: what threads do to each other's changes. Every interleaving is forced."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from time import monotonic
from typing import Any

import psycopg
import pytest

from conftest import until
from pgnotifier.connection import RECONNECTING
from pgnotifier.shared import Shared
from pgnotifier.testing import MemoryNotifier, MemoryServer

from .forcing import SECONDS, Log, Other, Stall, around_listen, on_refusal


@pytest.fixture
def memory() -> Iterator[MemoryServer]:
    with MemoryServer() as memory:
        yield memory


@pytest.fixture
def n(memory: MemoryServer) -> MemoryNotifier:
    return memory.Notifier()


# -- a change, and another one meanwhile ------------------------------------------------------------------------


def test_subscribing_to_a_channel_that_is_being_left(
    memory: MemoryServer, n: MemoryNotifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee 5: when subscribe returns, the server listens, and not only until it gets to an UNLISTEN."""
    log, told = Log(), Log()
    n.subscribe("x", "a", print)
    other = Other(lambda: n.subscribe("y", "a", log.heard, on_listen=told.told))

    def notify_once_subscribed() -> None:
        if other.returned.is_set() and not memory.sent:
            memory.notify("a", 1)

    with around_listen(monkeypatch, [], ["a"], before=lambda: other.begin(n), after=notify_once_subscribed):
        n.unsubscribe("x", "a")
    assert other.returned.wait(SECONDS)
    notify_once_subscribed()
    memory.settle()
    assert (log, told) == ([1], [None])


def test_a_refused_change_takes_back_only_what_nobody_else_wants(
    memory: MemoryServer, n: MemoryNotifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee 5: a call that returned because the server listened already can rely on that."""
    log, told = Log(), Log()
    n.subscribe("y", "a", log.heard, autorun=False, on_listen=told.told)
    n.subscribe("x", "a", print, autorun=False)
    n.subscribe("x", "bad", print, autorun=False)
    n.mute_channels(["a", "bad"])
    memory.refuse("bad")
    other = Other(lambda: n.unmute_channels("a"))
    with around_listen(monkeypatch, ["a"], [], after=lambda: other.begin(n)), pytest.raises(psycopg.DataError):
        n.unmute_channels(["a", "bad"])
    assert other.returned.wait(SECONDS)
    memory.notify("a", 1)
    memory.settle()
    assert (log, told) == ([1], [None])
    assert n.muted_channels() == ["bad"]
    assert [*memory.listening().values()] == [["PGNOTIFIER", "a"]]


def test_a_mute_that_takes_two_round_trips(
    memory: MemoryServer, n: MemoryNotifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee 10: its gap begins before the first, after which the server does not listen any more."""
    monkeypatch.setattr("pgnotifier.connection.exchange.SIGNAL_TIME", timedelta(0))
    log, told, missed = Log(), Log(), list[datetime]()
    n.subscribe("x", "a", log.heard, on_listen=told.told)
    memory.settle()
    other = Other(lambda: n.subscribe("y", "b", print, autorun=False))

    def miss_one() -> None:
        missed.append(datetime.now(timezone.utc))
        memory.notify("a", 1)
        other.begin(n)  # it waits for nobody, and the change takes "b" along in a second round trip

    with around_listen(monkeypatch, [], ["a"], after=miss_one), around_listen(monkeypatch, ["b"], []):
        n.mute_subscriber("x")
    n.unmute_subscriber("x")
    memory.settle()
    assert log == []
    assert [gap and gap.reason for gap in told] == [None, "muted"]
    assert told[1].since <= missed[0] <= told[1].until


def test_two_listeners_that_change_each_other(memory: MemoryServer) -> None:
    """Guarantee 5: none deadlocks, from a log handler on either thread at the same moment too."""
    one, two = memory.Notifier(), memory.Notifier()
    both = threading.Barrier(2)
    memory.refuse(["bad 1", "bad 2"])

    def change_the_other(text: str) -> None:
        both.wait(SECONDS)
        (two if "bad 1" in text else one).subscribe("handler", "new", print)

    def change(n: MemoryNotifier, name: str) -> None:
        n.subscribe("pending", name, print, autorun=False)
        n.subscribe("x", "good", print)

    with on_refusal(change_the_other):
        others = [Other(lambda: change(one, "bad 1")), Other(lambda: change(two, "bad 2"))]
        for other in others:
            other.start()
        assert [other.returned.wait(SECONDS) for other in others] == [True, True]
    until(lambda: one.active_channels() == two.active_channels() == ["good", "new"], SECONDS)


# -- a stop, and a thread that does not end ---------------------------------------------------------------------


def test_a_listener_that_outlives_stop_makes_no_changes(memory: MemoryServer, n: MemoryNotifier) -> None:
    """Guarantee 11: it was in a log handler; the change that waited for it takes effect with the next session."""
    log, told, stall = Log(), Log(), Stall()
    memory.refuse("bad")
    n.subscribe("pending", "bad", print, autorun=False)
    other = Other(lambda: n.subscribe("y", "a", log.heard, on_listen=told.told))
    with on_refusal(stall):
        other.start()
        assert stall.here.wait(SECONDS)
        n.stop()
        n.start()
        stall.end()
    assert other.returned.wait(SECONDS)
    memory.notify("a", 1)
    memory.settle()
    assert (log, told) == ([1], [None])


def test_a_listener_that_outlives_stop_loses_no_session(
    memory: MemoryServer, n: MemoryNotifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantees 6 and 10: it had lost its own; that is no event and no gap of the next one."""
    events, told, stall = Log(), Log(), Stall()
    n.subscribe("e", n.SYSCHAN, events.heard)
    n.subscribe("g", "g", print, on_listen=told.told)
    memory.settle()
    hand_over = Shared.hand_over

    def stalled(self: Shared, *args: Any) -> float:
        if n._supervisor.phase is RECONNECTING:
            stall()
        return hand_over(self, *args)

    monkeypatch.setattr(Shared, "hand_over", stalled)
    memory._end("terminating connection")
    assert stall.here.wait(SECONDS)
    n.stop(0)
    n.start()
    stall.end()
    n.subscribe("g", "g", print, on_listen=told.told)  # who hears already is not told again
    memory.settle()
    assert [event["event"] for event in events] == ["stopped", "connected"]
    assert [gap and gap.reason for gap in told] == [None, "stopped"]


def test_drain_on_the_event_loop_that_a_worker_decodes_for(memory: MemoryServer) -> None:
    """Guarantee 11: stop() waits for no callback that its own event loop is about to run."""
    stall = Stall()

    def decode(text: str) -> str:
        stall()
        return text

    n = memory.Notifier(decode=decode)

    async def callback(*_: Any) -> None: ...

    async def main() -> float:
        n.subscribe("x", "a", callback)
        memory.notify("a", 1)
        assert stall.here.wait(SECONDS)
        began = monotonic()
        n.stop(SECONDS, drain=True)
        return monotonic() - began

    seconds = asyncio.run(main())
    stall.end()
    assert seconds < SECONDS / 2
