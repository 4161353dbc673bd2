"""What the tests of the journal share: a database of their own, a journal, a notifier, and a table of effects."""

from __future__ import annotations

import os
import random
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from faults.servers import Server
from pgnotifier import Notifier
from pgnotifier.journal import Consumer, Journal
from pgnotifier.journal import consumer as consumer_module
from pgnotifier.journal import lease as lease_module

from .reading import Reader, run

if sys.platform == "win32":
    collect_ignore_glob = ["test_*.py"]  # freezing and killing processes is POSIX


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A cluster of the tests' own, or the one that PGNOTIFIER_TEST_DSN names (TCP, as a superuser)."""
    if dsn := os.environ.get("PGNOTIFIER_TEST_DSN"):
        yield dsn
        return
    with Server({"max_prepared_transactions": 5}) as cluster:
        yield cluster.dsn


@pytest.fixture(scope="session", autouse=True)
def version(server: str) -> None:
    """Say which PostgreSQL it is."""
    print(run(server, "select version()"))


@pytest.fixture
def make_dsn(server: str) -> Iterator[Callable[[], str]]:
    """Makes databases, which are dropped at the end."""
    names: list[str] = []

    def make() -> str:
        names.append(f"j_{uuid.uuid4().hex[:12]}")
        run(server, f"create database {names[-1]}")
        return make_conninfo(server, dbname=names[-1])

    yield make
    for name in names:
        run(server, f"drop database {name} with (force)")


@pytest.fixture
def dsn(make_dsn: Callable[[], str]) -> str:
    return make_dsn()


@pytest.fixture
def journal(dsn: str) -> Iterator[Journal]:
    """Installed, with the table of effects beside it."""
    with Journal(dsn) as journal:
        journal.install()
        run(dsn, "create table effect (place bigserial, id bigint primary key, payload text)")
        yield journal


@pytest.fixture
def make_notifier(dsn: str) -> Iterator[Callable[..., Notifier]]:
    made: list[Notifier] = []

    def make(dbconf: Any = dsn, **options: Any) -> Notifier:
        made.append(Notifier(dbconf, retry_delay=(0.01, 0.1), **options))
        return made[-1]

    yield make
    for notifier in made:
        notifier.stop()


@pytest.fixture
def n(make_notifier: Callable[..., Notifier]) -> Notifier:
    return make_notifier()


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def consume(journal: Journal, n: Notifier, reader: Reader) -> Iterator[Callable[..., Consumer]]:
    """`Journal.consume` with what the test does not say, stopped at the end."""
    made: list[Consumer] = []

    def begin(fn: Any = None, name: str = "mailer", channels: Any = "orders", **options: Any) -> Consumer:
        notifier, own = options.pop("notifier", n), options.pop("journal", journal)
        made.append(own.consume(notifier, name, channels, fn or reader, **{"on_gap": reader.on_gap, **options}))
        return made[-1]

    yield begin
    reader.release()
    for consumer in made:
        consumer.stop()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of one second."""
    for module, name, value in [
        (lease_module, "SECONDS", 1.0),
        (lease_module, "RENEW", 0.3),
        (lease_module, "POLL", 0.1),
        (consumer_module, "POLL", 0.1),
    ]:
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def conn(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A transaction of somebody else's."""
    with psycopg.connect(dsn) as conn:
        yield conn


@pytest.fixture
def rng() -> random.Random:
    """Random moments; PGNOTIFIER_TEST_SEED repeats those of a run that failed."""
    seed = int(os.environ.get("PGNOTIFIER_TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"PGNOTIFIER_TEST_SEED={seed}")
    return random.Random(seed)
