"""Guarantee 16: what holds of callbacks under faults holds of streams. The checker is fed by a stream's readers."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import pgnotifier
from conftest import until
from pgnotifier import Listening, Notifier

from .conftest import until_lost, until_reconnected
from .servers import Server
from .traffic import Stream, Traffic, assert_whole

FAST: dict[str, Any] = {"heartbeat": 0.5, "retry_delay": (0.01, 0.2)}


class Followed:
    """What a stream gives, as the checker takes it: a record for each channel. `pace` seconds pass between reads."""

    def __init__(self, stream: pgnotifier.Stream, pace: Callable[[], float] = lambda: 0.0) -> None:
        self.stream, self._pace = stream, pace
        self.records = {name: Stream(name) for name in stream.channels}
        self.problems: list[str] = []
        self.last_was_listening = False
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        while True:
            for event in self.stream:
                self._take(event)
                if pause := self._pace():
                    time.sleep(pause)
            if self.stream.closed:
                return
            time.sleep(0.001)

    def _take(self, event: Any) -> None:
        if isinstance(event, Listening):
            gapless = [name for name in event.channels if name not in {gap.channel for gap in event.gaps}]
            for name in gapless:
                self.records[name].told(None, name, None)
            for gap in event.gaps:
                self.records[gap.channel].told(None, gap.channel, gap)
            if {gap.channel for gap in event.gaps} - {*event.channels}:
                self.problems.append(f"a gap of another channel: {event}")
        else:
            self.records[event.channel].heard(None, event.channel, event.payload, event.pid)

    def judged(self, traffic: Traffic) -> list[Any]:
        assert self.problems == []
        return assert_whole(traffic, *self.records.values())


@pytest.fixture
def channels(channel: str) -> list[str]:
    return [f"{channel}_{i}" for i in range(3)]


@pytest.fixture
def traffic(db: Server, channels: list[str]) -> Iterator[Traffic]:
    """Each number on all three channels, in one transaction."""
    with Traffic(db.dsn, channels) as traffic:
        yield traffic


def test_15_kills_under_traffic(db: Server, traffic: Traffic, channels: list[str], rng: random.Random) -> None:
    """Every hole under a Listening with gaps, before what comes after: of all channels, and of a second stream."""
    with Notifier(db.dsn, **FAST) as n:
        one, two = Followed(n.listen(*channels)), Followed(n.listen(channels[1]))
        until(lambda: one.records[channels[0]].last)
        for _ in range(15):
            time.sleep(rng.uniform(0.05, 0.2))
            pid = n.status()["pid"]
            assert db.terminate(pid)
            until_reconnected(n, pid)
        verdicts = one.judged(traffic) + two.judged(traffic)
        assert n.status()["reconnects"] == 15
        gaps = one.records[channels[0]].gaps()
        assert {gap.reason for gap in gaps} == {"connection"}
        assert 1 <= len(gaps) <= 15
        assert all("terminating connection" in str(gap.error) for gap in gaps)
        print([(v.delivered, v.covered, v.lost) for v in verdicts])


def test_the_server_is_killed_and_restarted(
    db: Server, traffic: Traffic, channels: list[str], rng: random.Random
) -> None:
    with Notifier(db.dsn, **FAST) as n:
        followed = Followed(n.listen(*channels))
        for number in range(4):
            time.sleep(rng.uniform(0, 0.2))
            pid = n.status()["pid"]
            db.kill() if number % 2 else db.stop("immediate")
            until_lost(n, pid)
            db.start()
            until_reconnected(n, pid)
        followed.judged(traffic)
        assert n.status()["reconnects"] == 4


def test_frozen(db: Server, traffic: Traffic, channels: list[str]) -> None:
    """Guarantee 10: noticed within 2 x heartbeat; a stream that is closed meanwhile does not wait for it."""
    with Notifier(db.dsn, **FAST) as n:
        followed = Followed(n.listen(*channels))
        for _ in range(3):
            other = n.listen("other")
            last = followed.records[channels[0]].last
            until(lambda last=last: followed.records[channels[0]].last > last)
            pid = n.status()["pid"]
            db.freeze(pid)
            since = time.monotonic()
            other.close()
            assert time.monotonic() - since < 0.05
            until_lost(n, pid)
            assert time.monotonic() - since < 1.4
            until_reconnected(n, pid)
            db.thaw(pid)
        followed.judged(traffic)
        assert n.status()["reconnects"] == 3
        assert n.active_channels() == channels


@pytest.mark.parametrize("what", ["kills", "mutes and stops"])
def test_everything_at_once(db: Server, traffic: Traffic, channels: list[str], rng: random.Random, what: str) -> None:
    """With overflow, of a stream that is read slowly and of one that is not."""
    limit = 64
    with Notifier(db.dsn, max_pending=limit, **FAST) as n:
        for name in channels:  # so that a mute of both does not change what is listened to
            n.subscribe("other", name, lambda *a: None)
        slow = Followed(n.listen(*channels, id="slow"), lambda: rng.choice([0, 0.02, 0.05]))
        quick = Followed(n.listen(*channels, id="quick"))
        most, end = 0, time.monotonic() + 4
        while time.monotonic() < end:
            time.sleep(rng.uniform(0, 0.15))
            most = max(most, n.status()["pending"])
            if what == "kills":
                pid = n.status()["pid"]
                if pid and rng.random() < 0.3:
                    db.terminate(pid)
            elif rng.random() < 0.1:
                n.stop()
                n.start()
            else:
                n.mute_subscriber(rng.choice(["slow", "quick"]), rng.sample(channels, rng.randint(1, 3)))
                time.sleep(rng.uniform(0, 0.05))
                n.unmute_subscriber("slow"), n.unmute_subscriber("quick")
        until(lambda: n.status()["connected"])
        slow._pace = lambda: 0.0
        traffic.pause = 0.01
        verdicts = slow.judged(traffic) + quick.judged(traffic)
        reasons = {gap.reason for record in slow.records.values() for gap in record.gaps()}
        print(most, n.status()["dropped"], reasons, [(v.delivered, v.covered, v.lost) for v in verdicts])
        assert most <= 3 * limit
        assert n.status()["dropped"]
        assert all(verdict.delivered for verdict in verdicts)
        assert ({"connection"} if what == "kills" else {"muted", "stopped"}) <= reasons
        assert n.status()["pending"] == 0
