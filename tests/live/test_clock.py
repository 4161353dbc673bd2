"""Guarantee 10: a gap's `since` is never after its `until`, nor after the oldest loss, also when the clock is set."""

from __future__ import annotations

import datetime as real
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from conftest import until
from pgnotifier import Gap, Notifier, clock

UTC = real.timezone.utc
HOUR = real.timedelta(hours=1)
MINUTE = real.timedelta(minutes=1)


class Clock:
    """The system's clock, which can be set."""

    def __init__(self) -> None:
        self.offset = real.timedelta()

    def now(self, zone: Any = None) -> real.datetime:
        return real.datetime.now(zone) + self.offset


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Clock:
    system = Clock()
    monkeypatch.setattr(clock, "_set_back", deque())  # the clock was never set for the tests that follow
    monkeypatch.setattr(clock, "_last", clock._last)
    monkeypatch.setattr(clock, "datetime", system)
    return system


@pytest.mark.parametrize("hours", [-1, 1, -24])
@pytest.mark.parametrize("moment", ["before the loss", "while it is lost"])
def test_a_clock_that_is_set(
    server: str, sender: psycopg.Connection[Any], channel: str, system: Clock, hours: int, moment: str
) -> None:
    gaps: list[Gap | None] = []
    reachable = threading.Event()
    reachable.set()

    def dbconf() -> str:
        if not reachable.is_set():
            raise psycopg.OperationalError("not now")
        return server

    with Notifier(dbconf, retry_delay=(0.001, 0.01), heartbeat=0.2) as n:
        n.subscribe("s", channel, print, on_listen=lambda *a: gaps.append(a[2]))
        until(lambda: gaps == [None])
        if moment == "before the loss":
            system.offset = hours * HOUR
        reachable.clear()
        lost = system.now(UTC)
        sender.execute("select pg_terminate_backend(%s)", (n.status()["pid"],))
        until(lambda: not n.status()["connected"])
        if moment == "while it is lost":
            system.offset = hours * HOUR
            lost += hours * HOUR  # as the clock shows it now
        reachable.set()
        until(lambda: len(gaps) == 2)
        back = system.now(UTC)
    gap = gaps[1]
    assert gap is not None
    assert gap.since <= lost <= gap.until <= back
    assert gap.until - gap.since < abs(hours) * HOUR + MINUTE


CHANGES: list[Callable[[Notifier], Any]] = [
    lambda n: (n.mute_channels(), n.unmute_channels()),
    lambda n: (n.stop(), n.start()),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_clock_that_is_set_back_before_a_change(
    server: str, channel: str, system: Clock, change: Callable[[Notifier], Any]
) -> None:
    gaps: list[Gap | None] = []
    with Notifier(server) as n:
        n.subscribe("s", channel, print, on_listen=lambda *a: gaps.append(a[2]))
        until(lambda: gaps == [None])
        system.offset = -HOUR
        begun = system.now(UTC)
        change(n)
        until(lambda: len(gaps) == 2)
    gap = gaps[1]
    assert gap is not None
    assert gap.since <= gap.until
    assert gap.since <= begun


def test_a_gap_that_would_end_before_it_begins() -> None:
    """Whoever makes one: it is as short as can be."""
    noon = real.datetime(2024, 1, 1, 12, tzinfo=UTC)
    gap = Gap("c", "connection", noon, noon - HOUR)
    assert (gap.since, gap.until) == (noon - HOUR, noon - HOUR)
    assert Gap("c", "connection", noon, noon + HOUR).since == noon


def test_the_clock_remembers_by_how_much_it_was_set_back(system: Clock) -> None:
    before = clock.now()
    system.offset = -HOUR
    between = clock.now()
    assert clock.earliest(before) <= before - HOUR + MINUTE
    assert clock.earliest(before) <= between
    system.offset = -3 * HOUR
    after = clock.now()
    assert clock.earliest(before) <= before - 3 * HOUR + MINUTE
    assert clock.earliest(between) <= after
    system.offset = 10 * HOUR
    later = clock.now()
    assert clock.earliest(later) == later
