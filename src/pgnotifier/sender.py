"""One connection for sending, opened when first used (contract 13)."""

from __future__ import annotations

import threading
from time import monotonic
from typing import Any

import psycopg

from .errors import PayloadTooLong
from .payload import encode
from .session import ANSWER_TIMEOUT, Source, answer, connect

MAX_PAYLOAD_BYTES = 7999


class Sender:
    """Sends one notification at a time; safe from any thread."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._conn: psycopg.Connection[Any] | None = None
        self._lock = threading.Lock()

    def send(self, channel: str, payload: object) -> None:
        """NOTIFY, committed. Raises `PayloadTooLong`, `TypeError`, `ValueError`, `psycopg.OperationalError`."""
        text = payload if isinstance(payload, str) else encode(payload)
        if "\0" in text:
            raise ValueError(f"a payload must not hold NUL: {text!r:.100}")
        size = len(text.encode())
        if size > MAX_PAYLOAD_BYTES:
            raise PayloadTooLong(f"a payload must be at most {MAX_PAYLOAD_BYTES} bytes in UTF-8, not {size}")
        with self._lock:
            conn = self._conn
            if conn is None or conn.closed:
                conn = self._conn = connect(self._source)
            try:
                conn.pgconn.send_query_params(b"SELECT pg_notify($1, $2)", [channel.encode(), text.encode()])
                answer(conn, monotonic() + ANSWER_TIMEOUT, conn.close)
            except psycopg.DataError:
                raise  # the server refused this one; the connection is as it was
            except BaseException:
                conn.close()
                raise

    def close(self) -> None:
        with self._lock:
            conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

    def abandon(self) -> None:
        """In a forked child: forget the parent's connection."""
        self._conn = None
        self._lock = threading.Lock()
