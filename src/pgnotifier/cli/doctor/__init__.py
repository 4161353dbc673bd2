"""`pgnotifier doctor`: finds everything that keeps LISTEN from working in a database, and says what to do about it.

It listens to a channel of its own and notifies on it, and changes nothing in the database. Main thread only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from time import monotonic

import psycopg

from .. import advice
from ..views import Check
from . import settings
from .asking import Conn, ask, guarded, open_session
from .delivery import delivering
from .functions import functions
from .journal import journal
from .services import Service, service_named
from .sessions import commits, connections, listeners, queue

# Each check has a session for itself while it runs, and `asking.DEADLINE` seconds. Add one here.
CHECKS: list[tuple[str, Callable[[Conn], Check]]] = [
    ("queue", queue),
    ("commits", commits),
    ("listeners", listeners),
    ("connections", connections),
    ("timeouts", settings.timeouts),
    ("functions", functions),
    ("journal", journal),
    ("version", settings.version),
    ("tls", settings.tls),
]


def examine(dsn: str) -> Iterator[Check]:
    """Yield the checks one after another. After a failure, leave out those that make no sense."""
    began = monotonic()
    try:
        conn = open_session(dsn)
    except psycopg.Error as error:
        yield Check("reachable", "failed", *advice.explain(error, dsn))
        return
    with contextlib.closing(conn):
        took = (monotonic() - began) * 1000
        yield Check("reachable", "ok", f"connected in {took:.0f} ms", facts={"ms": round(took, 3)})
        yield guarded("database", dsn, settings.database, conn)
        service: Service | None = None

        def named(conn: Conn) -> Check:
            nonlocal service
            ((version,),) = ask(conn, "SELECT version()")
            service = service_named(conn.info.host, conn.info.port, version)
            return settings.service(service)

        yield guarded("service", dsn, named, conn)
        role = guarded("primary", dsn, settings.primary, conn)
        yield role
        if role.verdict == "ok":
            yield from delivering(dsn, service)
        for name, check in CHECKS:
            yield guarded(name, dsn, check, conn)
