"""Calls from other threads, and forks, while sessions are being lost (guarantees 5, 10 and 11)."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg
import pytest

from conftest import until
from pgnotifier import Notifier

from .servers import Server
from .traffic import Stream, Traffic, assert_whole


@contextmanager
def meanwhile(*jobs: Callable[[], None]) -> Iterator[None]:
    """Each job again and again in a thread of its own until the block ends; what they raise is raised."""
    done = threading.Event()
    failed: list[BaseException] = []

    def repeat(job: Callable[[], None]) -> None:
        try:
            while not done.is_set():
                job()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=repeat, args=(job,), name=f"meanwhile-{job.__name__}") for job in jobs]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join(20)
    assert failed == []
    assert not any(thread.is_alive() for thread in threads), "a call hangs"


def killer(db: Server, n: Notifier, rng: random.Random) -> Callable[[], None]:
    """Ends the listener's session, wherever it stands at that moment."""

    def kill() -> None:
        time.sleep(rng.uniform(0, 0.05))
        db.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgnotifier'")

    return kill


def test_changes_of_channels(db: Server, traffic: Traffic, stream: Stream, rng: random.Random) -> None:
    """Guarantees 5 and 10: no change is forgotten and none disturbs another subscription, lost sessions or not."""
    with Notifier(db.dsn, heartbeat=1.0, retry_delay=(0.01, 0.1), workers=2) as n:
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)
        names = [f"{stream.channel}_{number}" for number in range(8)]
        seeds = iter([random.Random(rng.random()) for _ in range(3)])

        def change(own: random.Random) -> None:
            name = own.choice(names)
            n.subscribe("t", name, print)
            if own.random() < 0.5:
                n.unsubscribe("t", name)

        def mute() -> None:
            n.mute_channels(names)
            n.unmute_channels(names)

        one, two = next(seeds), next(seeds)
        n.add_channels(names)
        with meanwhile(lambda: change(one), lambda: change(two), mute, killer(db, n, next(seeds))):
            time.sleep(3)
        until(lambda: n.status()["connected"])
        wanted = sorted(channel for channel, entry in n.channels().items() if entry["subscribers"])
        until(lambda: n.active_channels() == wanted)
        assert_whole(traffic, stream)
        assert n.status()["reconnects"] > 3


def test_stop_and_start(db: Server, traffic: Traffic, stream: Stream, rng: random.Random) -> None:
    """Guarantee 11: stopped and started by two threads, under one Gap or another; no call hangs."""
    with Notifier(db.dsn, heartbeat=1.0, retry_delay=(0.01, 0.1)) as n:
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)

        def stop() -> None:
            time.sleep(0.02)
            n.stop()

        def start() -> None:
            time.sleep(0.01)
            with suppress(psycopg.OperationalError):  # killed while it began
                n.start()

        with meanwhile(stop, start, start, killer(db, n, rng)):
            time.sleep(3)
        n.start()
        assert_whole(traffic, stream)
        assert "stopped" in {gap.reason for gap in stream.gaps()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forks(db: Server, traffic: Traffic, stream: Stream, rng: random.Random) -> None:
    """Guarantee 11: a child forked in the midst of a reconnection is stopped, and the parent does not notice."""
    with Notifier(db.dsn, heartbeat=1.0, retry_delay=(0.01, 0.1)) as n:
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)

        def change() -> None:
            n.subscribe("t", f"{stream.channel}_", print)
            n.unsubscribe("t", f"{stream.channel}_")

        with meanwhile(killer(db, n, rng), change):
            for number in range(40):
                time.sleep(rng.uniform(0, 0.05))
                child = os.fork()
                if child == 0:
                    code = 1
                    try:
                        signal.alarm(10)
                        quiet = not n.is_running() and not n.status()["connected"]
                        n.stop()
                        code = 0 if quiet else 2
                    finally:
                        os._exit(code)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, number
        assert_whole(traffic, stream)
