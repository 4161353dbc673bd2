"""Guarantee 14: what `doctor` finds on a sick server or in a database, each provoked, with its text."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from command import examine
from conftest import until
from pgnotifier import Notifier
from pgnotifier.cli import advice
from pgnotifier.cli.doctor import CHECKS, services, settings
from pgnotifier.cli.doctor.functions import unguarded
from pooler import Pooler
from sick import Sick

servers = pytest.importorskip("faults.servers")  # POSIX
BINARIES = [servers.BIN, *sorted(Path("/usr/lib/postgresql").glob("*/bin"))]


def found(checks: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, check in checks.items() if check["verdict"] != "ok"}


@pytest.fixture(scope="module")
def own() -> Iterator[Any]:
    """A server that may be made sick."""
    with servers.Server() as server:
        yield server


@pytest.fixture
def database(own: Any) -> Iterator[str]:
    own.execute("create database app")
    yield f"{own.dsn} dbname=app"
    until(lambda: not own.execute("select 1 from pg_stat_activity where datname = 'app'"))
    own.execute("drop database app")


@pytest.mark.parametrize("binaries", BINARIES, ids=str)
def test_a_good_server_gives_no_warning(binaries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On every PostgreSQL of this machine, with and without an application that listens."""
    name = subprocess.run([binaries / "postgres", "--version"], capture_output=True, text=True).stdout.split()[2]
    major, minor = map(int, name.split("."))
    monkeypatch.setattr(servers, "BIN", binaries)
    with servers.Server() as server:
        server.execute("create role plain login")
        for user in ("postgres", "plain"):
            code, checks = examine(f"{server.dsn} user={user}")
            expected = {"version"} if minor < settings.MENDED.get(major, 0) else set()
            assert (code, found(checks)) == (0, expected)
        with Notifier(server.dsn, heartbeat=0.1) as n:
            n.subscribe(1, "c", print)
            code, checks = examine(server.dsn)
            assert (code, found(checks)) == (0, expected)
            assert checks["listeners"]["facts"]["pids"] == [n.status()["pid"]]


def test_each_check_is_one_of_a_list(database: str) -> None:
    _, checks = examine(database)
    assert [name for name, _ in CHECKS] == list(checks)[-len(CHECKS) :]


# -- 58P01 ----------------------------------------------------------------------------------------------------------


def test_listen_that_fails_with_58p01(server: str) -> None:
    with contextlib.closing(Sick(server)) as sick:
        code, checks = examine(sick.dsn)
        assert (code, checks["delivery"]["verdict"]) == (1, "failed")
        assert checks["delivery"]["detail"].startswith("LISTEN fails: could not access status of transaction 726")
        assert "SELECT pg_notification_queue_usage() cures it each time" in checks["delivery"]["remedy"]
        assert "the check `queue` below: run doctor again" in checks["delivery"]["remedy"]
        code, checks = examine(sick.dsn)
        assert (code, checks["delivery"]["verdict"]) == (0, "ok")


@pytest.mark.parametrize(
    ("name", "verdict", "update"),
    [
        ("12.22", "ok", ""),
        ("13.23", "warning", "update to 14.21"),
        ("14.20", "warning", "update to 14.21"),
        ("14.21", "ok", ""),
        ("15.15", "warning", "update to 15.16"),
        ("16.2", "warning", "update to 16.12"),
        ("17.8", "ok", ""),
        ("18.1", "warning", "update to 18.2"),
        ("18.2", "ok", ""),
        ("19.0", "ok", ""),
    ],
)
def test_servers_that_have_the_defect(name: str, verdict: str, update: str, monkeypatch: pytest.MonkeyPatch) -> None:
    major, minor = map(int, name.split("."))
    monkeypatch.setattr(settings, "ask", lambda conn, query: [(name,)])
    monkeypatch.setattr(settings, "listening_pids", lambda conn: [])
    conn: Any = SimpleNamespace(info=SimpleNamespace(server_version=major * 10000 + minor))
    check = settings.version(conn)
    assert check.verdict == verdict
    assert ("LISTEN fails with 58P01 until it is cured" in check.detail) is bool(update)
    assert update in (check.remedy or "")


