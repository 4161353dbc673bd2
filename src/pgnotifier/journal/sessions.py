"""The journal's own connections, and the two ways to do work on them: on a thread, and on an event loop."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future, wait
from contextlib import nullcontext, suppress
from contextvars import ContextVar
from typing import Any

import psycopg
from psycopg import IsolationLevel, pq
from psycopg.rows import tuple_row

from ..connection import CancelToken, connect
from ..types import DbConf
from .work import Call, CallFailed, Statement, T, Work, check

# A peer that has vanished is noticed within ten seconds, whether something was sent or is awaited.
KEEPALIVE = {"TCP_KEEPIDLE": 4, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}

LOOP_SECONDS = 1.0  # between two checks whether an event loop that has work was closed

PATH = b"select pg_catalog.current_setting('search_path'); set search_path = pg_catalog, pg_temp"

inside: ContextVar[object] = ContextVar("pgnotifier_consumer", default=None)  # the consumer whose callback runs


class Session:
    """A connection whose work is done on its thread, or, with `loop`, on that event loop.

    User code that runs in its work finds `owner` in `inside`. No lock: one thread at a time uses it.
    """

    def __init__(
        self,
        dbconf: DbConf,
        token: CancelToken,
        loop: asyncio.AbstractEventLoop | None = None,
        owner: object = None,
    ) -> None:
        conn = connect(dbconf, token)
        self._loop, self._owner = loop, owner
        self.conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any] = conn
        self._future: Any = None
        self.in_call: bool = False  # whether user code is running
        self._cancelled: asyncio.CancelledError | None = None  # a cancellation that user code let through
        try:
            self._socket = socket.socket(fileno=socket.dup(conn.pgconn.socket))
            _keep_alive(self._socket)
            # Statements of the journal run under their own search_path, callbacks under that of the role.
            self.search_path: str = conn.execute(PATH).fetchone()[0]  # type: ignore[index]
            conn.isolation_level, conn.read_only = IsolationLevel.READ_COMMITTED, False
            if loop is not None:
                self.conn = psycopg.AsyncConnection(conn.pgconn)
                _Handed(_configure(self.conn), loop).result()
        except BaseException:
            conn.close()
            raise

    @property
    def is_broken(self) -> bool:
        return self.conn.broken or self.conn.closed

    def run(self, work: Work[T], transaction: bool = False) -> T:
        """Do the work and return its result, in one transaction or one for each statement. On the session's thread.

        Raises `CallFailed`, and `psycopg.Error` of the statements.
        """
        if transaction and self.conn.pgconn.transaction_status == pq.TransactionStatus.INTRANS:
            raise psycopg.OperationalError("a callback has left a transaction open")  # in which nothing would commit
        if isinstance(self.conn, psycopg.AsyncConnection):
            assert self._loop is not None
            handed = _Handed(self._arun(self.conn, work, transaction), self._loop)
            self._future, self._cancelled = handed.future, None
            try:
                return handed.result()  # type: ignore[no-any-return]
            except CancelledError:
                if self._cancelled is None:
                    raise
                raise CallFailed(self._cancelled) from None
        if self._owner is not None:
            inside.set(self._owner)  # on its thread, for good
        with self.conn.transaction() if transaction else nullcontext():
            return self._drive(self.conn, work)

    async def _arun(self, conn: psycopg.AsyncConnection[Any], work: Work[T], transaction: bool) -> T:
        inside.set(self._owner)  # in this task
        async with conn.transaction() if transaction else nullcontext():
            return await self._adrive(conn, work)

    def _drive(self, conn: psycopg.Connection[Any], work: Work[T]) -> T:
        answer: Any = None
        while True:
            try:
                step = work.send(answer)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if isinstance(step, Call):
                error: BaseException | None = None
                self.in_call = True
                try:
                    result = step.function(*step.arguments, conn)
                    if asyncio.iscoroutine(result):
                        result.close()
                        raise TypeError("the callback returned a coroutine: give the coroutine function itself")
                except (Exception, asyncio.CancelledError) as raised:
                    error = raised
                finally:
                    self.in_call = False
                check(conn, error)
            else:
                # Binary: a callback may change the connection's settings, and a role the text format of values.
                with conn.cursor(binary=True, row_factory=tuple_row) as cursor:
                    cursor.execute(*step)
                    answer = cursor.fetchall()

    async def _adrive(self, conn: psycopg.AsyncConnection[Any], work: Work[T]) -> T:
        answer: Any = None
        while True:
            try:
                step = work.send(answer)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if isinstance(step, Call):
                error = None
                self.in_call = True
                try:
                    result = step.function(*step.arguments, conn)
                    if hasattr(result, "__await__"):
                        await result
                except asyncio.CancelledError as raised:  # for example that of a task that user code awaits
                    self._cancelled = raised
                    raise
                except Exception as raised:
                    error = raised
                finally:
                    self.in_call = False
                check(conn, error)
            else:
                async with conn.cursor(binary=True, row_factory=tuple_row) as cursor:
                    await cursor.execute(*step)
                    answer = await cursor.fetchall()

    def ask(self, query: Statement) -> list[Any]:
        """Run one statement and return its rows."""
        return self.run(_one(query))

    def interrupt(self) -> None:
        """End the session's work: the server rolls back, and the work raises. Any thread."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._future is not None:
            self._future.cancel()

    def abandon(self) -> None:
        """Let go of the parent's connection in a forked child: a callback that forked sends nothing more to it."""
        with suppress(OSError, psycopg.Error):
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, self.conn.pgconn.socket)
            os.close(nowhere)

    def close(self) -> None:
        self.conn.pgconn.finish()
        self._socket.close()

    def __del__(self) -> None:
        """Close an idle session of a journal that was not closed."""
        with suppress(Exception):  # not made, or the interpreter ends
            self._socket.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Handed:
    """Hands work to an event loop. Raises `RuntimeError` if the loop is closed, before or meanwhile."""

    def __init__(self, work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> None:
        self._work, self._loop = work, loop
        try:
            self.future: Future[Any] = asyncio.run_coroutine_threadsafe(work, loop)
        except RuntimeError:
            work.close()  # else Python warns that nobody has awaited it
            raise

    def result(self) -> Any:
        while not wait([self.future], LOOP_SECONDS).done:
            if self._loop.is_closed():  # it forgets work that it has not begun
                with suppress(RuntimeError, ValueError):
                    self._work.close()
                raise RuntimeError("the event loop is closed")
        return self.future.result()


async def _configure(conn: psycopg.AsyncConnection[Any]) -> None:
    await conn.set_autocommit(True)
    await conn.set_isolation_level(IsolationLevel.READ_COMMITTED)
    await conn.set_read_only(False)


def _keep_alive(sock: socket.socket) -> None:
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):  # of this platform
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _one(query: Statement) -> Work[list[Any]]:
    return (yield query)  # type: ignore[no-any-return]
