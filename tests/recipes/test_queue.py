"""docs/recipes/queue.md: guarantee 10, jobs that are found after every fault, each done once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from conftest import until
from pgnotifier import Notifier

from .conftest import Database
from .page import blocks, load, process, write

DONE = "select count(*), count(distinct customer) from invoices"


@pytest.fixture
def queue(database: Database) -> Database:
    database.execute(blocks("queue.md")["queue.sql"])
    database.execute("create table invoices (customer int)")
    return database


def enqueue(database: Database, first: int, last: int) -> None:
    database.execute(
        "insert into jobs (task) select jsonb_build_object('customer', i) from generate_series(%s::int, %s::int) i",
        [first, last],
    )


def done(database: Database, number: int) -> bool:
    [(all_, distinct)] = database.execute(DONE)
    assert all_ == distinct, "a job was done twice"
    return bool(all_ == number)


@contextmanager
def workers(database: Database, monkeypatch: pytest.MonkeyPatch, count: int) -> Iterator[dict[str, Any]]:
    """The recipe's worker threads, in this process, idle."""
    monkeypatch.setenv("DATABASE_URL", database.dsn)
    module = load("queue.md", "worker.py")
    with Notifier(database.dsn) as notifier:
        threads = [module["Worker"](notifier) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: not any(thread.wake.is_set() for thread in threads))
            yield module | {"threads": threads, "notifier": notifier}
        finally:
            for thread in threads:
                thread.stop()
            for thread in threads:
                thread.join(10)


def test_several_processes_and_a_session_killed_in_the_midst(queue: Database, tmp_path: Path) -> None:
    """Guarantee 10: each job is done once, though all sessions are ended again and again."""
    write("queue.md", tmp_path, "worker.py")
    with ExitStack() as stack:
        children = [
            stack.enter_context(process(tmp_path, "worker.py", log=f"log{i}", DATABASE_URL=queue.dsn))
            for i in range(2)
        ]
        enqueue(queue, 1, 600)
        for kill in range(2):
            until(lambda kill=kill: queue.execute(DONE)[0][0] > kill * 200)
            assert queue.terminate() > 0
            enqueue(queue, 1001 + kill * 10, 1010 + kill * 10)
        until(lambda: done(queue, 620), 20)
        assert queue.execute("select count(*) from jobs") == [(0,)]
        enqueue(queue, 2001, 2010)  # and all are heard again
        until(lambda: done(queue, 630))
        for child in children:
            child.send_signal(signal.SIGTERM)
        assert [child.wait(10) for child in children] == [0, 0]


def test_an_idle_worker_is_woken_and_asks_nothing(queue: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """No polling: without a job no query, and with one no wait."""
    asked = (
        "select pid, query_start from pg_stat_activity where datname = %s and application_name = ''"
        " and state = 'idle' and query = 'COMMIT' order by pid"
    )

    def idle() -> list[Any]:
        return [row for row in queue.execute(asked, [queue.name]) if row[0] != queue.sender.info.backend_pid]

    with workers(queue, monkeypatch, 3) as module:
        until(lambda: len(idle()) == 3)
        before = idle()
        assert not module["threads"][0].wake.wait(0.3)
        assert idle() == before
        for number in range(1, 6):
            enqueue(queue, number, number)
            until(lambda number=number: done(queue, number))


def test_jobs_enqueued_while_disconnected_are_found(queue: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee 10: the gap wakes the workers, whose own connections know of nothing."""
    with workers(queue, monkeypatch, 2):
        for number in range(1, 4):
            with queue.unreachable("pgnotifier"):
                enqueue(queue, number, number)
            until(lambda number=number: done(queue, number))


def test_a_job_that_fails_is_set_aside(queue: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are done, and it is not tried for ever."""
    with workers(queue, monkeypatch, 2):
        queue.execute("""insert into jobs (task) values ('{"customer": 1}'), ('{"no": 1}'), ('{"customer": "x"}'),
            ('{"customer": 2}')""")
        until(lambda: done(queue, 2))
        until(lambda: queue.execute("select count(*) from failed_jobs") == [(2,)])
    assert queue.execute("select count(*) from jobs") == [(0,)]
    assert queue.execute("select task from failed_jobs where error like 'KeyError%'") == [({"no": 1},)]


def test_a_job_is_taken_by_one(queue: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that another transaction has taken are passed over, and are back when it is rolled back."""
    take = load("queue.md", "worker.py")["TAKE"]
    enqueue(queue, 1, 2)
    options = "-c lock_timeout=5s"
    with psycopg.connect(queue.dsn, options=options) as first, psycopg.connect(queue.dsn, options=options) as second:
        assert [conn.execute(take).fetchone()[1] for conn in (first, second)] == [{"customer": 1}, {"customer": 2}]
        first.rollback()
        assert second.execute(take).fetchone()[1] == {"customer": 1}