# -- poolers and services -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "version", "name", "remedy"),
    [
        ("ep-a-b-123-pooler.eu-central-1.aws.neon.tech:5432", "", "Neon's pooler", "take '-pooler' out of"),
        ("ep-a-b-123-pooler.c-2.eu-central-1.aws.neon.tech:5432", "", "Neon's pooler", "take '-pooler' out of"),
        ("aws-0-eu-central-1.pooler.supabase.com:6543", "", "Supabase's pooler on port 6543", "use port 5432"),
        ("db.abc.supabase.co:6543", "", "Supabase's pooler on port 6543", "use port 5432"),
        ("app.proxy-abc123.eu-west-1.rds.amazonaws.com:5432", "", "RDS Proxy", "endpoint of the instance"),
        ("app.PROXY-abc123.eu-west-1.rds.amazonaws.com:5432", "", "RDS Proxy", "endpoint of the instance"),
        ("abc.dsql.us-east-1.on.aws:5432", "PostgreSQL 16", "Aurora DSQL", "RDS for PostgreSQL"),
        ("db:26257", "CockroachDB CCL v24.1.0 (x86_64-pc-linux-gnu)", "CockroachDB", "CREATE CHANGEFEED"),
        ("app-1.aws-eu-west-1.cockroachlabs.cloud:26257", "", "CockroachDB", "CREATE CHANGEFEED"),
        ("db:5433", "PostgreSQL 15.12-YB-2025.2.3.0-b1 on x86_64", "YugabyteDB", "ysql_yb_enable_listen_notify=true"),
        ("ep-a-b-123.eu-central-1.aws.neon.tech:5432", "PostgreSQL 17.5", None, ""),
        ("aws-0-eu-central-1.pooler.supabase.com:5432", "PostgreSQL 15.8 on x86_64", None, ""),
        ("app.abc123.eu-west-1.rds.amazonaws.com:5432", "PostgreSQL 16.4 on x86_64", None, ""),
        ("localhost:5432", "PostgreSQL 18.6 on x86_64-pc-linux-gnu, compiled by gcc", None, ""),
    ],
)
def test_services_by_name(where: str, version: str, name: str | None, remedy: str) -> None:
    host, port = where.split(":")
    service = services.service_named(host, int(port), version)
    assert (service.name if service else None) == name
    check = settings.service(service)
    assert check.verdict == ("warning" if service else "ok")
    assert remedy in (check.remedy or "")
    assert check.facts == {"service": name}


@pytest.mark.parametrize(
    ("host", "remedy"),
    [
        ("ep-x-pooler.eu-central-1.aws.neon.tech", services.NEON.remedy),
        ("app.proxy-abc.eu-west-1.rds.amazonaws.com", services.RDS_PROXY.remedy),
    ],
)
def test_a_service_gives_its_remedy(server: str, host: str, remedy: str) -> None:
    """By the name of the host, whatever answers there."""
    with contextlib.closing(Pooler(server)) as pooler:
        code, checks = examine(make_conninfo(pooler.dsn, host=host, hostaddr="127.0.0.1"))
    assert code == 1
    assert checks["service"]["detail"].startswith("this is ")
    assert {checks[name]["remedy"] for name in ("service", "pooler")} == {remedy}


@pytest.mark.parametrize(
    ("console", "service"),
    [
        (("pgbouncer", "PgBouncer 1.18.0"), services.PGBOUNCER),
        (("pgbouncer", "FATAL not allowed"), services.PGBOUNCER),
        (("admin", "PgDog v0.1.44"), services.PGDOG),
        (("admin", 'FATAL password for user "a" is wrong, or the database does not exist'), services.PGDOG),
        (("console", "1.3-3b7ab4e-release"), services.ODYSSEY),
        (("console", "FATAL odyssey: ce1: route for 'pgbouncer.a' is not found"), services.ODYSSEY),
        (("other", ""), None),
    ],
)
@pytest.mark.parametrize("session", [False, True])
def test_poolers_by_their_consoles(
    server: str, console: tuple[str, str], service: services.Service | None, session: bool
) -> None:
    with contextlib.closing(Pooler(server, session=session, console=console)) as pooler:
        code, checks = examine(pooler.dsn)
    name = service.name if service else "a pooler"
    if session:
        assert (code, found(checks)) == (0, set())
        assert checks["pooler"]["detail"] == f"{name} keeps the session: LISTEN outlives its transaction"
    else:
        assert (code, checks["pooler"]["verdict"]) == (1, "failed")
        assert checks["pooler"]["detail"] == f"{name} changes the session between transactions"
        assert checks["pooler"]["remedy"] == (service.remedy if service else advice.POOLER)


