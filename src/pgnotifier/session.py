"""One connection to PostgreSQL, for that connection's life: open, listen, drain, abort, close.

Touched by one thread at a time: the listener thread while it runs, the changing caller between two listener
threads. Only `abort` may be called from any thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import error_from_result

from .errors import CannotListen

DbConf = str | Mapping[str, Any]
Source = DbConf | Callable[[], DbConf]

ANSWER_TIMEOUT = 10.0  # seconds for the server to answer a change of channels (contract 10)


def connect(source: Source) -> psycopg.Connection[Any]:
    """Connect as the user says, with the library's own settings added; the user's mapping stays as it is."""
    conf = source() if callable(source) else source
    params = conninfo_to_dict(conf) if isinstance(conf, str) else dict(conf)
    params["client_encoding"] = "UTF8"
    params.setdefault("fallback_application_name", "pgnotifier")
    if not _set_elsewhere("connect_timeout", "PGCONNECT_TIMEOUT", params):
        params["connect_timeout"] = 10
    params["autocommit"] = True
    return psycopg.connect(**params)


def _set_elsewhere(name: str, variable: str, params: Mapping[str, Any]) -> bool:
    # A service file may set it too, and libpq does not say so: leave it the last word.
    return name in params or variable in os.environ or "service" in params or "PGSERVICE" in os.environ


def quote(name: str) -> str:
    """A channel's name as a quoted identifier: exactly as given, and no SQL can be in it."""
    return '"' + name.replace('"', '""') + '"'


class Session:
    """A connection and the set of channels that the server was told to listen to."""

    def __init__(self, source: Source) -> None:
        """Connect. Raises `psycopg.OperationalError`, and leaves nothing open then."""
        self._conn = connect(source)
        self.pid = self._conn.info.backend_pid
        self.fileno = self._conn.fileno()
        self.listened: frozenset[str] = frozenset()
        self._arrived: list[psycopg.Notify] = []  # with a command's answer, before the next drain
        # A second handle to the same socket, so that abort() needs nothing of the connection.
        self._socket = socket.socket(fileno=os.dup(self.fileno))

    def listen(self, wanted: Iterable[str]) -> None:
        """Make the server listen to `wanted` and nothing else: the difference, in one round trip.

        All or nothing: after a refusal (`psycopg.Error`, the session still open) the channels are as before.
        """
        wanted = frozenset(wanted)
        commands = [f"LISTEN {quote(name)}" for name in sorted(wanted - self.listened)]
        commands += [f"UNLISTEN {quote(name)}" for name in sorted(self.listened - wanted)]
        if commands:
            self._execute(";".join(commands).encode())
            self.listened = wanted

    def drain(self) -> list[psycopg.Notify]:
        """All notifications that have arrived, in order; does not wait. Raises when the connection is lost."""
        batch, self._arrived = self._arrived, []
        batch += self._conn.notifies(timeout=0)
        # What a command read beyond its own answer lies in libpq's buffer while the socket is silent.
        self._take(batch)
        if not batch and self._conn.pgconn.status == pq.ConnStatus.BAD:
            raise psycopg.OperationalError("the connection is lost")
        return batch

    def abort(self) -> None:
        """End whatever waits for the server, at once. From any thread; the session is lost then."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()
        self._conn.close()

    def abandon(self) -> None:
        """In a forked child: drop the handle. The connection knows which process made it, and closes nothing."""
        self._socket.close()

    def _take(self, into: list[psycopg.Notify]) -> None:
        pgconn = self._conn.pgconn
        while (n := pgconn.notifies()) is not None:
            into.append(psycopg.Notify(n.relname.decode(), n.extra.decode(), n.be_pid))

    def _execute(self, sql: bytes) -> None:
        try:
            self._conn.pgconn.send_query(sql)
            answer(self._conn, monotonic() + ANSWER_TIMEOUT, self.abort)
        finally:
            if self._conn.pgconn.status == pq.ConnStatus.OK:
                self._take(self._arrived)


def answer(conn: psycopg.Connection[Any], deadline: float, late: Callable[[], None]) -> None:
    """Wait for the whole answer to a query that was sent, until `deadline` (monotonic); then `late()` is called.

    psycopg's own wait has no deadline that a silent network cannot outlast. Raises what the server refused, or
    `psycopg.OperationalError` where there is no answer.
    """
    pgconn = conn.pgconn
    refused: psycopg.Error | None = None
    poll = select.poll()
    while True:
        unsent = pgconn.flush()
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                if pgconn.status == pq.ConnStatus.BAD:
                    raise psycopg.OperationalError("the connection was lost") from refused
                if refused is not None:
                    raise refused
                return
            if result.status == pq.ExecStatus.FATAL_ERROR and refused is None:
                refused = _refusal(result)
        poll.register(pgconn.socket, select.POLLIN | (select.POLLOUT if unsent else 0))
        left = deadline - monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            late()
            raise psycopg.OperationalError(f"no answer from the server within {ANSWER_TIMEOUT:g} seconds")
        pgconn.consume_input()


def _refusal(result: Any) -> psycopg.Error:
    error = error_from_result(result, encoding="utf-8")
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction | psycopg.errors.ObjectNotInPrerequisiteState):
        return CannotListen(f"{error}; a standby cannot listen: connect to the primary (target_session_attrs)")
    return error
