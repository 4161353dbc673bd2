"""The network goes, at random moments, or only looks as if it did (guarantee 10)."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from conftest import until
from pgnotifier import Notifier

from .conftest import until_lost, until_reconnected
from .proxy import Proxy
from .servers import Server
from .traffic import Stream, Traffic, assert_whole

FAST: dict[str, Any] = {"heartbeat": 0.5, "retry_delay": (0.01, 0.2)}
SLACK = 0.4  # seconds that a busy machine may take on top


def deaf_to_server(proxy: Proxy) -> None:
    proxy.deafen(to_client=False)


def deaf_to_client(proxy: Proxy) -> None:
    proxy.deafen(to_server=False)


def refused(proxy: Proxy) -> None:
    proxy.refuse()
    proxy.reset()


def reset_and_reset(proxy: Proxy) -> None:
    proxy.accept("reset")
    proxy.reset()


def never_answered(proxy: Proxy) -> None:
    proxy.accept("silent")
    proxy.reset()


LOUD: list[Callable[[Proxy], None]] = [Proxy.reset, refused, reset_and_reset, never_answered]
SILENT: list[Callable[[Proxy], None]] = [Proxy.deafen, deaf_to_server, deaf_to_client]


@pytest.mark.parametrize("fault", LOUD)
def test_broken(
    fault: Callable[[Proxy], None], proxy: Proxy, traffic: Traffic, stream: Stream, rng: random.Random
) -> None:
    """Guarantee 10: any error is a loss; it reconnects as soon as the network lets it."""
    with Notifier(proxy.dsn, **FAST) as n:
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)
        for _ in range(12):
            time.sleep(rng.uniform(0, 0.03))
            pid = n.status()["pid"]
            fault(proxy)
            until_lost(n, pid)
            time.sleep(rng.uniform(0, 0.1))
            assert n.is_running()
            proxy.heal()
            proxy.reset()  # whoever still waits for an answer from before
            until_reconnected(n, pid)
        assert_whole(traffic, stream)


@pytest.mark.parametrize("fault", SILENT)
def test_silent(
    fault: Callable[[Proxy], None], proxy: Proxy, traffic: Traffic, stream: Stream, rng: random.Random
) -> None:
    """Guarantee 10: a network that swallows everything is noticed within 2 x heartbeat."""
    with Notifier(proxy.dsn, **FAST) as n:
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)
        for _ in range(3):
            time.sleep(rng.uniform(0, 0.1))
            pid = n.status()["pid"]
            if fault is deaf_to_server:
                traffic.hold()  # as long as notifications come through nothing is amiss
            fault(proxy)
            since = time.monotonic()
            until_lost(n, pid)
            assert time.monotonic() - since < 2 * FAST["heartbeat"] + SLACK
            proxy.heal()
            proxy.reset()
            traffic.resume()
            until_reconnected(n, pid)
        assert_whole(traffic, stream)
        assert all(gap.error for gap in stream.gaps())


@pytest.mark.parametrize("fault", LOUD + SILENT)
def test_during_the_start(
    fault: Callable[[Proxy], None], proxy: Proxy, traffic: Traffic, stream: Stream, rng: random.Random
) -> None:
    """Guarantee 10: a fault while the connection is being made, at any step of it."""
    with Notifier(proxy.dsn, **FAST) as n:
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)
        for _ in range(8):
            accepted = proxy.accepted
            proxy.reset()
            until(lambda accepted=accepted: proxy.accepted > accepted)
            time.sleep(rng.uniform(0, 0.008))  # a connection takes about as long
            fault(proxy)
            time.sleep(rng.uniform(0, 0.1))
            proxy.heal()
            if fault not in SILENT:
                proxy.reset()
        assert_whole(traffic, stream)
        assert n.is_running()


def test_one_byte_at_a_time(proxy: Proxy, traffic: Traffic, stream: Stream) -> None:
    """Guarantee 10: a connection with traffic is never dropped, however slow it is."""
    traffic.pause = 0.05  # less than what comes through
    with Notifier(proxy.dsn, **FAST) as n:
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)
        proxy.slow(trickle=0.0004)
        time.sleep(6 * FAST["heartbeat"])
        assert_whole(traffic, stream)
        assert n.status()["reconnects"] == 0
        assert stream.gaps() == []


def test_the_answer_waits_behind_traffic(proxy: Proxy, traffic: Traffic, stream: Stream) -> None:
    """Guarantee 10: no heartbeat's answer gets through, but notifications do: that is a connection with traffic."""
    with Notifier(proxy.dsn, **FAST) as n:
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)
        deaf_to_server(proxy)
        time.sleep(4 * FAST["heartbeat"])
        assert n.status()["reconnects"] == 0
        proxy.heal()
        assert_whole(traffic, stream)
        assert stream.gaps() == []


@pytest.mark.parametrize("busy", [True, False])
def test_delays_below_the_deadline(proxy: Proxy, traffic: Traffic, stream: Stream, busy: bool) -> None:
    """Guarantee 10: a slow network is not a lost one, with traffic and without."""
    with Notifier(proxy.dsn, **FAST) as n:
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)
        until(lambda: stream.last)
        if not busy:
            traffic.hold()
        proxy.slow(delay=0.1)  # 0.2 for an answer, of a deadline of 0.5
        time.sleep(4 * FAST["heartbeat"])
        assert_whole(traffic, stream)
        assert n.status()["reconnects"] == 0
        assert stream.gaps() == []


def test_lost_with_notifications_on_their_way(proxy: Proxy, traffic: Traffic, stream: Stream) -> None:
    """Guarantee 10: what was committed but still travelling when the connection broke is in the Gap's time too."""
    with Notifier(proxy.dsn, **FAST) as n:
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)
        for _ in range(8):
            until(lambda: stream.last)
            proxy.slow(delay=0.1)
            time.sleep(0.15)
            pid = n.status()["pid"]
            proxy.reset()
            proxy.heal()
            until_reconnected(n, pid)
            stream.last = 0
        assert_whole(traffic, stream)


def test_subscribe_on_a_deaf_network(proxy: Proxy, db: Server, stream: Stream) -> None:
    """Guarantee 10: returns after about `heartbeat`, and takes effect with the next connection."""
    heartbeat = 1.0
    with Notifier(proxy.dsn, heartbeat=heartbeat, retry_delay=(0.01, 0.2)) as n:
        proxy.deafen()
        since = time.monotonic()
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)
        assert time.monotonic() - since < heartbeat + SLACK
        assert stream.items == []  # nothing is in effect, so nothing is promised
        proxy.heal()
        proxy.reset()
        until(lambda: stream.items == [None])
        with Traffic(db.dsn, [stream.channel]) as traffic:
            assert_whole(traffic, stream)


@pytest.mark.parametrize("how", ["refused", "reset", "silent"])
def test_construction_fails_cleanly(proxy: Proxy, how: Any) -> None:
    """Guarantee 2: `psycopg.OperationalError`, and neither thread nor file descriptor is left."""
    if how == "refused":
        proxy.refuse()
    else:
        proxy.accept(how)

    def fds() -> int:
        return len(os.listdir("/proc/self/fd")) - len(proxy._mute)

    before = fds()
    for _ in range(2):
        with pytest.raises(psycopg.OperationalError):
            Notifier(f"{proxy.dsn} connect_timeout=2", **FAST)
        assert not [t for t in threading.enumerate() if t.name.startswith("pgnotifier-")]
    until(lambda: fds() == before)
