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
END_TIME = 0.25  # seconds for a send in another thread to end when all is closed
GIVE_UP_TIME = 0.1  # seconds for it to notice that it was given up
SEND_TIMEOUT = 10.0  # seconds for the whole of it

# A server process that says so, and has answered nothing before, has not committed: administrator command, crash or
# shutdown of the whole server, idle-session timeout. It puts its answer before the commit.
UNDONE = ("57P01", "57P02", "57P05")


def payload_text(payload: object) -> str:
    """What is sent or stored: a str as it is, anything else encoded. Raises `TypeError`, `ValueError`."""
    text = str.__str__(payload) if issubclass(type(payload), str) else encode(payload)
    if "\0" in text:
        raise ValueError(f"a payload must not hold NUL: {text!r:.100}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"a payload must not hold a lone surrogate: {text!r:.100}") from None
    return text


def payload_bytes(payload: object) -> bytes:
    """What goes over the wire. Raises `PayloadTooLong`, `TypeError`, `ValueError`."""
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

    Threads take turns. A call that interrupts another in the same thread does not wait for it, which would never
    end: the lock is reentrant, and the inner call, finding no idle connection, opens one.
    """

    def __init__(self, source: DbConf) -> None:
        self._source = source
        self._fresh()

    def _fresh(self) -> None:
        self._turn = threading.RLock()
        self._idle: deque[psycopg.Connection[Any]] = deque()  # one, or a few after calls that interrupted others
        self._tokens: list[CancelToken] = []  # the first one ends all sends since the last `close`

    def send(self, channel: str, payload: object, since: float | None = None) -> None:
        """NOTIFY, committed. Raises `PayloadTooLong`, `TypeError`, `ValueError`, `psycopg.OperationalError`.

        `since` (monotonic seconds) is when the caller began to wait, if earlier; ten seconds count from there.
        """
        data = payload_bytes(payload)
        deadline = (monotonic() if since is None else since) + SEND_TIMEOUT
        tokens, turn = self._tokens, self._turn
        held: list[bool] = []
        try:
            _take(turn, max(0.0, deadline - monotonic()), held)
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
                turn.release()

    def _send(self, channel: bytes, payload: bytes, tokens: list[CancelToken], deadline: float) -> None:
        """By the thread whose turn it is. With `UNDONE` as its `sqlstate`, an error says that nothing was sent."""
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
        """An idle connection that the server has not ended, or None."""
        while (conn := _pop(self._idle)) is not None:
            if not ended(conn):
                return conn
            conn.close()
        return None

    def close(self) -> None:
        """Close the connection. A send that is under way in another thread has a moment to end, and is given up."""
        tokens, self._tokens = self._tokens, []  # a send that began before does not keep its connection
        self.close_idle()
        turn = self._turn
        held: list[bool] = []
        try:
            _take(turn, END_TIME, held)
            if held == [False]:
                for token in tokens:
                    token.cancel()
                held.clear()
                _take(turn, GIVE_UP_TIME, held)
        finally:
            if held == [True]:
                turn.release()

    def close_idle(self) -> None:
        """Close what no send is using; does not wait."""
        while (conn := _pop(self._idle)) is not None:
            conn.close()

    def abandon(self) -> None:
        """In a forked child: forget the parent's connections, without closing them."""
        _kept.extend(self._idle)
        self._fresh()


def _take(turn: Any, seconds: float, held: list[bool]) -> None:
    """Put into `held` whether the lock could be had within `seconds`.

    In one call of C, so that Ctrl-C comes before both or after both: no lock is left held that nobody knows of.
    """
    held.extend(map(turn.acquire, (True,), (seconds,)))


def _pop(idle: deque[psycopg.Connection[Any]]) -> psycopg.Connection[Any] | None:
    try:
        return idle.pop()
    except IndexError:
        return None


_kept: list[Any] = []  # in a forked child: never collected, for its clean-up is the parent's
