"""The tables: made twice, by ten at a time, by hand; of a version that is newer (guarantee 18)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgnotifier.journal import Journal

from .reading import PUBLISH, Reader, run


def test_ten_at_a_time(dsn: str) -> None:
    """Also if the role's transactions keep one snapshot from beginning to end."""
    database = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    run(dsn, f"alter database {database} set default_transaction_isolation = serializable")
    errors: list[BaseException] = []

    def install() -> None:
        try:
            Journal(dsn).install(timedelta(days=3))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=install) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert run(dsn, "select version, keep from pgnotifier.meta") == [(1, timedelta(days=3))]


def test_again_keeps_what_is_there(journal: Journal, dsn: str, reader: Reader, consume: Any) -> None:
    """Entries, positions and grants; the latest `keep` counts. A consumer that runs does not notice."""
    consumer = consume()
    journal.publish("orders", 1)
    reader.has(1)
    run(dsn, "grant execute on function pgnotifier.publish_changes() to public")
    journal.install(keep=None)
    journal.publish("orders", 2)
    reader.has(1, 2)
    status = journal.status()
    assert (status["keep"], status["entries"], status["version"]) == (None, 2, 1)
    assert consumer.status()["last_error"] is None


def test_again_while_a_transaction_that_has_published_is_open(
    journal: Journal, conn: psycopg.Connection[Any]
) -> None:
    """It neither waits for that, nor has other publishers wait."""
    conn.execute(PUBLISH, ["open"])
    installing = threading.Thread(target=journal.install)
    installing.start()
    installing.join(5)
    waited = installing.is_alive()
    conn.rollback()
    installing.join()
    assert not waited


def test_a_newer_version_is_refused(journal: Journal, dsn: str) -> None:
    """Nothing has changed then."""
    run(dsn, "update pgnotifier.meta set version = 999")
    run(dsn, "drop function pgnotifier.publish")
    with pytest.raises(psycopg.errors.RaiseException, match="version 999, and this library knows version 1"):
        journal.install()
    assert run(dsn, "select count(*) from pg_proc where proname = 'publish'") == [(0,)]


@pytest.mark.parametrize("autocommit", [True, False])
def test_sql_is_one_script(dsn: str, autocommit: bool) -> None:
    """For a migration: run whole, or within a transaction that psycopg has begun."""
    with Journal(dsn) as journal:
        with psycopg.connect(dsn, autocommit=autocommit) as conn:
            for _ in range(2):
                conn.execute(journal.sql().encode())
            conn.execute(PUBLISH, [1])
        assert journal.status()["entries"] == 1


def test_without_it_the_error_says_what_to_do(dsn: str, n: Any, reader: Reader) -> None:
    journal = Journal(dsn)
    calls: list[Callable[[], Any]] = [
        lambda: journal.publish("orders", 1),
        lambda: journal.consume(n, "mailer", "orders", reader),
        lambda: journal.trim(timedelta(0)),
        lambda: journal.remove("mailer"),
        lambda: journal.status(),
    ]
    for call in calls:
        with pytest.raises(psycopg.Error, match=r"no journal in schema 'pgnotifier': call install\(\)"):
            call()


def test_the_extension_of_a_schema_that_is_there(dsn: str, server: str) -> None:
    """A role that may not create schemas installs into one of its own."""
    run(server, "create role owning login")
    theirs = psycopg.conninfo.make_conninfo(dsn, user="owning")
    try:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            Journal(theirs).install()
        run(dsn, "create schema pgnotifier authorization owning")
        with Journal(theirs) as journal:
            journal.install()
            assert journal.publish("orders", 1) == 1
            assert journal.trim(timedelta(0)) == 1
    finally:
        run(dsn, "drop owned by owning")
        run(server, "drop role owning")
