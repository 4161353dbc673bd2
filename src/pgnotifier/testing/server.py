"""A server in memory, with controls for tests."""

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
    """Notifications that are sent together, without duplicates, as PostgreSQL does."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._notifications: dict[Notify, None] = {}

    def notify(self, channel: str, payload: object = "") -> None:
        """Send as `MemoryServer.notify`, when the transaction commits."""
        text = payload_bytes(payload).decode()
        self._notifications[Notify(check_channel(channel), text, self._pid)] = None


class MemoryServer(Backend):
    """A server in memory. Notifiers on one server hear each other, as those of one database do.

    `Notifier` is a class to put in the place of `pgnotifier.Notifier`: its objects are `MemoryNotifier`s on this
    server. So is `AsyncNotifier`, for `AsyncMemoryNotifier`s. `sent` lists all notifications that were committed,
    oldest first; tests may clear it. `with` closes it at the end of the block. Any thread may call any method.
    """

    _notifier_class: type[MemoryNotifier]  # set by the module that defines it
    _async_notifier_class: type[AsyncMemoryNotifier]

    def __init__(self) -> None:
        super().__init__()
        self._notifiers: WeakSet[MemoryNotifier] = WeakSet()

    def __enter__(self) -> MemoryServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self, timeout: float = 5.0) -> None:
        """Stop all notifiers on it, each within `timeout` seconds, and accept no connection any more."""
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
        """Return the notifiers that were constructed on it, unless Python has collected them."""
        with self.lock:
            return list(self._notifiers)

    # -- what another client would do -----------------------------------------------------------------------

    def notify(self, channel: str, payload: object = "", *, pid: int | None = None) -> None:
        """Send as another process of the database would, with its `pid`. Arguments and errors as `Notifier.notify`.

        `pid=0` on SYSCHAN makes it one of the notifier's own events.
        """
        with self.transaction(pid=pid) as transaction:
            transaction.notify(channel, payload)

    @contextlib.contextmanager
    def transaction(self, *, pid: int | None = None) -> Iterator[Transaction]:
        """Send the notifications of the yielded transaction at the end of the block; none if the block raises."""
        transaction = Transaction(self._pid if pid is None else pid)
        yield transaction
        with self.lock:
            if self._down:
                raise psycopg.OperationalError(self._down)
            if (error := self._commit(list(transaction._notifications))) is not None:
                raise psycopg.errors.UntranslatableCharacter(error)

    def listening(self) -> dict[int, list[str]]:
        """Return `{pid: channels}` of the sessions that listen. The channels are sorted and include SYSCHAN."""
        with self.lock:
            return {pid: sorted(conn.channels) for pid, conn in self._connections.items() if conn.channels}

    def settle(self, timeout: float = 5.0) -> None:
        """Wait until callbacks have got all that was sent, and have returned, on all notifiers of the server.

        Notifications that callbacks send count too, and so do coroutine callbacks: on the thread of their event loop
        use `await asyncio.to_thread(server.settle)`. Raises `TimeoutError` after `timeout` seconds, and
        `RuntimeError` inside a callback, which would wait for itself.
        """
        settle(self, monotonic() + timeout, timeout)

    # -- what goes wrong ------------------------------------------------------------------------------------

    def stop(self, timeout: float = 5.0) -> None:
        """Stop the server: all connections are lost, and none can be made until `start()`.

        Returns when all running notifiers have noticed. Raises `TimeoutError` after `timeout` seconds.
        """
        with self.lock:
            self._down = "connection failed: the server in memory is stopped"
            self._end("terminating connection due to administrator command")
            self._await_loss(self.notifiers(), monotonic() + timeout)

    def start(self, timeout: float = 5.0) -> None:
        """Start the server again. Return when all running notifiers listen, or raise `TimeoutError`."""
        with self.lock:
            self._down = ""
            self._ring()
        for n in self.notifiers():
            n._reach(monotonic() + timeout)

    def freeze(self) -> None:
        """Answer nothing and send nothing until `thaw()`, as behind a network that has silently gone."""
        with self.lock:
            self.frozen: bool = True

    def thaw(self) -> None:
        """Go on after `freeze()`, with what has been sent meanwhile."""
        with self.lock:
            self.frozen = False
            for conn in tuple(self._connections.values()):
                conn.ring()
            self._ring()

    def refuse(self, channels: str | Iterable[str]) -> None:
        """Refuse these channels with `psycopg.DataError`, as a database does whose encoding can't hold them."""
        with self.lock:
            self._refused.update(check_channels(channels))

    def accept(self, channels: str | Iterable[str] = ()) -> None:
        """Accept these channels again (none: all of them)."""
        names = check_channels(channels)
        with self.lock:
            self._refused.difference_update(names or tuple(self._refused))

    def _await_loss(self, notifiers: Sequence[MemoryNotifier], deadline: float) -> None:
        """Wait until every notifier has noticed that its connection is lost. Under the lock."""
        while still := [n for n in notifiers if n.is_running() and not n._door.waiting]:
            if monotonic() > deadline:
                raise TimeoutError(f"{len(still)} notifiers have not noticed that the connection is lost")
            self.changed.wait(0.01)  # a stop does not notify
