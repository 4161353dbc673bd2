"""Nothing missed, nothing twice, nothing that was rolled back, whatever dies or stays open (guarantee 18)."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import psycopg
import pytest

from conftest import until
from pgnotifier import Notifier
from pgnotifier.journal import Entry, Journal

from . import process
from .reading import LONG, PUBLISH, effects, run

WRITERS = 6
SESSIONS, PROCESSES = 100, 20  # killed
PAIRS = 10_000 if LONG else 3000
BULK = "insert into pgnotifier.journal (channel, payload) select 'orders', 'w' || unnest(%s::int[])"
KILL = """
    select count(pg_terminate_backend(pid)) from (
        select pid from pg_stat_activity where application_name like 'mailer%' order by random() limit 1) p"""


class Writers:
    """Transactions of random length: single entries, bulk inserts, savepoints, rollbacks."""

    def __init__(self, dsn: str, rng: random.Random) -> None:
        self.committed: set[str] = set()
        self.rolled_back: set[str] = set()
        self._dsn, self._numbers, self._stopped = dsn, count(), threading.Event()
        self._errors: list[BaseException] = []
        seeds = [rng.random() for _ in range(WRITERS)]
        self._threads = [threading.Thread(target=self._write, args=(random.Random(seed),)) for seed in seeds]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        assert not self._errors

    def _write(self, rng: random.Random) -> None:
        try:
            with psycopg.connect(self._dsn) as conn:
                while not self._stopped.is_set():
                    self._transact(conn, rng)
        except BaseException as error:
            self._errors.append(error)

    def _transact(self, conn: psycopg.Connection[Any], rng: random.Random) -> None:
        kept, lost = set[str](), set[str]()
        with conn.transaction() as whole:
            for _ in range(rng.randrange(1, 4)):
                numbers = [next(self._numbers) for _ in range(rng.choice([1, 1, 1, 1, 1, 1, 1, 20]))]
                names = {f"w{number}" for number in numbers}
                with conn.transaction() as savepoint:
                    conn.execute(BULK, [numbers])
                    if rng.random() < 0.2:
                        lost |= names
                        raise psycopg.Rollback(savepoint)
                    kept |= names
                time.sleep(rng.random() * 0.2 / 3)
            if rng.random() < 0.2:
                kept, lost = set(), kept | lost
                raise psycopg.Rollback(whole)
        self.committed |= kept
        self.rolled_back |= lost


class Cursor:
    """The reader that people write: all with an id above the greatest that it has seen."""

    def __init__(self, dsn: str) -> None:
        self.seen: set[str] = set()
        self._dsn, self._stopped = dsn, threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _read(self) -> None:
        newest, query = 0, "select id, payload from pgnotifier.journal where id > %s order by id"
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            while not self._stopped.wait(0.01):
                for id, payload in conn.execute(query, [newest]).fetchall():
                    newest = id
                    self.seen.add(payload)


@pytest.mark.timeout(400)
def test_nothing_is_missed_and_nothing_comes_twice(
    journal: Journal, dsn: str, make_dsn: Callable[[], str], rng: random.Random
) -> None:
    """Six writers; sessions and processes killed; a writing transaction open all the while, here and elsewhere."""
    other = make_dsn()
    run(other, "create table other (n int)")
    processes = [process.start(dsn, f"mailer{number}", seconds=1.0, batch=20) for number in range(2)]
    with process.ending(processes), psycopg.connect(dsn) as held, psycopg.connect(other) as elsewhere:
        held.execute(PUBLISH, ["held"])
        elsewhere.execute("insert into other values (1)")
        cursor, writers = Cursor(dsn), Writers(dsn, rng)
        try:
            killed = kill_at_random(dsn, processes, rng)
        finally:
            writers.stop()
            cursor.stop()
        until(lambda: len(effects(dsn)) >= len(writers.committed), 30)  # the held ones delay nothing
        delivered = effects(dsn)
        assert len(delivered) == len(set(delivered)) == len(writers.committed)
        assert set(delivered) == writers.committed
        held.commit()
        until(lambda: len(effects(dsn)) > len(delivered), 10)
        assert effects(dsn)[-1] == "held"
    missed = writers.committed - cursor.seen
    print(f"{len(delivered)} entries, {len(writers.rolled_back)} rolled back, {killed} kills")
    print(f"a cursor missed {len(missed)}")
    assert missed
    assert len(writers.rolled_back) > 100


def kill_at_random(dsn: str, processes: list[Any], rng: random.Random) -> tuple[int, int]:
    """Sessions by the server, processes by SIGKILL, each at once replaced."""
    sessions, dead = 0, 0
    with psycopg.connect(dsn, autocommit=True) as conn:
        while sessions < SESSIONS or dead < PROCESSES:
            time.sleep(rng.random() * 0.3)
            if sessions < SESSIONS:
                [(number,)] = conn.execute(KILL).fetchall()
                sessions += number
            if dead < PROCESSES and rng.random() < 0.5:
                place = rng.randrange(len(processes))
                processes[place].kill()
                processes[place].communicate()
                processes[place] = process.start(dsn, f"mailer{place}", seconds=1.0, batch=20)
                dead += 1
    return sessions, dead


@pytest.mark.timeout(400)
def test_a_cause_comes_before_its_effect(journal: Journal, dsn: str, n: Notifier, rng: random.Random) -> None:
    """An entry that was written after another was read never comes before it; sessions are killed meanwhile."""
    order: dict[int, tuple[int, int | None]] = {}  # by id: its place, and its cause's id
    left = count()

    def note(entry: Entry, conn: psycopg.Connection[Any]) -> None:
        order.setdefault(entry.id, (len(order), entry.payload))

    def answer(seed: float) -> None:
        rng = random.Random(seed)
        with psycopg.connect(dsn) as conn:
            while next(left) < PAIRS:
                [(cause,)] = conn.execute("select id from pgnotifier.journal order by id desc limit 1").fetchall()
                conn.commit()
                time.sleep(rng.random() * 0.002)
                conn.execute(PUBLISH, [str(cause)])
                time.sleep(rng.choice([0.0, 0.0, 0.02]) * rng.random())
                conn.commit()

    with journal.consume(n, "mailer", "orders", note, batch=7) as consumer:
        journal.publish("orders", None)
        threads = [threading.Thread(target=answer, args=(rng.random(),)) for _ in range(WRITERS)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.3)
            run(dsn, "select pg_terminate_backend(pid) from pgnotifier.lease")
        until(lambda: len(order) == PAIRS + 1, 60)
        assert consumer.status()["failed"] == 0
    for place, cause in order.values():
        assert cause is None or order[cause][0] < place
    assert sorted(order) != list(order)  # else ids alone would do
