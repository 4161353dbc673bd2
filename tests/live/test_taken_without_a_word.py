"""Guarantees 6 and 9: neither a `latest` notification nor an event takes another channel's place without a gap."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from conftest import until
from oracle import Heard, Witness, exact, send
from pgnotifier import Gap, Notifier

Conn = psycopg.Connection[Any]


def announced(items: list[Any], events: list[Any], id: Any, channel: str, dropped: int) -> None:
    """Gaps, and the events of overflow, count what was dropped."""
    gaps = [item for item in items if isinstance(item, Gap)]
    assert {gap.reason for gap in gaps} == {"overflow"}
    assert {gap.channel for gap in gaps} == {channel}
    assert sum(gap.dropped or 0 for gap in gaps) == dropped
    told = [
        e
        for e in events
        if isinstance(e, dict) and e["event"] == "overflow" and (e["id"], e["channel"]) == (id, channel)
    ]
    assert sum(e["dropped"] for e in told) == dropped


def test_latest(server: str, sender: Conn, channel: str) -> None:
    """The mailbox is full of one channel's when many others' latest come: what is dropped is told, or nothing is."""
    gate, events = threading.Semaphore(0), []
    heard = Heard(gate)
    latest: dict[str, list[int]] = {}
    names = [f"{channel}_{i}" for i in range(5)]
    with Notifier(server, workers=3, max_pending=10) as n:
        witness = Witness(n, sender)
        n.subscribe("watch", n.SYSCHAN, lambda *a: events.append(a[2]))
        n.subscribe(1, channel, heard.fn, on_listen=heard.told)
        for name in names:
            n.subscribe(1, name, lambda id, c, p, pid: latest.setdefault(c, []).append(p), deliver="latest")
        send(sender, channel, 1)
        until(lambda: heard.stuck)
        send(sender, channel, 2, 11)
        witness.look()
        assert n.status()["pending"] == 10
        for name in names:
            send(sender, name, 1, 3)
            send(sender, name, 4)
        witness.look(20)
        dropped = n.status()["dropped"]
        gate.release(1000)
        until(lambda: heard.entered == 11 and len(latest) == 5)
        until(lambda: all(values[-1] == 4 for values in latest.values()))
        assert exact(heard, 1, 11) == dropped
        if dropped:
            until(lambda: any(e["event"] == "overflow" for e in events))
            announced(heard.items, events, 1, channel, dropped)


def test_latest_is_as_patient(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 9: while the budget lasts the listener waits for room, for a `latest` notification too."""
    gate = threading.Semaphore(0)
    heard = Heard(gate)
    with Notifier(server, workers=3, max_pending=10) as n:
        witness = Witness(n, sender)
        n.subscribe(1, channel, heard.fn, on_listen=heard.told)
        n.subscribe(1, f"{channel}_l", lambda *a: None, deliver="latest")
        send(sender, channel, 1)
        until(lambda: heard.stuck)
        send(sender, channel, 2, 11)
        witness.look()
        send(sender, f"{channel}_l", 1)
        timer = threading.Timer(0.3, gate.release, (1000,))
        timer.start()
        until(lambda: heard.entered == 11)
        timer.join()
        assert exact(heard, 1, 11) == 0, heard.words()


@pytest.mark.parametrize(
    "where",
    [
        "SYSCHAN",
        "another channel",
    ],
)
def test_an_event(server: str, sender: Conn, channel: str, where: str) -> None:
    """A subscriber of SYSCHAN, full of notifications there or elsewhere, meets events: each one lost is told of."""
    gate, told, numbers, events = threading.Semaphore(0), [], [], []
    with Notifier(server, workers=4, max_pending=10) as n:
        name = n.SYSCHAN if where == "SYSCHAN" else channel
        witness = Witness(n, sender)

        def fn(id: Any, channel: str, payload: Any, pid: int) -> None:
            if pid:
                numbers.append(payload)
            told.append(payload if pid else "event")
            if pid:
                gate.acquire(timeout=30)

        def fail(*args: Any) -> None:
            raise RuntimeError("on purpose")

        n.subscribe("watch", n.SYSCHAN, lambda *a: events.append(a[2]))
        n.subscribe(1, n.SYSCHAN, fn, on_listen=lambda id, c, gap: told.append(gap))
        if name != n.SYSCHAN:
            n.subscribe(1, name, fn, on_listen=lambda id, c, gap: told.append(gap))
        n.subscribe("fails", f"{channel}_f", fail)
        send(sender, name, 1)
        until(lambda: numbers == [1])
        send(sender, name, 2, 11)
        witness.look()
        until(lambda: n.status()["pending"] == 10)
        send(sender, f"{channel}_f", 1, 3)  # three events
        until(lambda: n.status()["failed"] == 3)
        witness.look(20)
        gate.release(1000)
        until(lambda: numbers[-1] == 11)
        lost = 11 - len(numbers)
        gaps = [item for item in told if isinstance(item, Gap) and item.channel == name]
        missing = [number for number in range(1, 12) if number not in numbers]
        assert sum(gap.dropped or 0 for gap in gaps) >= lost, f"{missing} are missing: {told}"
        # The gap stands where the hole is: between the last one before, and the first one behind.
        for number in missing:
            place = [type(item) is int and item > number for item in told].index(True)
            before = max(i for i, item in enumerate(told[:place]) if type(item) is int)
            assert any(isinstance(item, Gap) for item in told[before:place]), f"{number} is missing: {told}"
        if lost and where == "another channel":
            until(lambda: any(e["event"] == "overflow" for e in events if isinstance(e, dict)), 3)
            announced(gaps, events, 1, name, lost)
