"""Guarantees 5 and 10: subscriptions that change all the while, as the session is lost, stopped, started or slow."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from typing import Any

import psycopg
import pytest

from conftest import until
from pgnotifier import Gap, Notifier

from .conftest import until_reconnected
from .proxy import Proxy
from .servers import Server
from .test_meanwhile import meanwhile


def kill(db: Server, pid: int | None) -> None:
    db.execute(f"select pg_terminate_backend({pid})")


def changes(n: Notifier, channel: str, pause: float) -> Any:
    """One new channel after another, twenty in all, and away again."""
    count = 0

    def change() -> None:
        nonlocal count
        count += 1
        name = f"{channel}_{count % 20}"
        if count % 40 < 20:
            n.subscribe("t", name, print)
        else:
            n.unsubscribe("t", name)
        if pause:
            time.sleep(pause)

    return change


@pytest.mark.parametrize(
    "network",
    [
        "far",
        "near",
    ],
)
def test_connected_again_within_a_second(db: Server, proxy: Proxy, channel: str, network: str) -> None:
    """20 ms away with a change every 10 ms; on loopback with one thread that changes without a pause. Three times."""
    pause, dsn = (0.01, proxy.dsn) if network == "far" else (0.0, db.dsn)
    heard: list[Any] = []
    with Notifier(dsn, retry_delay=(0.01, 0.1)) as n:
        n.subscribe("s", channel, lambda *a: heard.append(a[2]))
        if network == "far":
            proxy.slow(delay=0.02)
        with meanwhile(changes(n, channel, pause)):
            for number in range(3):
                time.sleep(0.2)
                pid = n.status()["pid"]
                since = time.monotonic()
                kill(db, pid)
                until(lambda: n.status()["reconnects"] == number + 1 and n.status()["connected"], 5)  # noqa: B023
                assert time.monotonic() - since < 1.0 + (0.6 if network == "far" else 0.0)  # round trips to connect
                db.execute(f"select pg_notify('{channel}', '{number}')")
                until(lambda: heard[-1:] == [number])  # noqa: B023
        proxy.heal()
        until(lambda: n.active_channels() == sorted(c for c, e in n.channels().items() if e["subscribers"]))


@pytest.mark.parametrize(
    "network",
    [
        "far",
        "near",
    ],
)
def test_started_within_a_second(db: Server, proxy: Proxy, channel: str, network: str) -> None:
    """As above, for start()."""
    pause, dsn = (0.01, proxy.dsn) if network == "far" else (0.0, db.dsn)
    with Notifier(dsn) as n:
        n.stop()
        if network == "far":
            proxy.slow(delay=0.02)
        with meanwhile(changes(n, channel, pause)):
            for _ in range(3):
                starting = threading.Thread(target=n.start)
                starting.start()
                starting.join(2.0)
                late = starting.is_alive()
                n.stop(1)
                starting.join(10)
                assert not late
        proxy.heal()


def test_no_call_before_the_first_on_listen(db: Server, channel: str) -> None:
    """Guarantee 10: subscriptions on a busy channel, while another thread stops with drain, and starts."""
    early: list[str] = []
    subscribed = 0

    def subscribe() -> None:
        nonlocal subscribed
        subscribed += 1
        told: list[Gap | None] = []

        def fn(*args: Any) -> None:
            if told[:1] != [None]:
                early.append(f"{args} after {told}")

        if subscribed > 100:
            n.unsubscribe(subscribed - 100, channel)
        n.subscribe(subscribed, channel, fn, on_listen=lambda id, channel, gap: told.append(gap))

    def stop_and_start() -> None:
        n.stop(1, drain=True)
        n.start()

    def notify() -> None:
        sender.execute(
            "select pg_notify(%s, i::text) from generate_series(1, 50) i",  # several wait at every moment
            (channel,),
        )

    with psycopg.connect(db.dsn, autocommit=True) as sender, Notifier(db.dsn, workers=2) as n:
        n.subscribe("always", channel, lambda *a: None)
        with meanwhile(subscribe, stop_and_start, notify):
            time.sleep(6)
    assert subscribed > 200
    assert not early, (len(early), subscribed, early[:3])


def test_killed_at_any_moment_of_a_change(db: Server, channel: str) -> None:
    """Guarantee 10: subscribe, unsubscribe and start return, or start raises; and it listens again to all."""
    rng = random.Random(14)
    heard: list[int] = []
    told: list[Gap | None] = []
    with Notifier(db.dsn, retry_delay=(0.001, 0.01)) as n:
        n.subscribe("s", channel, lambda *a: heard.append(a[2]), on_listen=lambda *a: told.append(a[2]))
        for number in range(150):
            killer = threading.Timer(rng.uniform(0, 0.004), kill, (db, n.status()["pid"] or 0))
            pid = n.status()["pid"]
            killer.start()
            for i in range(3):
                n.subscribe("t", f"{channel}_{i}", print)
                n.unsubscribe("t", f"{channel}_{i}")
            if number % 10 == 0:
                n.stop()
                with contextlib.suppress(psycopg.OperationalError):
                    n.start()
                if not n.is_running():
                    n.start()
            killer.join()
            until(lambda: n.status()["connected"])
            if number % 10:
                until_reconnected(n, pid)
            db.execute(f"select pg_notify('{channel}', '{number}')")
            until(lambda: number in heard or len(told) > 1, 5)  # noqa: B023
        until(lambda: n.status()["connected"])
        db.execute(f"select pg_notify('{channel}', '1000')")
        until(lambda: heard[-1:] == [1000])
        assert told[0] is None
        assert {gap.reason for gap in told[1:] if gap} == {"connection", "stopped"}
        assert heard == sorted(heard)
