"""Guarantees 4, 8, 9 and 11 for one notification with many subscribers, which are handed it all at once."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter, defaultdict
from typing import Any

import psycopg
import pytest

from conftest import until
from pgnotifier import Gap, Notifier

Conn = psycopg.Connection[Any]
SUBSCRIBERS = 50


def notify(conn: Conn, channel: str, payload: object) -> None:
    conn.execute("select pg_notify(%s, %s)", (channel, str(payload)))


def subscribe_all(n: Notifier, channel: str, fn: Any, **options: Any) -> None:
    for id in range(SUBSCRIBERS):
        n.subscribe(id, channel, fn, autorun=False, **options)
    n.start()


class Gate:
    """Holds up those for whom `holds` is true."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, Any]] = []
        self.open = threading.Event()
        self.inside = threading.Event()
        self.holds: Any = lambda id, payload: False

    def __call__(self, id: int, channel: str, payload: Any, pid: int) -> None:
        self.heard.append((id, payload))
        if self.holds(id, payload):
            self.inside.set()
            assert self.open.wait(30)

    def of(self, payload: Any) -> set[int]:
        return {id for id, p in self.heard if p == payload}


@pytest.mark.parametrize("workers", [1, 4])
def test_order_and_completeness(server: str, sender: Conn, channel: str, workers: int) -> None:
    """Guarantee 4: each id hears everything once, in order across its channels, single ones and bursts mixed."""
    rng = random.Random(20261123)
    seen: dict[Any, list[int]] = defaultdict(list)
    running: Counter[Any] = Counter()
    other = f"{channel}_b"

    def fn(id: Any, name: str, payload: int, pid: int) -> None:
        running[id] += 1
        assert running[id] == 1
        seen[id].append(payload)
        running[id] -= 1

    sent = 0
    with Notifier(server, workers=workers) as n:
        subscribe_all(n, channel, fn)
        for id in range(0, SUBSCRIBERS, 2):
            n.subscribe(id, other, fn)
        both: list[int] = []
        for _ in range(300):
            name, size = rng.choice((channel, other)), rng.choice((1, 1, 1, 7))
            numbers = f"generate_series({sent}, {sent + size - 1}) i"
            sender.execute(f"select pg_notify('{name}', i::text) from {numbers}".encode())
            if name == channel:
                both += range(sent, sent + size)
            sent += size
        until(lambda: all(len(seen[id]) == (sent if id % 2 == 0 else len(both)) for id in range(SUBSCRIBERS)))
        assert n.status()["failed"] == 0
        until(lambda: n.status()["pending"] == 0)
    for id in range(SUBSCRIBERS):
        assert seen[id] == (list(range(sent)) if id % 2 == 0 else both)


