"""What `pgnotifier doctor` finds: everything that keeps LISTEN from working in a database, with what to do about it.

Read-only: it listens to a channel of its own and notifies on it, and changes nothing. Main thread only.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from statistics import median
from time import monotonic
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from . import advice
from .views import Check
from .wire import Breaker, connect

DEADLINE = 10.0  # seconds for the server to answer a check
ARRIVAL = 5.0  # seconds for a notification to arrive
ROUNDS = 5  # of the round trip; the median counts
CROWD = 50  # listening sessions from which waking all of them for every NOTIFY begins to cost

Conn = psycopg.Connection[Any]


def examine(dsn: str) -> Iterator[Check]:
    """The checks, one after the other; after a failure, those that make no sense then are left out."""
    began = monotonic()
    try:
        conn = _connect(dsn)
    except psycopg.Error as error:
        yield Check("reachable", "failed", *advice.explain(error, dsn))
        return
    with contextlib.closing(conn):
        took = (monotonic() - began) * 1000
        yield Check("reachable", "ok", f"connected in {took:.0f} ms", facts={"ms": round(took, 3)})
        yield _guarded("database", dsn, _database, conn)
        role = _guarded("primary", dsn, _primary, conn)
        yield role
        if role.verdict == "ok":
            yield from _delivering(dsn)
        for name, check in (("queue", _queue), ("listeners", _listeners), ("version", _version), ("tls", _tls)):
            yield _guarded(name, dsn, check, conn)


def _connect(dsn: str) -> Conn:
    # Not by the library's own name, which is how `_listeners` knows notifiers.
    with contextlib.closing(Breaker()) as breaker:
        return connect(make_conninfo(dsn, fallback_application_name="pgnotifier doctor"), breaker)


def _guarded(name: str, dsn: str, check: Callable[..., Check], *conns: Conn) -> Check:
    """`check(*conns)`, or what kept it from ending."""
    try:
        with _deadline(*conns):
            return check(*conns)
    except psycopg.Error as error:
        return Check(name, "failed", *advice.explain(error, dsn))


@contextlib.contextmanager
def _deadline(*conns: Conn) -> Iterator[None]:
    """Cut the connections off when the block takes too long: a query waits for ever for a network that is silent."""
    handles = [socket.fromfd(conn.fileno(), socket.AF_INET, socket.SOCK_STREAM) for conn in conns if not conn.closed]
    late = threading.Event()

    def cut() -> None:
        late.set()
        for handle in handles:
            with contextlib.suppress(OSError):
                handle.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(DEADLINE, cut)
    timer.start()
    try:
        yield
    except psycopg.Error as error:
        if late.is_set():
            raise psycopg.OperationalError(f"no answer within {DEADLINE:g} seconds") from error
        raise
    finally:
        timer.cancel()
        timer.join()
        for handle in handles:
            handle.close()


def _row(conn: Conn, query: str) -> tuple[Any, ...]:
    return tuple(conn.execute(query.encode()).fetchone() or ())


def _database(conn: Conn) -> Check:
    name, user = _row(conn, "SELECT pg_catalog.current_database(), current_user")
    info = conn.info
    where = info.host if info.host.startswith("/") else f"{info.host}:{info.port}"
    return Check(
        "database",
        "ok",
        f"{name}, as user {user}, on {where}; a notification reaches listeners of the same database only",
        facts={"database": name, "user": user, "host": info.host, "port": info.port},
    )


def _primary(conn: Conn) -> Check:
    (standby,) = _row(conn, "SELECT pg_catalog.pg_is_in_recovery()")
    if standby:
        return Check("primary", "failed", "a standby: it refuses LISTEN and NOTIFY", advice.STANDBY)
    return Check("primary", "ok", "a primary")


def _delivering(dsn: str) -> Iterator[Check]:
    """Two checks on two connections of their own: a pooler's tricks, and a notification from one to the other."""
    channel = f"pgnotifier_doctor_{uuid.uuid4().hex}"
    with contextlib.ExitStack() as stack:
        try:
            one, two = (stack.enter_context(contextlib.closing(_connect(dsn))) for _ in range(2))
            one.prepare_threshold = two.prepare_threshold = None  # prepared statements are another trouble of poolers
            with _deadline(one, two):
                keeps = _session(one, two, channel)
        except psycopg.Error as error:
            text, remedy = advice.explain(error, dsn)
            yield Check("pooler", "failed", text, remedy if remedy and remedy != advice.WHERE else advice.POOLER)
            return
        yield keeps
        yield _guarded("delivery", dsn, lambda one, two: _round_trip(one, two, channel), one, two)