@pytest.mark.parametrize("mode", ["session", "transaction", "statement"])
def test_a_real_pgbouncer(own: Any, mode: str) -> None:
    faults = pytest.importorskip("faults.pooler")
    if faults.PGBOUNCER is None:
        pytest.skip("NOT RUN: pgbouncer is not installed (Debian: apt install pgbouncer)")
    with faults.Pooler(own, mode) as pooler:
        code, checks = examine(pooler.dsn)
    if mode == "session":
        assert (code, found(checks)) == (0, set())
        assert checks["pooler"]["detail"] == "pgbouncer keeps the session: LISTEN outlives its transaction"
    else:
        assert (code, found(checks)) == (1, {"pooler"})
        assert "delivery" not in checks
        assert checks["pooler"]["remedy"] == services.PGBOUNCER.remedy
        says = {"transaction": "changes the session between", "statement": "not allowed in statement pooling mode"}
        assert says[mode] in checks["pooler"]["detail"]


# -- settings and sessions ------------------------------------------------------------------------------------------


def test_an_idle_session_timeout_below_the_heartbeat(database: str) -> None:
    for value, verdict in (("0", "ok"), ("5s", "warning"), ("10s", "warning"), ("60s", "ok")):
        code, checks = examine(f"{database} options='-c idle_session_timeout={value}'")
        check = checks["timeouts"]
        assert (code, check["verdict"]) == (0, verdict)
        if verdict == "warning":
            seconds = check["facts"]["idle_session_timeout"]
            assert (
                f"idle_session_timeout is {seconds:g} s, the default heartbeat of a Notifier 10 s" in check["detail"]
            )
            assert check["remedy"].startswith(f"Notifier(heartbeat={seconds / 2:g}), or ALTER ROLE")


def test_the_warning_of_idle_session_timeout_is_right(database: str) -> None:
    """The server ends the session of a Notifier with a longer heartbeat, and not with the one that doctor names."""
    dsn = f"{database} options='-c idle_session_timeout=500ms'"
    _, checks = examine(dsn)
    heartbeat = float(checks["timeouts"]["remedy"].partition("=")[2].partition(")")[0])
    with Notifier(dsn) as ended, Notifier(dsn, heartbeat=heartbeat) as kept:
        until(lambda: "idle-session timeout" in str(ended.status()["last_error"]))
        assert (kept.status()["connected"], kept.status()["reconnects"]) == (True, 0)


def test_the_default_heartbeat_is_known() -> None:
    assert (Notifier.__init__.__kwdefaults__ or {})["heartbeat"] == settings.HEARTBEAT


def test_sessions_that_wait_for_the_lock_of_notify(own: Any) -> None:
    """A commit that notifies holds the lock while it waits for a synchronous standby, and all others wait for it."""
    own.execute("alter system set synchronous_standby_names = 'nobody'")
    own.execute("select pg_reload_conf()")
    until(lambda: own.execute("show synchronous_standby_names") == [("nobody",)])

    def notify(name: str) -> None:
        with psycopg.connect(f"{own.dsn} application_name={name}") as conn:
            conn.execute("select pg_notify('c', '')")
            conn.execute("create temp table written ()")  # a commit that has written nothing waits for no standby

    threads = [threading.Thread(target=notify, args=(name,)) for name in ("holder", "waiter")]
    try:
        for thread, event in zip(threads, ("SyncRep", "object"), strict=True):
            thread.start()
            until(lambda event=event: own.execute("select 1 from pg_stat_activity where wait_event = %s", [event]))
        code, checks = examine(own.dsn)
        commits, delivery = checks["commits"], checks["delivery"]
        assert (commits["verdict"], len(commits["facts"]["waiting"])) == ("warning", 1)
        assert "1 session(s) wait for the lock of the whole cluster that NOTIFY takes at commit" in commits["detail"]
        assert f"session {commits['facts']['pid']} (holder) holds it, and waits for SyncRep" in commits["detail"]
        assert commits["remedy"].startswith(
            "its commit waits for a synchronous standby: see synchronous_standby_names"
        )
        assert (code, delivery["verdict"]) == (1, "failed")
        assert delivery["detail"] == "no answer within 10 seconds"
        assert "waits for a lock" in delivery["remedy"]
    finally:
        with psycopg.connect(own.dsn, autocommit=True) as conn:
            conn.execute("set synchronous_commit = off")
            conn.execute("alter system reset synchronous_standby_names")
            conn.execute("select pg_reload_conf()")
        for thread in threads:
            thread.join(20)
    until(lambda: examine(own.dsn)[0] == 0)


