"""Guarantees 9, 10 and 11: how long a change of channels takes while mailboxes are full, or the server is frozen."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from conftest import until
from pgnotifier import Notifier

from .proxy import Proxy
from .servers import Server


@contextlib.contextmanager
def flood(db: Server, channels: list[str]) -> Iterator[None]:
    """Bursts on all of them, as fast as one session can."""
    done = threading.Event()

    def run() -> None:
        with psycopg.connect(db.dsn, autocommit=True) as conn:
            while not done.is_set():
                for channel in channels:
                    conn.execute("select pg_notify(%s, i::text) from generate_series(1, 1000) i", (channel,))
                done.wait(0.02)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("how", ["slow", "stuck"])
def test_subscribe_beside_full_mailboxes(db: Server, channel: str, how: str) -> None:
    """Guarantee 9: with heartbeat=2, each of five changes returns within about two seconds, on the same session."""
    names = [f"{channel}_{i}" for i in range(4)]
    gate = threading.Event()
    late: list[float] = []

    def fn(*args: object) -> None:
        time.sleep(0.001) if how == "slow" else gate.wait(60)

    with Notifier(db.dsn, workers=5, max_pending=100, heartbeat=2.0) as n:
        for i, name in enumerate(names):
            n.subscribe(i, name, fn)
        try:
            with flood(db, names):
                time.sleep(1.5)
                for i in range(5):
                    change = threading.Thread(target=n.subscribe, args=("new", f"{channel}_new{i}", print))
                    since = time.monotonic()
                    change.start()
                    change.join(2.5)
                    late.append(time.monotonic() - since)
                    if change.is_alive():
                        break
        finally:
            gate.set()
            n.stop(1)
            change.join(10)
        assert max(late) < 2.5, late
        assert n.status()["reconnects"] == 0


@pytest.mark.parametrize("how", ["process", "network"])
@pytest.mark.parametrize("then", ["stop", "wait"])
def test_a_frozen_server_during_a_change(db: Server, proxy: Proxy, channel: str, how: str, then: str) -> None:
    """Guarantees 10 and 11: with heartbeat=2 subscribe() returns within two, and stop() in less than one second."""
    dsn = proxy.dsn if how == "network" else db.dsn
    with Notifier(dsn, heartbeat=2.0, retry_delay=(0.01, 0.1)) as n:
        heard: list[object] = []
        n.subscribe("s", channel, lambda *a: heard.append(a[2]))
        pid = n.status()["pid"]
        assert pid is not None
        if how == "network":
            proxy.deafen()
        else:
            os.kill(pid, signal.SIGSTOP)
        try:
            failed: list[BaseException] = []

            def subscribe() -> None:
                try:
                    n.subscribe("t", f"{channel}_t", lambda *a: heard.append(a[2]))
                except BaseException as error:
                    failed.append(error)

            change = threading.Thread(target=subscribe)
            since = time.monotonic()
            change.start()
            time.sleep(0.3)
            if then == "stop":
                before = time.monotonic()
                n.stop()
                assert time.monotonic() - before < 1.0
            change.join(10)
            assert not change.is_alive()
            assert time.monotonic() - since < 3.0
            assert not failed
        finally:
            if how == "network":
                proxy.heal()
            else:
                os.kill(pid, signal.SIGCONT)
        n.start()
        until(lambda: n.status()["connected"] and n.active_channels() == [channel, f"{channel}_t"])
        db.execute(f"select pg_notify('{channel}', '1'), pg_notify('{channel}_t', '2')")
        until(lambda: heard == [1, 2])


@pytest.mark.parametrize("how", ["process", "network"])
def test_a_frozen_server_and_many_threads(db: Server, proxy: Proxy, channel: str, how: str) -> None:
    """Guarantee 11: ten threads wait for the server; stop() takes less than one second, and all of them return."""
    dsn = proxy.dsn if how == "network" else db.dsn
    with Notifier(dsn, heartbeat=2.0) as n:
        pid = n.status()["pid"]
        assert pid is not None
        if how == "network":
            proxy.deafen()
        else:
            os.kill(pid, signal.SIGSTOP)
        try:
            threads = [threading.Thread(target=n.subscribe, args=(i, f"{channel}_{i}", print)) for i in range(10)]
            for thread in threads:
                thread.start()
            time.sleep(0.3)
            before = time.monotonic()
            n.stop()
            assert time.monotonic() - before < 1.0
            for thread in threads:
                thread.join(2)
            assert not any(thread.is_alive() for thread in threads)
            assert len(n.channels()) == 10
        finally:
            if how == "network":
                proxy.heal()
            else:
                os.kill(pid, signal.SIGCONT)
