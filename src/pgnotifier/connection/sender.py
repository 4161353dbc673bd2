"""One connection for sending, opened when first used (guarantee 13)."""

from __future__ import annotations

import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg

from ..errors import PayloadTooLong
from ..payload import encode
from .connect import connect
from .waiting import CancelToken, answer, ended

if TYPE_CHECKING:
    from ..types import DbConf

MAX_PAYLOAD_BYTES = 7999
END_TIME = 0.25  # seconds that `close` waits for a send in another thread
GIVE_UP_TIME = 0.1  # seconds that it then waits for the cancelled send
SEND_TIMEOUT = 10.0  # seconds for a whole send

# A server process that ends with one of these, before any answer, has not committed, because it answers before it
# commits: administrator command, crash or shutdown of the whole server, idle-session timeout.
UNDONE = ("57P01", "57P02", "57P05")


def payload_text(payload: object) -> str:
    """Return the text to send or store: a str as it is, anything else encoded. Raises `TypeError`, `ValueError`."""
    text = str.__str__(payload) if issubclass(type(payload), str) else encode(payload)
    if "\0" in text:
        raise ValueError(f"a payload must not hold NUL: {text!r:.100}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"a payload must not hold a lone surrogate: {text!r:.100}") from None
    return text


def payload_bytes(payload: object) -> bytes:
    """Return the bytes to send. Raises `PayloadTooLong`, `TypeError`, `ValueError`."""
    text = payload_text(payload)
    data = text.encode()
    if len(data) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLong(
            f"a payload must be at most {MAX_PAYLOAD_BYTES} bytes in UTF-8, not {len(data)}; send a key by which "
            f"subscribers read the rest: {text!r:.100}"
        )
    return data


class Sender:
    """Sends one notification at a time; safe from any thread, signal handler and finalizer.

    A thread holds the lock while it sends. The lock is reentrant, because a call that interrupts another in the same
    thread must not wait for it: it finds no idle connection, and opens one.
    """

    def __init__(self, source: DbConf) -> None:
        self._source = source
        self._fresh()

    def _fresh(self) -> None:
        self._lock = threading.RLock()
        self._idle: deque[psycopg.Connection[Any]] = deque()  # one, or more after calls that interrupted others
        self._tokens: list[CancelToken] = []  # the first one ends all sends since the last `close`

    def send(self, channel: str, payload: object, since: float | None = None) -> None:
        """Send a notification; return when it is committed. Raises as `Notifier.notify`.

        `since` (monotonic seconds) is when the caller began to wait, if earlier; ten seconds count from there.
        """
        data = payload_bytes(payload)
        deadline = (monotonic() if since is None else since) + SEND_TIMEOUT
        tokens, lock = self._tokens, self._lock
        held: list[bool] = []
        try:
            _take(lock, max(0.0, deadline - monotonic()), held)
            if not held[0] or monotonic() >= deadline:
                raise psycopg.OperationalError(f"other threads were sending for {SEND_TIMEOUT:g} seconds")
            if not tokens:
                tokens.append(CancelToken())
            try:
                self._send(channel.encode(), data, tokens, deadline)
            except psycopg.OperationalError as error:
                if error.sqlstate not in UNDONE:
                    raise
                self._send(channel.encode(), data, tokens, deadline)
        finally:
            if held == [True]:
                lock.release()

    def _send(self, channel: bytes, payload: bytes, tokens: list[CancelToken], deadline: float) -> None:
        """Send once, under the lock. If an error's `sqlstate` is one of `UNDONE`, nothing was sent."""
        conn: psycopg.Connection[Any] | None = None
        intact = False
        try:
            conn = self._take_idle() or connect(self._source, tokens[0], deadline)
            conn.pgconn.send_query_params(b"SELECT pg_catalog.pg_notify($1, $2)", [channel, payload])
            answer(conn, tokens[0], deadline, SEND_TIMEOUT)
            intact = True
        except psycopg.DataError:
            intact = True  # the server refused this one; the connection is as it was
            raise
        finally:
            if conn is not None:
                if intact and tokens is self._tokens and not self._idle:
                    self._idle.append(conn)
                else:
                    conn.close()

    def _take_idle(self) -> psycopg.Connection[Any] | None:
        """Return an idle connection that the server has not ended, or None."""
        while (conn := _pop(self._idle)) is not None:
            if not ended(conn):
                return conn
            conn.close()
        return None

    def close(self) -> None:
        """Close the connection. Wait a moment for a send in another thread, then cancel it. Any thread."""
        tokens, self._tokens = self._tokens, []  # a send that began before does not keep its connection
        self.close_idle()
        lock = self._lock
        held: list[bool] = []
        try:
            _take(lock, END_TIME, held)
            if held == [False]:
                for token in tokens:
                    token.cancel()
                held.clear()
                _take(lock, GIVE_UP_TIME, held)
        finally:
            if held == [True]:
                lock.release()

    def close_idle(self) -> None:
        """Close connections that no send uses. Does not wait."""
        while (conn := _pop(self._idle)) is not None:
            conn.close()

    def abandon(self) -> None:
        """Forget the parent's connections without closing them. In a forked child."""
        _kept.extend(self._idle)
        self._fresh()


def _take(lock: Any, seconds: float, held: list[bool]) -> None:
    """Append to `held` whether the lock was acquired within `seconds`.

    One call of C does both, so that Ctrl-C never comes in between and leaves the lock held unnoticed.
    """
    held.extend(map(lock.acquire, (True,), (seconds,)))


def _pop(idle: deque[psycopg.Connection[Any]]) -> psycopg.Connection[Any] | None:
    try:
        return idle.pop()
    except IndexError:
        return None


_kept: list[Any] = []  # keeps the parent's connections alive in a forked child, so that none is closed there
