"""One connection for sending, opened when first used (contract 13)."""

from __future__ import annotations

import contextlib
import selectors
import threading
from time import monotonic
from typing import Any

import psycopg

from .errors import PayloadTooLong
from .payload import encode
from .types import DbConf
from .wire import Breaker, PortableSelector, answer, connect

MAX_PAYLOAD_BYTES = 7999
END_TIME = 0.5  # seconds for a send in another thread to end when all is closed
GIVE_UP_TIME = 0.2  # seconds for it to notice that it was given up
SEND_TIMEOUT = 10.0  # seconds for the whole of it


def payload_bytes(payload: object) -> bytes:
    """What goes over the wire: a str as it is. Raises `PayloadTooLong`, `TypeError`, `ValueError`."""
    text = str.__str__(payload) if issubclass(type(payload), str) else encode(payload)
    if "\0" in text:
        raise ValueError(f"a payload must not hold NUL: {text!r:.100}")
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"a payload must not hold a lone surrogate: {text!r:.100}") from None
    if len(data) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLong(
            f"a payload must be at most {MAX_PAYLOAD_BYTES} bytes in UTF-8, not {len(data)}; send a key by which "
            f"subscribers read the rest: {text!r:.100}"
        )
    return data


class Sender:
    """Sends one notification at a time; safe from any thread."""

    _breaker: Breaker | None
    _lock: Any
    _turn: threading.Condition
    _busy: bool

    def __init__(self, source: DbConf) -> None:
        self._source = source
        self._conn: psycopg.Connection[Any] | None = None
        self._fresh()

    def send(self, channel: str, payload: object) -> None:
        """NOTIFY, committed. Raises `PayloadTooLong`, `TypeError`, `ValueError`, `psycopg.OperationalError`."""
        data = payload_bytes(payload)
        deadline = monotonic() + SEND_TIMEOUT
        breaker = self._take_turn(deadline)
        try:
            self._send(channel.encode(), data, breaker, deadline)
        finally:
            with self._lock:
                self._busy = False
                if breaker is not self._breaker:  # closed meanwhile
                    breaker.close()
                self._turn.notify_all()

    def close(self) -> None:
        """Close the connection. A send that is under way in another thread has a moment to end, and is given up."""
        with self._lock:
            self._turn.wait_for(lambda: not self._busy, END_TIME)
            breaker, self._breaker = self._breaker, None
            if breaker is not None:
                breaker.snap()
            self._turn.wait_for(lambda: not self._busy, GIVE_UP_TIME)
            conn, self._conn = self._conn, None
            if breaker is not None and not self._busy:
                breaker.close()
        if conn is not None:
            conn.close()

    def abandon(self) -> None:
        """In a forked child: forget the parent's connection, without closing it."""
        if self._conn is not None:
            _kept.append(self._conn)
            self._conn = None
        if self._breaker is not None:
            self._breaker.close()
        self._fresh()

    def _fresh(self) -> None:
        self._breaker = None
        self._lock = threading.RLock()  # entered itself: Ctrl-C in Condition.__enter__ would leave it held
        self._turn = threading.Condition(self._lock)
        self._busy = False

    def _take_turn(self, deadline: float) -> Breaker:
        with self._lock:
            if not self._turn.wait_for(lambda: not self._busy, deadline - monotonic()):
                raise psycopg.OperationalError(f"no turn to send within {SEND_TIMEOUT:g} seconds")
            if self._breaker is None:
                self._breaker = Breaker()
            self._busy = True
            return self._breaker

    def _send(self, channel: bytes, payload: bytes, breaker: Breaker, deadline: float) -> None:
        idle, self._conn = self._conn, None
        if idle is not None and _ended(idle):
            idle.close()
            idle = None
        conn = idle or connect(self._source, breaker, deadline)
        intact = False
        try:
            conn.pgconn.send_query_params(b"SELECT pg_notify($1, $2)", [channel, payload])
            answer(conn, breaker, deadline, SEND_TIMEOUT)
            intact = True
        except psycopg.DataError:
            intact = True  # the server refused this one; the connection is as it was
            raise
        finally:
            with self._lock:
                kept = intact and breaker is self._breaker
                if kept:
                    self._conn = conn
            if not kept:
                conn.close()


def _ended(conn: psycopg.Connection[Any]) -> bool:
    """Whether the server ended an idle connection; nothing else can have come on it."""
    with contextlib.suppress(psycopg.Error, OSError), PortableSelector() as selector:
        selector.register(conn.pgconn.socket, selectors.EVENT_READ)
        if selector.select(0):
            conn.pgconn.consume_input()  # a notice or a changed setting, or the end
        return False
    return True


_kept: list[Any] = []  # in a forked child: never collected, for its clean-up is the parent's