def test_a_stuck_callback_holds_up_no_other_while_a_worker_is_free(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 9."""
    gate = Gate()
    gate.holds = lambda id, payload: id == 7 and payload == 0
    with Notifier(server, workers=2) as n:
        subscribe_all(n, channel, gate)
        for payload in range(10):
            notify(sender, channel, payload)
        until(lambda: all(len(gate.of(p)) >= SUBSCRIBERS - 1 for p in range(10)))
        assert gate.of(0) == set(range(SUBSCRIBERS))
        assert gate.of(9) == set(range(SUBSCRIBERS)) - {7}
        assert n.status()["pending"] == 9
        gate.open.set()
        until(lambda: [p for id, p in gate.heard if id == 7] == list(range(10)))


@pytest.mark.parametrize("how", ["unsubscribe", "mute_subscriber", "mute_channels", "remove_channels"])
def test_who_is_called_is_decided_just_before_the_call(server: str, sender: Conn, channel: str, how: str) -> None:
    """Guarantee 4: after a change has returned, no call begins that it rules out, though all was handed over."""
    gate = Gate()
    gate.holds = lambda id, payload: not gate.inside.is_set()
    with Notifier(server) as n:
        subscribe_all(n, channel, gate)
        notify(sender, channel, "x")
        until(gate.inside.is_set)
        first = next(iter(gate.of("x")))
        out = set(range(0, SUBSCRIBERS, 3)) - {first}
        for id in out:
            if how == "unsubscribe":
                n.unsubscribe(id, channel)
            elif how == "mute_subscriber":
                n.mute_subscriber(id, channel)
        if how in ("mute_channels", "remove_channels"):
            out = set(range(SUBSCRIBERS)) - {first}
            getattr(n, how)(channel)
        gate.open.set()
        until(lambda: n.status()["pending"] == 0)
        assert gate.of("x") == set(range(SUBSCRIBERS)) - out


def test_subscribed_anew_hears_nothing_from_before(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 4: what waits for an id that was unsubscribed is not for its next subscription."""
    gate = Gate()
    gate.holds = lambda id, payload: not gate.inside.is_set()
    anew: list[tuple[int, Any]] = []
    with Notifier(server) as n:
        subscribe_all(n, channel, gate)
        notify(sender, channel, "old")
        until(gate.inside.is_set)
        first = next(iter(gate.of("old")))
        last = (first + 1) % SUBSCRIBERS
        n.unsubscribe(last, channel)
        n.subscribe(last, channel, lambda id, name, payload, pid: anew.append((id, payload)))
        gate.open.set()
        notify(sender, channel, "new")
        until(lambda: anew)
        until(lambda: n.status()["pending"] == 0)
        assert anew == [(last, "new")]
        assert gate.of("old") == set(range(SUBSCRIBERS)) - {last}


def test_stopped_in_between(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 11: what waits is dropped, and does not come after the next start."""
    gate = Gate()
    gate.holds = lambda id, payload: not gate.inside.is_set()
    with Notifier(server) as n:
        gaps: list[Gap | None] = []
        subscribe_all(n, channel, gate, on_listen=lambda id, name, gap: gaps.append(gap))
        until(lambda: len(gaps) == SUBSCRIBERS)
        moment = time.time()
        notify(sender, channel, "old")
        until(gate.inside.is_set)
        n.stop(timeout=0.1)
        n.start()
        gate.open.set()
        notify(sender, channel, "new")
        until(lambda: len(gate.of("new")) == SUBSCRIBERS)
        assert len(gate.of("old")) == 1
        told = [gap for gap in gaps if gap is not None]
        assert len(told) == SUBSCRIBERS
        assert {gap.reason for gap in told} == {"stopped"}
        assert max(gap.since.timestamp() for gap in told) < moment  # before what was thrown away


def test_stop_with_drain_delivers_all(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 11."""
    gate = Gate()
    gate.holds = lambda id, payload: not gate.inside.is_set()
    with Notifier(server) as n:
        subscribe_all(n, channel, gate)
        notify(sender, channel, "x")
        until(gate.inside.is_set)
        threading.Timer(0.2, gate.open.set).start()
        n.stop(drain=True)
        assert gate.of("x") == set(range(SUBSCRIBERS))


def test_failures_are_each_subscribers_own(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 8: exceptions are counted and reported, the others are called."""
    heard: set[int] = set()

    def fn(id: int, name: str, payload: Any, pid: int) -> None:
        if id % 2:
            raise ValueError(id)
        heard.add(id)

    events: list[dict[str, Any]] = []
    with Notifier(server) as n:
        n.subscribe("events", n.SYSCHAN, lambda id, name, event, pid: events.append(event))
        subscribe_all(n, channel, fn)
        notify(sender, channel, "x")
        until(lambda: sum(e["event"] == "callback_failed" for e in events) == SUBSCRIBERS // 2)
        assert heard == set(range(0, SUBSCRIBERS, 2))
        assert n.status()["failed"] == SUBSCRIBERS // 2


def test_what_cannot_be_decoded_is_reported_once(server: str, sender: Conn, channel: str) -> None:
    """Guarantees 4 and 7: decoded once, however many subscribers it has."""
    decoded: list[str] = []

    def decode(text: str) -> str:
        decoded.append(text)
        if text == "bad":
            raise ValueError(text)
        return text

    gate = Gate()
    with Notifier(server, decode=decode) as n:
        subscribe_all(n, channel, gate)
        notify(sender, channel, "bad")
        notify(sender, channel, "good")
        until(lambda: len(gate.of("good")) == SUBSCRIBERS)
        assert decoded == ["bad", "good"]
        assert not gate.of("bad")
        assert n.status()["failed"] == 1


def test_a_subscriber_that_becomes_a_coroutine_function(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 8: the callback is the one of the moment just before the call."""
    gate = Gate()
    gate.holds = lambda id, payload: not gate.inside.is_set()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    awaited: list[tuple[int, Any]] = []

    async def later(id: int, name: str, payload: Any, pid: int) -> None:
        awaited.append((id, payload))

    try:
        with Notifier(server) as n:
            subscribe_all(n, channel, gate)
            notify(sender, channel, "x")
            until(gate.inside.is_set)
            last = (next(iter(gate.of("x"))) + 1) % SUBSCRIBERS
            n.subscribe(last, channel, later, loop=loop)
            notify(sender, channel, "y")
            gate.open.set()
            until(lambda: len(awaited) == 2)
            until(lambda: n.status()["pending"] == 0)
            assert awaited == [(last, "x"), (last, "y")]
            assert gate.of("x") == gate.of("y") == set(range(SUBSCRIBERS)) - {last}
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def test_mailboxes_of_one_place(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 9: nothing is dropped while the callbacks keep up, and no more waits than the limit."""
    gate = Gate()
    most = 0
    with Notifier(server, max_pending=1) as n:
        subscribe_all(n, channel, gate)
        for payload in range(200):
            notify(sender, channel, payload)
            most = max(most, n.status()["pending"])
        until(lambda: len(gate.of(199)) == SUBSCRIBERS)
        assert all(len(gate.of(p)) == SUBSCRIBERS for p in range(200))
        assert n.status()["dropped"] == 0
        assert most <= SUBSCRIBERS
