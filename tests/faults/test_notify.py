"""`notify()` whose connection the server ends: each is sent once, and the caller does not notice (guarantee 13)."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from conftest import until
from pgnotifier import Notifier

from .proxy import Proxy
from .servers import Server


class Witness:
    """Counts what arrives on a channel, with a connection that nobody ends."""

    def __init__(self, dsn: str, channel: str) -> None:
        self.channel = channel
        self.count: Counter[str] = Counter()
        self.pid = 0  # of the session that has sent last
        self._conn = psycopg.connect(dsn, autocommit=True, application_name="witness")
        self._conn.execute(f"listen {channel}".encode())

    def read(self) -> Counter[str]:
        """All that was committed before this call."""
        with psycopg.connect(self._conn.info.dsn, autocommit=True) as other:
            other.execute("select pg_notify(%s, 'mark')", (self.channel,))
        while not self.count.pop("mark", 0):
            for n in self._conn.notifies(timeout=0.005):
                self.count[n.payload] += 1
                if n.payload != "mark":
                    self.pid = n.pid
        return self.count

    def close(self) -> None:
        self._conn.close()


@pytest.fixture
def witness(db: Server, channel: str) -> Iterator[Witness]:
    witness = Witness(db.dsn, channel)
    yield witness
    witness.close()


def test_its_session_is_terminated(db: Server, witness: Witness) -> None:
    """Guarantee 13: between two calls, as often as it may be, whether the end has come through by then or not."""
    with Notifier(db.dsn) as n:
        n.notify(witness.channel, "first")
        query = "select count(*) from pg_stat_activity where pid = %s"
        for number in range(100):
            witness.read()
            assert db.terminate(witness.pid)
            if number % 2:
                until(lambda: db.execute(query, [witness.pid]) == [(0,)])
            n.notify(witness.channel, str(number))
        assert witness.read() == Counter(["first", *map(str, range(100))])


def test_its_session_is_idle_for_too_long(db: Server, witness: Witness) -> None:
    """Guarantee 13: a limit of the server for idle sessions, just below and just above the pause between calls."""
    with Notifier(f"{db.dsn} options='-c idle_session_timeout=60'", heartbeat=0.02, retry_delay=(0.01, 0.1)) as n:
        numbers = range(40)
        for number in numbers:
            n.notify(witness.channel, str(number))
            time.sleep(0.04 + number * 0.001)
        assert witness.read() == Counter(map(str, numbers))


@pytest.mark.parametrize("mode", ["fast", "immediate", "kill"])
def test_the_server_is_restarted(db: Server, channel: str, mode: Any) -> None:
    """Guarantee 13: the first call after it is sent, too."""
    with Notifier(db.dsn) as n:
        n.notify(channel, "before")
        if mode == "kill":
            db.kill()
            db.start()
        else:
            db.restart(mode)
        witness = Witness(db.dsn, channel)
        try:
            n.notify(channel, "after")
            assert witness.read() == Counter(["after"])
        finally:
            witness.close()


def test_terminated_at_random_moments(db: Server, witness: Witness, rng: random.Random) -> None:
    """Guarantee 13: what returned was sent once, what raised at most once."""
    ending = threading.Event()
    ended = [0]

    def terminate() -> None:
        query = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'sends'"
        with psycopg.connect(db.dsn, autocommit=True) as conn:
            while not ending.wait(rng.uniform(0, 0.02)):
                for (count,) in conn.execute(query).fetchall():
                    ended[0] += count

    returned: list[str] = []
    raised: dict[str, str] = {}
    with Notifier(f"{db.dsn} application_name=sends", retry_delay=(5.0, 5.0)) as n:
        killer = threading.Thread(target=terminate)
        killer.start()
        try:
            ends, number = time.monotonic() + 4, 0
            while time.monotonic() < ends:
                number += 1
                try:
                    n.notify(witness.channel, str(number))
                    returned.append(str(number))
                except psycopg.OperationalError as error:
                    raised[str(number)] = str(error)
        finally:
            ending.set()
            killer.join()
    count = witness.read()
    print(f"{ended[0]} sessions ended, {len(returned)} returned, raised: {Counter(raised.values())}")
    assert ended[0] > 50
    assert [number for number in returned if count[number] != 1] == []
    assert [number for number in raised if count[number] > 1] == []
    assert len(raised) < ended[0] / 4  # most fall between two calls, and the caller does not notice


def test_stop_gives_up_all_that_wait(db: Server, proxy: Proxy, channel: str) -> None:
    """Guarantee 11: on a network that has gone, `notify` calls in other threads return, too."""
    n = Notifier(proxy.dsn)
    n.notify(channel)
    proxy.deafen()
    failed: list[BaseException] = []

    def notify() -> None:
        try:
            n.notify(channel)
        except psycopg.OperationalError as error:
            failed.append(error)

    threads = [threading.Thread(target=notify) for _ in range(5)]
    passed = proxy.to_server.passed
    for thread in threads:
        thread.start()
    proxy.deafen(to_server=False)
    until(lambda: proxy.to_server.passed > passed)
    since = time.monotonic()
    n.stop()
    assert time.monotonic() - since < 1
    for thread in threads:
        thread.join(1)
    assert len(failed) == 5
    proxy.heal()
    proxy.reset()
    n.notify(channel)
    n.stop()


def test_stop_while_dbconf_blocks(db: Server, channel: str) -> None:
    """Guarantee 11: in the listener, which connects again, and in `notify`; `stop()` takes less than a second."""
    asked = threading.Semaphore(0)
    blocks, goes_on = threading.Event(), threading.Event()

    def dbconf() -> str:
        asked.release()
        if blocks.is_set():
            goes_on.wait(10)
        return db.dsn

    def notify() -> None:
        with pytest.raises(psycopg.OperationalError):
            n.notify(channel)

    n = Notifier(dbconf, retry_delay=(0.01, 0.02))
    assert asked.acquire(timeout=5)
    blocks.set()
    thread = threading.Thread(target=notify)
    try:
        db.terminate(n.status()["pid"] or 0)
        assert asked.acquire(timeout=5)
        thread.start()
        assert asked.acquire(timeout=5)
        since = time.monotonic()
        n.stop()
        assert time.monotonic() - since < 1
    finally:
        goes_on.set()
        thread.join(5)
        n.stop()
