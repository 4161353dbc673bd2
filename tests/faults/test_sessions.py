"""The session or the server goes: terminated, restarted, killed, frozen (guarantee 10)."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from conftest import until
from pgnotifier import Notifier

from .conftest import until_lost, until_reconnected
from .servers import Server
from .traffic import Stream, Traffic, assert_whole

FAST: dict[str, Any] = {"heartbeat": 1.0, "retry_delay": (0.01, 0.2)}
SLACK = 0.4  # seconds that a busy machine may take on top


def test_terminated_100_times(db: Server, traffic: Traffic, stream: Stream, rng: random.Random) -> None:
    """Guarantee 10: each loss is followed by a reconnection, and each hole has its Gap."""
    with Notifier(db.dsn, **FAST) as n:
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)
        for _ in range(100):
            time.sleep(rng.uniform(0, 0.02))
            pid = n.status()["pid"]
            assert db.terminate(pid)
            until_reconnected(n, pid)
        assert_whole(traffic, stream)
        assert n.status()["reconnects"] == 100
        assert {gap.reason for gap in stream.gaps()} == {"connection"}
        assert len(stream.gaps()) <= 100


def test_terminated_again_at_once(db: Server, traffic: Traffic, stream: Stream) -> None:
    """Guarantee 10: a session that fails again as soon as it is there neither ends the listener nor makes it spin."""
    with Notifier(db.dsn, **FAST) as n:
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)
        until(lambda: stream.last)
        query = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'pgnotifier'"
        before, ends = n.status()["reconnects"], time.monotonic() + 2
        while time.monotonic() < ends:
            db.execute(query)
        assert n.is_running()
        assert n.status()["reconnects"] - before <= 2 / 0.01
        assert_whole(traffic, stream)


def test_server_restarted(db: Server, traffic: Traffic, stream: Stream, rng: random.Random) -> None:
    """Guarantee 10: for ever, also while the server is away for longer."""
    with Notifier(db.dsn, **FAST) as n:
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)
        for number in range(6):
            pid = n.status()["pid"]
            db.stop(rng.choice(["fast", "immediate"]))
            until(lambda: not n.status()["connected"])
            assert n.is_running()
            if number % 2:
                time.sleep(rng.uniform(0, 0.5))  # it is away
            db.start()
            until_reconnected(n, pid)
        assert_whole(traffic, stream)
        assert n.status()["reconnects"] == 6
        assert all(gap.error for gap in stream.gaps())


def test_server_killed(db: Server, traffic: Traffic, stream: Stream, rng: random.Random) -> None:
    """Guarantee 10: SIGKILL to all of its processes, then crash recovery."""
    with Notifier(db.dsn, **FAST) as n:
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)
        for _ in range(6):
            time.sleep(rng.uniform(0, 0.1))
            pid = n.status()["pid"]
            db.kill()
            db.start()
            until_reconnected(n, pid)
        assert_whole(traffic, stream)
        assert n.status()["reconnects"] == 6


def test_frozen(db: Server, traffic: Traffic, stream: Stream) -> None:
    """Guarantee 10: noticed within 2 x heartbeat, and the thaw of the old process harms nothing."""
    heartbeat = 0.5
    with Notifier(db.dsn, heartbeat=heartbeat, retry_delay=(0.01, 0.2)) as n:
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)
        for _ in range(3):
            until(lambda: stream.last)
            pid = n.status()["pid"]
            db.freeze(pid)
            since = time.monotonic()
            until_lost(n, pid)
            assert time.monotonic() - since < 2 * heartbeat + SLACK
            until_reconnected(n, pid)
            stream.last = 0
            until(lambda: stream.last)  # on the new session, while the old one is still frozen
            db.thaw(pid)
        assert_whole(traffic, stream)
        assert n.status()["reconnects"] == 3


@pytest.mark.parametrize("busy", [True, False])
def test_frozen_for_less_than_the_deadline(db: Server, traffic: Traffic, stream: Stream, busy: bool) -> None:
    """Guarantee 10: a session that answers in time is kept, with everything that waited in it."""
    with Notifier(db.dsn, **FAST) as n:
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)
        until(lambda: stream.last)
        if not busy:
            traffic.hold()
        for _ in range(2):
            pid = n.status()["pid"]
            db.freeze(pid)
            time.sleep(0.6)  # below the heartbeat's deadline of 1.0
            db.thaw(pid)
            time.sleep(0.6)  # until a heartbeat has come and gone
        assert_whole(traffic, stream)
        assert n.status()["reconnects"] == 0
        assert stream.gaps() == []
