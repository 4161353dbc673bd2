"""What the live tests ask of PostgreSQL by SQL, asked of a server in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any

from pgnotifier.testing import MemoryServer, Transaction

_pids = count(900_001)


class SqlConnection:
    """Understands the statements below, in autocommit; others fail the test."""

    def __init__(self, server: MemoryServer) -> None:
        self.server = server
        self.info = SimpleNamespace(backend_pid=next(_pids))
        self._open: Transaction | None = None

    def __enter__(self) -> SqlConnection:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def close(self) -> None: ...

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        with self.server.transaction(pid=self.info.backend_pid) as self._open:
            yield
        self._open = None

    def fetchone(self) -> tuple[float]:
        return (0.0,)  # of the queue that is not there

    def execute(self, sql: str, params: tuple[Any, ...] = ()) -> SqlConnection:
        sql = " ".join(sql.split())
        if sql == "select pg_notification_queue_usage()":
            return self
        if sql == "select pg_terminate_backend(%s)":
            with self.server.lock:
                self.server._connections[params[0]].end("terminating connection due to administrator command")
            return self
        notifications = list(self._notifications(sql, params))
        if self._open is not None:
            for n in notifications:
                self._open.notify(*n)
        else:
            with self.server.transaction(pid=self.info.backend_pid) as transaction:
                for n in notifications:
                    transaction.notify(*n)
        return self

    @staticmethod
    def _notifications(sql: str, params: tuple[Any, ...]) -> Iterator[tuple[str, str]]:
        values = iter(params)
        if sql == "select pg_notify(c, p) from unnest(%s::text[], %s::text[]) as sent (c, p)":
            yield from zip(*params, strict=True)
            return
        if "|| substr('ppaapaaap', 1 + i %% 9, 1), i::text) from generate_series(1, 2000) i" in sql:
            yield from ((params[0] + "ppaapaaap"[i % 9], str(i)) for i in range(1, 2001))
            return
        if sql.startswith("select pg_notify(%s, i::text) from generate_series("):
            channel = next(values)
            bounds = sql.partition("generate_series(")[2].partition(")")[0].split(",")
            first, last = (int(next(values) if "%s" in bound else bound) for bound in bounds)
            yield from ((channel, str(i)) for i in range(first, last + 1))
            return
        for call in sql.removeprefix("select ").removesuffix(")").split("), "):
            name, found, payload = call.partition("pg_notify(")[2].partition(", ")
            assert name == "%s", sql
            assert found, sql
            channel = next(values)
            yield channel, str(next(values)) if payload.startswith("%s") else payload.strip("'")