def test_connections_left(own: Any, database: str) -> None:
    own.execute("create role few login connection limit 4")
    own.execute("create role many login")
    few, many = f"{database} user=few", f"{database} user=many"
    try:
        _, checks = examine(many)
        assert checks["connections"]["verdict"] == "ok"
        before = checks["connections"]["facts"]["left"]
        with contextlib.ExitStack() as stack:
            check = examine(few)[1]["connections"]
            assert (check["verdict"], check["detail"]) == (
                "warning",
                "4 left; a Notifier takes one, its `notify` a second",
            )
            assert check["remedy"] == "raise the limit of the role: ALTER ROLE ... CONNECTION LIMIT"
            own.execute("alter database app connection limit 3")
            check = examine(many)[1]["connections"]
            assert check["detail"].startswith("3 left")
            assert check["remedy"] == "raise the limit of the database: ALTER DATABASE ... CONNECTION LIMIT"
            own.execute("alter database app connection limit -1")
            for _ in range(before - 4):
                stack.enter_context(psycopg.connect(many))
            check = examine(many)[1]["connections"]
            assert (check["verdict"], check["facts"]) == ("warning", {"left": 4})
            assert check["remedy"] == "raise max_connections, or close other connections"
    finally:
        until(lambda: not own.execute("select 1 from pg_stat_activity where usename in ('few', 'many')"))
        own.execute("drop role few")
        own.execute("drop role many")


# -- functions ------------------------------------------------------------------------------------------------------

BODIES = [
    (True, "perform pg_notify('c', row_to_json(new)::text);"),
    (True, "perform pg_catalog.PG_NOTIFY ( 'c' , new.body );"),
    (True, "perform pg_notify('c', json_build_object('id', new.id, 'row', new)::text);"),
    (True, "if length(x) < 8000 then perform pg_notify('c', x); end if;  -- counts characters"),
    (True, "perform pg_notify('a', 'b'); /* octet_length(x) */ perform pg_notify('c', x);"),
    (True, "execute 'select pg_notify($1, $2)' using 'c', x;"),
    (False, "perform pg_notify('c', 'it''s, (all) new.body');"),
    (False, "perform pg_notify(tg_table_name, '');"),
    (False, "perform pg_notify('c', new.id::text);"),
    (False, "perform pg_notify('c', tg_op || ':' || new.customer_id);"),
    (False, "perform pg_notify('c', json_build_object('op', tg_op, 'id', new.id)::text);"),
    (False, "if octet_length(x) < 8000 then perform pg_notify('c', x); end if;"),
    (False, "perform pg_notify('c', left(x, 2000));"),
    (False, "-- pg_notify('c', x)"),
]


@pytest.mark.parametrize(("is_unguarded", "body"), BODIES)
def test_what_is_a_guard(is_unguarded: bool, body: str) -> None:
    assert unguarded(f"create function f() as $$ begin {body}\nend $$") is is_unguarded


def test_functions_without_a_guard(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        head = "create function {}() returns trigger language plpgsql as $$ begin {}\nend $$"
        for number, (_, body) in enumerate(BODIES):
            conn.execute(head.format(f"f{number:02}", body).encode())
        conn.execute(
            "create function sent(p_id bigint) returns void begin atomic select pg_notify('c', p_id::text); end"
        )
        conn.execute("create function tell(x text) returns void begin atomic select pg_notify('c', x); end")
    code, checks = examine(database)
    check = checks["functions"]
    assert (code, check["verdict"]) == (0, "warning")
    named = [f"f{number:02}()" for number, (is_unguarded, _) in enumerate(BODIES) if is_unguarded]
    assert check["facts"]["functions"] == [*(f"public.{name}" for name in named), "public.tell(text)"]
    assert "public.f00(), " in check["detail"]
    assert " and 2 more: pg_notify without a guard; a payload of 8,000 bytes or more" in check["detail"]
    assert "octet_length(payload) > 7999" in check["remedy"]
    assert "pgnotifier trigger TABLE" in check["remedy"]
