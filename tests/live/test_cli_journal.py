"""Guarantees 14 and 18: `pgnotifier journal` as processes."""

from __future__ import annotations

import json
from collections.abc import Iterator

import psycopg
import pytest

from command import run, started
from conftest import until
from pgnotifier import Notifier
from pgnotifier.journal import Journal

SCHEMA = 'a "journal"'


@pytest.fixture
def dsn(server: str) -> Iterator[str]:
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute("create database cli_journal")
        yield server.replace("/postgres?", "/cli_journal?")
        conn.execute("drop database cli_journal with (force)")


def test_every_command(dsn: str) -> None:
    where = ("-d", dsn, "--schema", SCHEMA)
    status, out, err = run("journal", "status", *where)
    assert (status, out) == (1, "")
    assert "no journal in schema 'a \"journal\"'" in err
    assert "pgnotifier journal install" in err
    assert run("journal", "install", "--keep", "30d", *where)[0] == 0
    assert run("journal", "publish", "orders", '{"id": 1}', *where)[:2] == (0, "1\n")
    assert run("journal", "publish", "orders", "-", *where, stdin="two\nlines")[:2] == (0, "2\n")
    with Notifier(dsn) as n, Journal(dsn, SCHEMA) as journal:
        with journal.consume(n, "mailer", "orders", lambda entry, conn: None, start="beginning") as consumer:
            until(lambda: consumer.status()["delivered"] == 2)
            _, out, _ = run("journal", "status", *where)
            assert out.startswith("2 entries, 0.")
            assert "kept for 30 days" in out
            assert "mailer: active (pid " in out
            assert "up to date; orders" in out
        journal.publish("orders", "away")
    [mailer] = json.loads(run("journal", "status", "--json", *where)[1])["consumers"]
    assert (mailer["name"], mailer["active"], mailer["lag"]) == ("mailer", False, 1)
    assert "mailer: not active, 1 behind" in run("journal", "status", *where)[1]
    assert run("journal", "trim", "0s", *where)[:2] == (0, "2 deleted\n")
    assert run("journal", "trim", "0s", "--evict", *where)[:2] == (0, "1 deleted\n")
    assert "gaps to report to it: trimmed" in run("journal", "status", *where)[1]
    assert run("journal", "remove", "mailer", *where)[0] == 0
    assert run("journal", "remove", "mailer", *where)[::2] == (1, "pgnotifier: there is no consumer 'mailer'\n")


def test_tail_shows_what_commits_and_stores_nothing(dsn: str) -> None:
    journal = Journal(dsn)
    journal.install()
    journal.publish("orders", "before")
    with started("journal", "tail", "orders", "--beginning", "--json", "-d", dsn) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["payload"] == "before"
        with psycopg.connect(dsn) as late, psycopg.connect(dsn) as conn:
            journal.publish("orders", "late", late)
            journal.publish("others", "not this", conn)
            journal.publish("orders", {"id": 1}, conn)
            conn.commit()
            assert json.loads(process.stdout.readline())["payload"] == '{"id":1}'
            late.commit()
            assert json.loads(process.stdout.readline())["payload"] == "late"
    assert journal.status()["consumers"] == []
    journal.close()


def test_the_sql_is_written_whole_and_runs_as_it_is(dsn: str) -> None:
    status, out, _ = run("journal", "install", "--sql", "--keep", "never", "--schema", SCHEMA)
    assert status == 0
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(out.encode())
        conn.execute(out.encode())
    with Journal(dsn, SCHEMA) as journal:
        assert journal.status()["keep"] is None


def test_bad_usage(dsn: str) -> None:
    for arguments, text in [
        (("trim", "soon"), "such as 30d, not 'soon'"),
        (("install", "--keep", "-1d"), "--keep"),
        (("publish", ""), "channel"),
        ((), "COMMAND"),
    ]:
        status, _, err = run("journal", *arguments)
        assert status == 2
        assert text in err


def test_doctor_names_consumers_that_are_away_and_restored_journals(dsn: str) -> None:
    def checked() -> dict[str, str]:
        lines = run("doctor", "--json", "-d", dsn)[1].splitlines()
        [found] = [check for check in map(json.loads, lines) if check["check"] == "journal"]
        return found

    assert (checked()["verdict"], checked()["detail"]) == ("ok", "there is none that this role can read")
    with Journal(dsn, SCHEMA) as journal, Notifier(dsn) as n:
        journal.install()
        journal.consume(n, "mailer", "orders", lambda entry, conn: None).stop()
        assert checked()["verdict"] == "ok"
        journal.publish("orders")
        assert checked()["verdict"] == "warning"
        assert checked()["detail"].startswith("not active: 'mailer' (1 entries behind")
        assert "journal remove" in checked()["remedy"]
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute('update "a ""journal""".meta set system = 1')
    assert "comes from another cluster" in checked()["detail"]
