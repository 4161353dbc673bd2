"""Connections and queries of `doctor`, each with a deadline. Main thread only."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from ...connection.connect import connect
from ...connection.waiting import CancelToken
from .. import advice
from ..views import Check

DEADLINE = 10.0  # seconds for the server to answer a check

Conn = psycopg.Connection[Any]


def open_session(dsn: str, **changes: str) -> Conn:
    """Connect to `dsn` with `changes`. Raises `psycopg.Error`.

    The sessions don't use the library's own application name, because the check `listeners` searches for it.
    """
    with contextlib.closing(CancelToken()) as token:
        conn = connect(make_conninfo(dsn, fallback_application_name="pgnotifier doctor", **changes), token)
    conn.prepare_threshold = None  # poolers have other problems with prepared statements
    return conn


def ask(conn: Conn, query: str) -> list[tuple[Any, ...]]:
    """Run `query` with `pg_catalog` first in the search_path, and return its rows.

    Both statements are one message, which the server runs as one transaction. The setting ends with it, so no pooler
    hands it to another client, not even in statement mode.
    """
    cursor = conn.execute(f"SET LOCAL search_path TO pg_catalog, pg_temp; {query}".encode())
    cursor.nextset()
    return cursor.fetchall()


def guarded(name: str, dsn: str, check: Callable[..., Check], *conns: Conn) -> Check:
    """Return `check(*conns)`, or a failed check with the error that ended it."""
    try:
        with deadline(*conns):
            return check(*conns)
    except psycopg.Error as error:
        return Check(name, "failed", *advice.explain(error, dsn))


@contextlib.contextmanager
def deadline(*conns: Conn) -> Iterator[None]:
    """Cut off the connections if the block takes too long: a query waits without limit on a silent network."""
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
