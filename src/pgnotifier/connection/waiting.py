"""Waiting for the server with a deadline, in a way that any thread can end; and the server's reason for an end.

Every function runs on the thread that owns the connection, without a lock.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any

import psycopg
from psycopg import pq
from psycopg.errors import Diagnostic, error_from_result

# A forked child would share an epoll descriptor, and its clean-up would silence the parent; poll shares nothing.
PortableSelector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)


GIVEN_UP = "given up: the notifier was stopped"


class Abandoned(psycopg.OperationalError):
    """A wait was given up because the notifier is being stopped."""


class CancelToken:
    """Ends every present and later wait that uses it. Any thread may cancel it."""

    def __init__(self) -> None:
        self._waiting_end, self._waking_end = socket.socketpair()
        self._waking_end.setblocking(False)
        self.cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True
        with contextlib.suppress(OSError):  # closed already
            self._waking_end.send(b"!")  # never read, so it also ends later waits

    def wait(self, deadline: float | None, fd: int | None = None, events: int = selectors.EVENT_READ) -> bool:
        """Wait for `fd` until `deadline` (monotonic seconds); return True if it is ready. Raises `Abandoned`."""
        ready: Any = None
        with contextlib.suppress(ValueError), PortableSelector() as selector:  # a socket is closed
            selector.register(self._waiting_end, selectors.EVENT_READ)
            if fd is not None:
                selector.register(fd, events)
            if not self.cancelled:
                ready = selector.select(None if deadline is None else max(0.0, deadline - monotonic()))
        if self.cancelled:
            raise Abandoned(GIVEN_UP)
        return bool(ready)

    def close(self) -> None:
        self.cancelled = True
        self._waiting_end.close()
        self._waking_end.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # not made, or the interpreter ends
            self.close()


class Connection(psycopg.Connection[Any]):
    """A connection that keeps the server's reason for ending the session."""

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        super().__init__(pgconn)
        self.autocommit = True
        self._said: deque[psycopg.OperationalError] = deque(maxlen=1)
        self.add_notice_handler(partial(_keep, self._said))  # no method of `self`: that would be a reference cycle

    def __del__(self, *_: Any) -> None:
        """Never warn: libpq's handle closes an orphaned connection, but leaves a parent's open in a forked child."""

    @property
    def reason(self) -> psycopg.OperationalError | None:
        """The server's reason for ending the session, or None."""
        return self._said[0] if self._said else None


def _keep(said: deque[psycopg.OperationalError], notice: Diagnostic) -> None:
    # An idle session gets a notice: FATAL, or WARNING if the whole server stops at once.
    state = notice.sqlstate or ""
    if notice.severity_nonlocalized in ("FATAL", "PANIC") or state.startswith("57P"):
        said.append(_loss(notice.message_primary, state))


def _loss(text: str | None, state: str | None = None) -> psycopg.OperationalError:
    error = psycopg.OperationalError(" ".join((text or "closed by the server").split()))
    error.sqlstate = state or None
    return error


def answer(
    conn: psycopg.Connection[Any],
    token: CancelToken,
    deadline: float,
    limit: float,
    after_read: Callable[[], object] = lambda: None,
) -> list[Any]:
    """Wait for the whole answer to a query that was sent, until `deadline` (monotonic), and return its results.

    A server that sends notifications all the while may take longer: it answers after what waits in its queue, and a
    new connection would have to read that too. `after_read()` is called whenever something has come.
    Raises the server's error if it refuses; `psycopg.OperationalError` if the connection is lost or silent for
    `limit` seconds, which the text names; `Abandoned`. After the last two the connection can't be used any more.
    """
    pgconn = conn.pgconn
    results: list[Any] = []
    while True:
        try:
            unsent = pgconn.flush()
            while not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    return checked(conn, results)
                results.append(result)
                if _is_fatal(result):
                    return checked(conn, results)
        except psycopg.OperationalError as error:
            raise lost(conn, error, results) from None
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if unsent else 0)
        if not token.wait(deadline, pgconn.socket, events):
            raise psycopg.OperationalError(f"no answer from the server within {limit:g} seconds")
        deadline = monotonic() + limit
        try:
            # A rest may wait in the TLS layer while the socket is silent.
            for _ in range(3 if pgconn.ssl_in_use else 1):
                pgconn.consume_input()
        except psycopg.OperationalError as error:
            raise lost(conn, error, results) from None
        after_read()


def checked(conn: psycopg.Connection[Any], results: list[Any]) -> list[Any]:
    """Return `results`, or raise the error that they hold."""
    refused = [r for r in results if r.status == pq.ExecStatus.FATAL_ERROR]
    if conn.pgconn.status == pq.ConnStatus.BAD or any(map(_is_fatal, refused)):
        raise lost(conn, _loss(None), results)
    if refused:
        raise error_from_result(refused[0], encoding="utf-8")
    return results


def lost(
    conn: psycopg.Connection[Any], error: psycopg.OperationalError, results: Sequence[Any] = ()
) -> psycopg.OperationalError:
    """Return the server's own reason for the end of the session, else `error`.

    Its `sqlstate` is the reason's, unless a part of the answer came before (in `results` or libpq's buffer): then a
    transaction may have been committed, and there is none.
    """
    results = list(results)
    if conn.pgconn.status == pq.ConnStatus.BAD:  # else this would block
        with contextlib.suppress(psycopg.Error):
            while (result := conn.pgconn.get_result()) is not None:
                results.append(result)
    fatal = next((r for r in results if _is_fatal(r)), None)
    if fatal is not None:
        state = (fatal.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        text = (fatal.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode(errors="replace")
        reason = _loss(text, state)
    else:
        reason = getattr(conn, "reason", None) or error
    if any(r.status != pq.ExecStatus.FATAL_ERROR for r in results):
        return _loss(str(reason))
    return reason


def ended(conn: psycopg.Connection[Any]) -> bool:
    """Return True if the server has ended an idle connection, or announces it. Does not wait."""
    try:
        conn.pgconn.consume_input()
        conn.pgconn.is_busy()  # makes libpq parse what has come: perhaps a notice
    except psycopg.Error:
        return True
    return getattr(conn, "reason", None) is not None


def _is_fatal(result: Any) -> bool:
    return result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED) in (b"FATAL", b"PANIC")
