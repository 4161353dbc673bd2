"""The state of a server in memory: its connections, their channels, and what was sent. No controls."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from itertools import count
from time import monotonic
from typing import Any, NamedTuple, cast
from weakref import WeakSet

import psycopg
from psycopg import Notify

from ..connection import CancelToken, Server
from ..connection.session import CHECK
from ..payload import decode
from .connection import Connection, PGconn, Result

CONNECT_TIMEOUT = 10.0  # seconds that connecting to a frozen server takes to fail

_pids = count(1001)
_statement = re.compile(rb'(UNLISTEN|LISTEN) (?:"((?:[^"]|"")*)"|(\*))(?:;|$)')


class Sent(NamedTuple):
    """A notification that was committed: `text` is its payload as sent, `payload` that text decoded."""

    channel: str
    text: str
    pid: int

    @property
    def payload(self) -> Any:
        return decode(self.text)


class Door(Server):
    """Lets one notifier's sessions in, unless `shut` says why not: then a listener that reconnects waits."""

    def __init__(self, server: Backend, on_listener: Callable[[], bool]) -> None:
        self._server = server
        self.on_listener: Callable[[], bool] = on_listener
        self.shut = ""
        self.waiting = False

    def connect(self, token: CancelToken, deadline: float | None) -> psycopg.Connection[Any]:
        return self._server._admit(self, token, deadline)


class Backend(Server):
    """Keeps all state under `lock`; notifies `changed` of changes that threads may wait for."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.frozen: bool = False
        self.commits: int = 0
        self._down = ""
        self._pid = next(_pids)
        self._refused: set[str] = set()
        self._connections: dict[int, PGconn] = {}
        self._waiting: dict[PGconn, Door] = {}
        self._open_lock()
        _servers.add(self)

    def _open_lock(self) -> None:
        self.lock: Any = threading.RLock()  # reentrant: a signal handler may call anything anywhere
        self.changed: threading.Condition = threading.Condition(self.lock)

    def connect(self, token: CancelToken, deadline: float | None) -> psycopg.Connection[Any]:
        """Connect to send: possible whenever the server is up."""
        return self._admit(Door(self, lambda: False), token, deadline)

    def _barred(self, door: Door) -> str:
        return self._down or door.shut

    def _admit(self, door: Door, token: CancelToken, deadline: float | None) -> psycopg.Connection[Any]:
        conn = PGconn(self, next(_pids), door)
        waits = door.on_listener()
        if deadline is None and not waits:
            deadline = monotonic() + CONNECT_TIMEOUT
        try:
            while True:
                with self.lock:
                    reason = self._barred(door)
                    if not reason and not self.frozen:
                        self._connections[conn.backend_pid] = conn
                        return cast("psycopg.Connection[Any]", Connection(conn))
                    if reason and not waits:
                        raise psycopg.OperationalError(reason)
                    self._waiting[conn] = door
                    door.waiting = True
                    self.changed.notify_all()
                if not token.wait(deadline, conn.socket):
                    raise psycopg.errors.ConnectionTimeout("connection timeout expired")
                with self.lock:
                    conn.hear()
        except BaseException:
            conn.finish()
            raise
        finally:
            with self.lock:
                self._waiting.pop(conn, None)
                door.waiting = False

    def _ring(self) -> None:
        for conn in tuple(self._waiting):
            conn.ring()

    def _end(self, error: str, door: Door | None = None) -> None:
        """End the connections that came by `door` (None: all)."""
        for conn in tuple(self._connections.values()):
            if door is None or conn.door is door:
                conn.end(error)

    def execute(self, conn: PGconn, sql: bytes, params: Sequence[bytes] | None) -> list[Result]:
        """Answer the statements that the library sends. Under the lock."""
        if params is not None:
            channel, payload = (param.decode() for param in params)
            error = self._commit([Notify(channel, payload, conn.backend_pid)])
            return [Result("") if error is None else Result(error=("22P05", error))]
        if sql == CHECK:
            return [Result(conn.backend_pid, len(conn.channels))]
        return [self._listen(conn, sql)]

    def _listen(self, conn: PGconn, sql: bytes) -> Result:
        channels, place = dict(conn.channels), 0
        while place < len(sql):
            statement = _statement.match(sql, place)
            if statement is None:
                raise NotImplementedError(f"the server in memory does not know {sql[place:]!r:.100}")
            place = statement.end()
            name = (statement[2] or b"").replace(b'""', b'"').decode()
            if statement[3]:
                channels.clear()
            elif statement[1] == b"UNLISTEN":
                channels.pop(name, None)
            elif name in self._refused:
                return Result(error=("22P05", _refusal(name)))
            else:
                channels[name] = True
        conn.channels = channels
        return Result()

    def _commit(self, notifications: Sequence[Notify]) -> str | None:
        """Send all; or send none, and return why. Under the lock."""
        for n in notifications:
            if n.channel in self._refused:
                return _refusal(n.channel)
        self.commits += 1
        self.sent.extend(Sent(*n) for n in notifications)
        for conn in self._connections.values():
            if heard := [n for n in notifications if n.channel in conn.channels]:
                conn.push(heard)
        return None

    def closed(self, conn: PGconn) -> None:
        self._connections.pop(conn.backend_pid, None)
        self.changed.notify_all()

    def _forked(self) -> None:
        """Make the server a forked child's own: the parent's lock may be held for ever there."""
        connections = [*self._connections.values(), *self._waiting]
        self._connections, self._waiting = {}, {}
        self._open_lock()
        for conn in connections:
            conn.forked()


def _refusal(name: str) -> str:
    return f"the database's encoding cannot hold the channel name {name!r}"


_servers: WeakSet[Backend] = WeakSet()


def _in_child() -> None:
    for server in list(_servers):
        server._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
