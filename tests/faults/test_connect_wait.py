"""Guarantee 2: `connect_wait` waits for a server that is not there yet, and not for what waiting does not mend."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import psycopg
import pytest

from conftest import until
from pgnotifier import AsyncNotifier, CannotListen, Notifier

from .servers import Server, free_port

DELAYS = (0.01, 0.05)


class Starting(threading.Thread):
    """Runs `n.start()`, and keeps what it raised."""

    def __init__(self, n: Notifier) -> None:
        super().__init__()
        self.n = n
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.n.start()
        except psycopg.Error as error:
            self.error = error


def waits(n: Notifier, text: str) -> None:
    """Wait until an attempt has failed with that text, and another is to come."""
    until(lambda: text in (n.status()["last_error"] or ""))
    assert n.is_running()


def test_a_server_that_is_started_later(caplog: pytest.LogCaptureFixture, channel: str) -> None:
    """Subscribing meanwhile is recorded, `health()` says why it waits, and the log has each attempt."""
    with Server() as server:
        server.stop()
        n = Notifier(server.dsn, autostart=False, retry_delay=DELAYS, connect_wait=30)
        starting = Starting(n)
        waits(n, "refused")
        heard: list[Any] = []
        n.subscribe("s", channel, lambda *a: heard.append(a[2]))
        health = n.health()
        assert (health.live, health.ready) == (True, False)
        assert "not connected since" in health.problems[0]
        assert "refused" in health.problems[0]
        assert "connecting" in repr(n)
        server.start()
        starting.join(20)
        assert starting.error is None
        assert n.health() == (True, True, ())
        server.execute("select pg_notify(%s, '1')", [channel])
        until(lambda: heard == [1])
        n.stop()
    assert "not connected yet, trying again in 0.0" in caplog.text
    assert {r.levelno for r in caplog.records if "not connected yet" in r.message} == {logging.WARNING}


def test_a_server_that_starts_up() -> None:
    """It refuses with 57P03 until it has recovered."""
    with Server() as server:
        server.stop()
        (server.data / "standby.signal").touch()
        with (server.data / "postgresql.conf").open("a") as file:
            file.write("hot_standby = off\n")
        server.start()
        n = Notifier(server.dsn, autostart=False, retry_delay=DELAYS, connect_wait=30)
        starting = Starting(n)
        waits(n, "the database system is not accepting connections")
        server._run("pg_ctl", "promote", "-D", server.data)
        starting.join(20)
        assert starting.error is None
        assert n.status()["connected"]
        n.stop()


def test_it_gives_up_in_time() -> None:
    """The last error is raised, and nothing is left behind."""
    port = free_port()
    began = time.monotonic()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        Notifier(f"host=127.0.0.1 port={port}", connect_wait=0.3, retry_delay=DELAYS)
    assert 0.3 <= time.monotonic() - began < 5


def test_without_it_the_first_error_is_raised() -> None:
    began = time.monotonic()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        Notifier(f"host=127.0.0.1 port={free_port()}", retry_delay=(5, 5))
    assert time.monotonic() - began < 3


def test_a_name_that_is_not_there_yet() -> None:
    n = Notifier("host=nowhere.invalid", autostart=False, retry_delay=DELAYS, connect_wait=60)
    starting = Starting(n)
    waits(n, "failed to resolve host")
    n.stop()
    starting.join(10)


def test_stop_ends_the_wait() -> None:
    """From another thread, within a second; `start()` returns then, with the notifier stopped."""
    n = Notifier(f"host=127.0.0.1 port={free_port()}", autostart=False, retry_delay=(60, 60), connect_wait=600)
    starting = Starting(n)
    waits(n, "refused")
    began = time.monotonic()
    n.stop()
    starting.join(10)
    assert time.monotonic() - began < 1
    assert not n.is_running()
    assert n.status()["confirmed"] is None


def test_for_coroutines() -> None:
    """The event loop runs on, and a cancelled `start` waits no longer."""

    async def main() -> None:
        n = AsyncNotifier(f"host=127.0.0.1 port={free_port()}", retry_delay=DELAYS, connect_wait=600)
        starting = asyncio.create_task(n.start())
        while not n.status()["last_error"]:
            await asyncio.sleep(0.01)
        starting.cancel()
        await asyncio.wait([starting])
        while n.is_running():
            await asyncio.sleep(0.01)
        assert "AsyncNotifier" in repr(n)

    asyncio.run(asyncio.wait_for(main(), 20))


@pytest.fixture
def refusing(db: Server) -> Server:
    """The cluster, with a role that needs a password."""
    db.execute("drop role if exists guarded")
    db.execute("create role guarded login password 'hunter22'")
    return db


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("dbname=nowhere", 'database "nowhere" does not exist'),
        ("user=nobody", 'role "nobody" does not exist'),
        ("user=guarded password=wrong", "password authentication failed"),
        ("user=guarded", "no password supplied"),
        ("sslmode=require", "server does not support SSL"),
        ("options='-c no.such=1 -c nonsense=1'", "unrecognized configuration parameter"),
    ],
)
def test_what_waiting_does_not_mend_is_raised_at_once(refusing: Server, options: str, text: str) -> None:
    rules = refusing.data / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text("host all guarded 127.0.0.1/32 scram-sha-256\n" + before)
    try:
        refusing.execute("select pg_reload_conf()")
        until(lambda: "scram" in str(refusing.execute("select auth_method from pg_hba_file_rules")))
        began = time.monotonic()
        with pytest.raises(psycopg.OperationalError, match=text):
            Notifier(f"{refusing.dsn} {options}", connect_wait=60, retry_delay=DELAYS)
        assert time.monotonic() - began < 10
    finally:
        rules.write_text(before)
        refusing.execute("select pg_reload_conf()")


def test_a_standby_is_not_waited_for(db: Server) -> None:
    with db.standby() as standby:
        began = time.monotonic()
        with pytest.raises(CannotListen):
            Notifier(standby.dsn, connect_wait=60, retry_delay=DELAYS)
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("bad", [None, "5", float("nan"), True])
def test_a_wait_that_is_no_number_of_seconds(bad: Any) -> None:
    with pytest.raises(ValueError, match="connect_wait must be a number of seconds, not"):
        Notifier(autostart=False, connect_wait=bad)
