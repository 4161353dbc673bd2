"""A server in memory: who listens to what, what was sent, and what a test may have it do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING
from weakref import WeakSet

import psycopg
from psycopg import Notify

from ..connection.sender import payload_bytes
from ..validation import check_channel, check_channels
from .backend import Backend
from .settling import settle

if TYPE_CHECKING:
    from .aio import AsyncMemoryNotifier
    from .notifier import MemoryNotifier


class Transaction:
    """Notifications that are sent together, equal ones once, as PostgreSQL does."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._notifications: dict[Notify, None] = {}

    def notify(self, channel: str, payload: object = "") -> None:
        """As `MemoryServer.notify`, when the transaction commits."""
        text = payload_bytes(payload).decode()
        self._notifications[Notify(check_channel(channel), text, self._pid)] = None


class MemoryServer(Backend):
    """What notifiers in memory connect to: those of one server hear each other, as those of one database do.

    `Notifier` is a class to put in the place of `pgnotifier.Notifier`: its objects are `MemoryNotifier`s on this
    server. So is `AsyncNotifier`, of `AsyncMemoryNotifier`s. `sent` lists all notifications that were committed,
    oldest first, for tests to look at and to clear.
    At the end of a `with` block it is closed. Any method may be called from any thread.
    """

    _notifier_class: type[MemoryNotifier]  # set where that is defined
    _async_notifier_class: type[AsyncMemoryNotifier]

    def __init__(self) -> None:
        super().__init__()
        self._notifiers: WeakSet[MemoryNotifier] = WeakSet()

    def __enter__(self) -> MemoryServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self, timeout: float = 5.0) -> None:
        """Stop all notifiers on it, each within `timeout` seconds, and take no more."""
        for n in self.notifiers():
            n.stop(timeout)
        self.stop()

    @cached_property
    def Notifier(self) -> type[MemoryNotifier]:
        """`MemoryNotifier` on this server, constructed and used as `pgnotifier.Notifier` is."""
        base = self._notifier_class
        return type("Notifier", (base,), {"_default_server": self, "__doc__": base.__doc__})

    @cached_property
    def AsyncNotifier(self) -> type[AsyncMemoryNotifier]:
        """`AsyncMemoryNotifier` on this server, constructed and used as `pgnotifier.AsyncNotifier` is."""
        base = self._async_notifier_class
        return type("AsyncNotifier", (base,), {"_default_server": self, "__doc__": base.__doc__})

    def notifiers(self) -> list[MemoryNotifier]:
        """Those that were constructed on it and are still referred to, also by an `AsyncMemoryNotifier`."""
        with self.lock:
            return list(self._notifiers)

    # -- what another client would do -----------------------------------------------------------------------

    def notify(self, channel: str, payload: object = "", *, pid: int | None = None) -> None:
        """Send as another process of the database would, with its `pid`; arguments and errors as `Notifier.notify`.

        With `pid=0` on SYSCHAN it is one of the notifier's own events.
        """
        with self.transaction(pid=pid) as transaction:
            transaction.notify(channel, payload)

    @contextlib.contextmanager
    def transaction(self, *, pid: int | None = None) -> Iterator[Transaction]:
        """`notify` on what this yields is sent at the end of the block, and not at all where that raises."""
        transaction = Transaction(self._pid if pid is None else pid)
        yield transaction
        with self.lock:
            if self._down:
                raise psycopg.OperationalError(self._down)
            if (error := self._commit(list(transaction._notifications))) is not None:
                raise psycopg.errors.UntranslatableCharacter(error)

    def listening(self) -> dict[int, list[str]]:
        """`{pid: channels}` of the sessions that listen, SYSCHAN among the channels, sorted."""
        with self.lock:
            return {pid: sorted(conn.channels) for pid, conn in self._connections.items() if conn.channels}

    def settle(self, timeout: float = 5.0) -> None:
        """Wait until all that was sent has been handed to callbacks, and these have returned; on all its notifiers.

        What the callbacks send in turn is waited for too. Coroutine callbacks count: on the event loop's own
        thread use `await asyncio.to_thread(server.settle)`. Raises `TimeoutError` after `timeout` seconds, and
        `RuntimeError` inside a callback, which would wait for itself.
        """
        settle(self, monotonic() + timeout, timeout)

    # -- what goes wrong ------------------------------------------------------------------------------------

    def stop(self, timeout: float = 5.0) -> None:
        """The server goes: all connections are lost, and none can be made until `start()`.

        Returns when all running notifiers have noticed, or raises `TimeoutError`.
        """
        with self.lock:
            self._down = "connection failed: the server in memory is stopped"
            self._end("terminating connection due to administrator command")
            self._await_loss(self.notifiers(), monotonic() + timeout)

    def start(self, timeout: float = 5.0) -> None:
        """The server is back. Returns when all notifiers that run listen again, or raises `TimeoutError`."""
        with self.lock:
            self._down = ""
            self._ring()
        for n in self.notifiers():
            n._reach(monotonic() + timeout)

    def freeze(self) -> None:
        """It answers nothing and sends nothing until `thaw()`, as behind a network that has silently gone."""
        with self.lock:
            self.frozen: bool = True

    def thaw(self) -> None:
        """It goes on, with what has been sent meanwhile."""
        with self.lock:
            self.frozen = False
            for conn in tuple(self._connections.values()):
                conn.ring()
            self._ring()

    def refuse(self, channels: str | Iterable[str]) -> None:
        """Refuse these names from now on with `psycopg.DataError`, as where the encoding cannot hold them."""
        with self.lock:
            self._refused.update(check_channels(channels))

    def accept(self, channels: str | Iterable[str] = ()) -> None:
        """Refuse these names no longer; none given: none at all."""
        names = check_channels(channels)
        with self.lock:
            self._refused.difference_update(names or tuple(self._refused))

    def _await_loss(self, notifiers: Sequence[MemoryNotifier], deadline: float) -> None:
        """Under the lock: until none of them counts on a connection any more."""
        while still := [n for n in notifiers if n.is_running() and not n._door.waiting]:
            if monotonic() > deadline:
                raise TimeoutError(f"{len(still)} notifiers have not noticed that the connection is lost")
            self.changed.wait(0.01)  # one may be stopped without a word
