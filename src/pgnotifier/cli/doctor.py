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
from operator import itemgetter
from statistics import median
from time import monotonic
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from ..connection.connect import connect
from ..connection.waiting import CancelToken
from . import advice
from .views import Check

DEADLINE = 10.0  # seconds for the server to answer a check
ARRIVAL = 5.0  # seconds for a notification to arrive
ROUNDS = 5  # of the round trip; the median counts
WARNING_TIME = 5.5  # seconds for the server to warn that the queue fills, which it does once in five
CROWD = 50  # listening sessions from which waking all of them for every NOTIFY begins to cost

_NOTIFY = "SELECT pg_catalog.pg_notify(%s, %s)"

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
    with contextlib.closing(CancelToken()) as token:
        return connect(make_conninfo(dsn, fallback_application_name="pgnotifier doctor"), token)


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
        two.execute(_NOTIFY, (channel, str(number)))
        if not any(n.payload == str(number) for n in one.notifies(timeout=ARRIVAL, stop_after=1)):
            detail = f"sent from a second connection, not there within {ARRIVAL:g} s"
            return Check("delivery", "failed", detail, advice.QUEUE if _filling(two) else advice.POOLER)
        times.append((monotonic() - began) * 1000)
    took = median(times)
    detail = f"from a second connection to the first in {took:.1f} ms"
    return Check("delivery", "ok", detail, facts={"ms": round(took, 3)})


def _filling(conn: Conn) -> bool:
    return bool(_row(conn, "SELECT pg_catalog.pg_notification_queue_usage()")[0] >= 0.1)


def _queue(conn: Conn) -> Check:
    (usage,) = _row(conn, "SELECT pg_catalog.pg_notification_queue_usage()")
    facts: dict[str, Any] = {"usage": usage}
    detail = f"{usage:.2%} of the notification queue is used"
    if usage < 0.1:
        return Check("queue", "ok", detail, facts=facts)
    detail += "; when it is full, every NOTIFY fails"
    pid = _named_by_the_server(conn) if usage >= 0.5 else None
    holders = conn.execute(_HOLDERS.encode()).fetchall()
    holder = next((row for row in holders if row[0] == pid), holders[0] if holders and pid is None else None)
    if holder is not None:
        pid, user, database, application, state, since, listens = holder
        sure = "holds it back" if listens or usage >= 0.5 else "may hold it back: its transaction is the oldest"
        who = ", ".join(str(part) for part in (user, database, application) if part)
        detail += f"; session {pid} ({who}) {sure}; {state or 'not reading'} since {since:%Y-%m-%d %H:%M:%S%z}"
    elif pid is not None:
        detail += f"; session {pid} holds it back"
    remedy = "end that session" if pid else "end the session with the oldest xact_start in pg_stat_activity"
    remedy += f": SELECT pg_terminate_backend({pid if pid else 'pid'}); then have that listener commit, and read"
    if not pid:
        remedy += "; members of pg_read_all_stats see all sessions"
    facts |= {"pid": pid} if pid else {}
    return Check("queue", "warning" if usage < 0.5 else "failed", detail, remedy, facts)


def _named_by_the_server(conn: Conn) -> int | None:
    """The session that the server itself names, in a warning that it gives once in five seconds."""
    found: list[int] = []

    def heard(notice: psycopg.errors.Diagnostic) -> None:
        found.extend(map(int, re.findall(r"PID\D*(\d+)", notice.message_detail or "")))

    conn.add_notice_handler(heard)
    end = monotonic() + WARNING_TIME
    while not found and monotonic() < end:
        with contextlib.suppress(psycopg.errors.ProgramLimitExceeded):  # it is full, and the warning comes first
            conn.execute(_NOTIFY, ("pgnotifier_doctor", ""))
        list(conn.notifies(timeout=0.2))
    conn.remove_notice_handler(heard)
    return found[0] if found else None


# Operators are named with their schema too: a search_path may put others before them.
_LISTENS = """(query OPERATOR(pg_catalog.~*) '^\\s*(un)?listen\\M'
OR application_name OPERATOR(pg_catalog.=) 'pgnotifier'
AND query OPERATOR(pg_catalog.!~) '^SELECT (pg_catalog[.])?pg_notify')"""

_SEEN = f"""SELECT pid, state, wait_event FROM pg_catalog.pg_stat_activity
WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
AND pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid() AND {_LISTENS}"""

# Whoever has had a transaction open, or has not read, for the longest time; those that seem to listen first.
_HOLDERS = f"""SELECT pid, usename, datname, application_name, state, COALESCE(xact_start, state_change) AS since,
COALESCE({_LISTENS} OR wait_event OPERATOR(pg_catalog.=) 'ClientWrite', false) AS listens
FROM pg_catalog.pg_stat_activity
WHERE pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid()
AND backend_type OPERATOR(pg_catalog.=) 'client backend'
AND (xact_start IS NOT NULL OR wait_event OPERATOR(pg_catalog.=) 'ClientWrite')
ORDER BY listens DESC, since"""


def _listeners(conn: Conn) -> Check:
    seen = conn.execute(_SEEN.encode()).fetchall()
    facts = {"pids": sorted(row[0] for row in seen)}
    stuck = [
        f"{pid} {what}"
        for pid, state, wait_event in sorted(seen, key=itemgetter(0))
        for what, so in (
            ("is in an open transaction", (state or "").startswith("idle in transaction")),
            ("does not read its socket", wait_event == "ClientWrite"),
        )
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
    count = len(conn.execute(_SEEN.encode()).fetchall())
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