def _session(one: Conn, two: Conn, channel: str) -> Check:
    """Whether `one` keeps its session from one transaction to the next, while `two` holds a transaction open.

    A pooler in transaction mode gives `two` the server session that `one` has just used, and `one` another.
    """
    one.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
    pids = {_row(one, "SELECT pg_catalog.pg_backend_pid()")[0]}
    with two.transaction():
        two.execute("SELECT 1")
        pids.add(_row(one, "SELECT pg_catalog.pg_backend_pid()")[0])
        listening = {row[0] for row in one.execute("SELECT pg_catalog.pg_listening_channels()")}
    pids.add(_row(one, "SELECT pg_catalog.pg_backend_pid()")[0])
    if len(pids) > 1:
        return Check("pooler", "failed", "a pooler changes the session between transactions", advice.POOLER)
    if channel not in listening:
        return Check("pooler", "failed", "LISTEN does not outlive its transaction: a pooler resets it", advice.POOLER)
    if one.info.backend_pid not in pids:
        return Check("pooler", "ok", "a pooler keeps the session: LISTEN outlives its transaction")
    return Check("pooler", "ok", "none in the way: LISTEN outlives its transaction, the session stays the same")


def _round_trip(one: Conn, two: Conn, channel: str) -> Check:
    times = []
    for number in range(ROUNDS):
        began = monotonic()
        two.execute("SELECT pg_catalog.pg_notify(%s, %s)", (channel, str(number)))
        if not any(n.payload == str(number) for n in one.notifies(timeout=ARRIVAL, stop_after=1)):
            detail = f"sent from a second connection, not there within {ARRIVAL:g} s"
            return Check("delivery", "failed", detail, advice.POOLER)
        times.append((monotonic() - began) * 1000)
    took = median(times)
    detail = f"from a second connection to the first in {took:.1f} ms"
    return Check("delivery", "ok", detail, facts={"ms": round(took, 3)})


def _queue(conn: Conn) -> Check:
    (usage,) = _row(conn, "SELECT pg_catalog.pg_notification_queue_usage()")
    facts, detail = {"usage": usage}, f"{usage:.2%} of the notification queue is used"
    if usage < 0.1:
        return Check("queue", "ok", detail, facts=facts)
    return Check(
        "queue",
        "warning" if usage < 0.5 else "failed",
        f"{detail}; when it is full, every NOTIFY fails",
        "a listener holds it back: end the session with the oldest xact_start in pg_stat_activity "
        "(pg_terminate_backend), and have it read or commit",
        facts,
    )


# Compared here, not there: operators too are found by the search_path (guarantee 12).
_SEEN = """SELECT pid, state, wait_event, application_name, query, datname, pg_catalog.current_database(),
pg_catalog.pg_backend_pid() FROM pg_catalog.pg_stat_activity"""


def _seen(conn: Conn) -> list[tuple[int, bool, bool]]:
    """Other sessions of this database that seem to listen: pid, in an open transaction, does not read."""
    return [
        (pid, (state or "").startswith("idle in transaction"), wait_event == "ClientWrite")
        for pid, state, wait_event, name, query, database, here, own in conn.execute(_SEEN.encode())
        if database == here and pid != own
        if re.match(r"\s*(un)?listen\b", query or "", re.IGNORECASE)
        or (name == "pgnotifier" and "pg_notify(" not in (query or ""))
    ]


def _listeners(conn: Conn) -> Check:
    seen = _seen(conn)
    facts = {"pids": sorted(row[0] for row in seen)}
    stuck = [
        f"{pid} {what}"
        for pid, in_transaction, unread in sorted(seen)
        for what, so in (("is in an open transaction", in_transaction), ("does not read its socket", unread))
        if so
    ]
    if stuck:
        remedy = "a listener has to commit, and to read: else it gets nothing and holds the queue back"
        return Check("listeners", "warning", "; ".join(f"session {text}" for text in stuck), remedy, facts)
    if not seen:
        return Check(
            "listeners",
            "warning",
            "no other session that listens is to be seen",
            "fine while your application is not running; the server shows a session's last statement only, and that "
            "of other users' sessions to members of pg_read_all_stats",
            facts,
        )
    return Check("listeners", "ok", f"{len(seen)} session(s) that seem to listen", facts=facts)


def _version(conn: Conn) -> Check:
    number = conn.info.server_version
    (name,) = _row(conn, "SELECT pg_catalog.current_setting('server_version')")
    facts = {"server_version": number}
    if number >= 190000:
        return Check("version", "ok", f"PostgreSQL {name}", facts=facts)
    count = len(_seen(conn))
    detail = f"PostgreSQL {name}; before 19 every NOTIFY wakes every listening session of the database"
    remedy = "keep listening sessions few: one Notifier a process, or PostgreSQL 19"
    return Check("version", "ok" if count < CROWD else "warning", detail, remedy if count >= CROWD else None, facts)


def _tls(conn: Conn) -> Check:
    if conn.pgconn.ssl_in_use:
        return Check("tls", "ok", "in use", facts={"in_use": True})
    if _local(conn.info):
        return Check("tls", "ok", "not in use; the server is on this machine", facts={"in_use": False})
    remedy = "payloads and perhaps passwords can be read on the way: sslmode=require, or better verify-full"
    return Check("tls", "warning", "not in use", remedy, {"in_use": False})


def _local(info: psycopg.ConnectionInfo) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(info.hostaddr).is_loopback
    return info.host.startswith(("/", "@")) or info.host == "localhost"
