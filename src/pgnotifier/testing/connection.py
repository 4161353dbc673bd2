"""A connection to a server in memory: as much of psycopg's `Connection` and `pq.PGconn` as the library uses.

One thread at a time uses the near side, as with libpq. The server uses the far side, under its lock. A socket pair
makes the near side readable when something has come.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import psycopg
from psycopg import Notify, pq

SQLSTATE, PRIMARY = pq.DiagnosticField.SQLSTATE, pq.DiagnosticField.MESSAGE_PRIMARY


class Result:
    """The result of a statement: a row, or an error."""

    def __init__(self, *row: object, error: tuple[str, str] | None = None) -> None:
        self.status = pq.ExecStatus.TUPLES_OK if error is None else pq.ExecStatus.FATAL_ERROR
        self._row, self._error = row, error

    def get_value(self, row: int, column: int) -> bytes:
        return str(self._row[column]).encode()

    def error_field(self, field: pq.DiagnosticField) -> bytes | None:
        if self._error is None:
            return None
        return {SQLSTATE: self._error[0].encode(), PRIMARY: self._error[1].encode()}.get(field)

    def get_error_message(self, encoding: str = "utf-8") -> str:
        return self._error[1] if self._error is not None else ""


class Backend(Protocol):
    """The part of a server that its connections use."""

    lock: Any
    frozen: bool

    def execute(self, conn: PGconn, sql: bytes, params: Sequence[bytes] | None) -> list[Result]: ...
    def closed(self, conn: PGconn) -> None: ...


class PGconn:
    """Stands for `pq.PGconn`. `channels` are those that it listens to, `door` is the `Door` that it came by."""

    ssl_in_use = False
    user: bytes = b"test"
    host: bytes = b"memory"
    port: bytes = b"0"
    db: bytes = b"test"

    def __init__(self, backend: Backend, pid: int, door: object) -> None:
        self._backend = backend
        self.backend_pid: int = pid
        self.door: object = door
        self.status: pq.ConnStatus = pq.ConnStatus.OK
        self.channels: dict[str, bool] = {}
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)
        self.socket: int = self._near.fileno()
        self._inode = os.fstat(self.socket).st_ino
        self._rung = False
        self._arrived: deque[Notify] = deque()
        self._query: tuple[bytes, Sequence[bytes] | None] | None = None
        self._results: deque[Result] = deque()
        self._ended = ""

    # -- the server's side, under its lock ------------------------------------------------------------------

    def push(self, notifications: Sequence[Notify]) -> None:
        self._arrived.extend(notifications)
        if not self._backend.frozen:
            self.ring()

    def end(self, error: str) -> None:
        """End the connection, after what was sent on it."""
        self._ended = self._ended or error
        self.ring()

    def ring(self) -> None:
        """Make the near side readable."""
        if not self._rung:
            self._rung = True
            with contextlib.suppress(OSError):
                self._far.send(b"!")

    # -- the client's side ----------------------------------------------------------------------------------

    def send_query(self, sql: bytes) -> None:
        self._send(sql, None)

    def send_query_params(self, sql: bytes, params: Sequence[bytes]) -> None:
        self._send(sql, params)

    def _send(self, sql: bytes, params: Sequence[bytes] | None) -> None:
        with self._backend.lock:
            self._fail_if_ended()
            self._query = (sql, params)
            self._results.clear()
            if not self._backend.frozen:
                self.ring()  # the answer

    def flush(self) -> int:
        return 0

    def is_busy(self) -> int:
        with self._backend.lock:
            if self._query is not None and not self._ended:
                if self._backend.frozen:
                    return 1
                query, self._query = self._query, None
                self._results.extend(self._backend.execute(self, *query))
            return 0

    def get_result(self) -> Result | None:
        return self._results.popleft() if self._results else None

    def consume_input(self) -> None:
        with self._backend.lock:
            self.hear()
            if not self._arrived:
                self._fail_if_ended()

    def hear(self) -> None:
        if self._rung and not self._ended:  # an end stays readable
            self._rung = False
            with contextlib.suppress(OSError):
                self._near.recv(16)

    def notifies(self) -> pq.misc.PGnotify | None:
        with self._backend.lock:
            if not self._arrived or self._backend.frozen:
                return None
            n = self._arrived.popleft()
        return pq.misc.PGnotify(n.channel.encode(), n.pid, n.payload.encode())

    def take(self) -> list[Notify]:
        """Return all that has arrived; raise if nothing is left and the server has ended the connection."""
        with self._backend.lock:
            self.hear()
            if self._backend.frozen and not self._ended:
                return []
            if not self._arrived:
                self._fail_if_ended()
            batch = list(self._arrived)
            self._arrived.clear()
            return batch

    def finish(self) -> None:
        with self._backend.lock:
            self.status = pq.ConnStatus.BAD
            self._arrived.clear()
            self._near.close()
            self._far.close()
            self._backend.closed(self)

    def forked(self) -> None:
        """Close a forked child's copies. The near side's number may be closed, and be another file's."""
        self._far.close()
        number = self._near.detach()
        with contextlib.suppress(OSError):
            if os.fstat(number).st_ino == self._inode:
                os.close(number)

    def _fail_if_ended(self) -> None:
        if self._ended or self.status == pq.ConnStatus.BAD:
            self.status = pq.ConnStatus.BAD
            raise psycopg.OperationalError(self._ended or "the connection is closed")


class Connection:
    """Stands for `psycopg.Connection`."""

    reason: psycopg.OperationalError | None = None

    def __init__(self, pgconn: PGconn) -> None:
        self.pgconn = pgconn

    def fileno(self) -> int:
        return self.pgconn.socket

    def notifies(self, *, timeout: float | None = None) -> list[Notify]:
        return self.pgconn.take()

    def close(self) -> None:
        self.pgconn.finish()
