"""`doctor`'s checks of delivery: a pooler's effect on a session, and a notification from another session."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from statistics import median
from time import monotonic

import psycopg
from psycopg import sql

from .. import advice
from ..views import Check
from .asking import Conn, deadline, guarded, open_session
from .services import Service, pooler_behind

ARRIVAL = 5.0  # seconds for a notification to arrive
ROUNDS = 5  # of the round trip; the median counts

_CLOG = "58P01"  # the commit log was truncated, and the queue still points into it
_PID = "SELECT pg_catalog.pg_backend_pid()"


def delivering(dsn: str, service: Service | None) -> Iterator[Check]:
    """Yield two checks on two new sessions: `pooler`, and `delivery` from one session to the other."""
    channel = f"pgnotifier_doctor_{uuid.uuid4().hex}"
    with contextlib.ExitStack() as stack:
        try:
            one, two = (stack.enter_context(contextlib.closing(open_session(dsn))) for _ in range(2))
            with deadline(one, two):
                pooled, trouble = _session(one, two, channel)
        except psycopg.Error as error:
            text, remedy = advice.explain(error, dsn)
            if error.sqlstate == _CLOG:
                remedy = f"{remedy}, and so does the check `queue` below: run doctor again"
                yield Check("delivery", "failed", f"LISTEN fails: {text}", remedy)
                return
            if service is None and remedy == advice.POOLER:
                service = pooler_behind(dsn)
            if service is not None:
                remedy = service.remedy
            elif remedy in (None, advice.WHERE, advice.SILENT):
                remedy = advice.POOLER
            yield Check("pooler", "failed", text, remedy)
            return
        if pooled and service is None:
            service = pooler_behind(dsn)
        remedy = advice.POOLER if service is None else service.remedy
        yield _pooler(pooled, trouble, service, remedy)
        if not trouble:
            yield guarded("delivery", dsn, lambda one, two: _round_trip(one, two, channel, remedy), one, two)


def _session(one: Conn, two: Conn, channel: str) -> tuple[bool, str]:
    """Return True if a pooler is in between, and its effect on a LISTEN of `one` ("" for none).

    A pooler in transaction mode gives `two` the server session that `one` has just used, and `one` another.
    """
    one.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
    pids = {_pid(one)}
    with two.transaction():
        two.execute("SELECT 1")
        pids.add(_pid(one))
        listening = {row[0] for row in one.execute("SELECT pg_catalog.pg_listening_channels()")}
    pids.add(_pid(one))
    if len(pids) > 1:
        return True, "changes the session between transactions"
    if channel not in listening:
        return True, "resets the session: LISTEN does not outlive its transaction"
    return one.info.backend_pid not in pids, ""


def _pid(conn: Conn) -> int:
    (pid,) = conn.execute(_PID).fetchone() or (0,)
    return int(pid)


def _pooler(pooled: bool, trouble: str, service: Service | None, remedy: str) -> Check:
    name = "a pooler" if service is None else service.name
    if trouble:
        return Check("pooler", "failed", f"{name} {trouble}", remedy, {"service": service and service.name})
    if pooled:
        detail = f"{name} keeps the session: LISTEN outlives its transaction"
        return Check("pooler", "ok", detail, facts={"service": service and service.name})
    return Check("pooler", "ok", "none in the way: LISTEN outlives its transaction, the session stays the same")


def _round_trip(one: Conn, two: Conn, channel: str, remedy: str) -> Check:
    times = []
    for number in range(ROUNDS):
        began = monotonic()
        two.execute("SELECT pg_catalog.pg_notify(%s, %s)", (channel, str(number)))
        if not any(n.payload == str(number) for n in one.notifies(timeout=ARRIVAL, stop_after=1)):
            detail = f"sent from a second connection, not there within {ARRIVAL:g} s"
            return Check("delivery", "failed", detail, advice.QUEUE if _filling(two) else remedy)
        times.append((monotonic() - began) * 1000)
    took = median(times)
    detail = f"from a second connection to the first in {took:.1f} ms"
    return Check("delivery", "ok", detail, facts={"ms": round(took, 3)})


def _filling(conn: Conn) -> bool:
    (usage,) = conn.execute("SELECT pg_catalog.pg_notification_queue_usage()").fetchone() or (0.0,)
    return float(usage) >= 0.1
