"""MemoryNotifier: `pgnotifier.Notifier` on a server in memory, with controls for tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from datetime import datetime
from time import monotonic
from typing import cast

from psycopg import Notify

from .. import registry
from ..clock import now
from ..connection import RECONNECTING, Sender
from ..delivery import ListenCall
from ..errors import UnknownChannel
from ..gap import GRAVEST_FIRST, Gap, Reason
from ..notifier import Notifier
from ..payload import decode as default_decode
from ..types import Channels, DbConf, Decoder
from ..validation import check_channels, check_dbconf, check_options
from .backend import Door
from .server import MemoryServer
from .settling import MARK, reach


class MemoryNotifier(Notifier):
    """A `Notifier` that needs no PostgreSQL, and differs in nothing but the server that it connects to.

    Arguments are those of `Notifier`, and `server`: the server to connect to; None: a new one. `dbconf` is checked
    and not used. Reconnecting waits for no `retry_delay`: a single attempt succeeds as soon as it can.
    """

    _default_server: MemoryServer | None = None

    def __init__(
        self,
        dbconf: DbConf = "",
        *,
        decode: Decoder = default_decode,
        workers: int = 1,
        max_pending: int = 100_000,
        heartbeat: float | None = 10.0,
        retry_delay: tuple[float, float] = (0.1, 30.0),
        daemon: bool = True,
        autostart: bool = True,
        connect_wait: float = 0.0,
        server: MemoryServer | None = None,
    ) -> None:
        check_dbconf(dbconf)
        check_options(decode, workers, max_pending, heartbeat, retry_delay)
        self.server: MemoryServer = server or self._default_server or MemoryServer()
        self._door = Door(self.server, self._on_listener)
        self._passed: set[str] = set()
        super().__init__(
            cast(DbConf, lambda: self._door),
            decode=decode,
            workers=workers,
            max_pending=max_pending,
            heartbeat=heartbeat,
            retry_delay=(0.0, 0.0),
            daemon=daemon,
            autostart=autostart,
            connect_wait=connect_wait,
        )
        self._sender = Sender(cast(DbConf, lambda: self.server))
        with self.server.lock:
            self.server._notifiers.add(self)

    def settle(self, timeout: float = 5.0) -> None:
        """Wait until all callbacks have returned, as `MemoryServer.settle`, for all notifiers on its server."""
        self.server.settle(timeout)

    def lose_connection(
        self, error: str = "terminating connection due to administrator command", timeout: float = 5.0
    ) -> None:
        """End the session, as a server does, and let none be made until `restore_connection()`.

        Returns when the notifier has noticed the loss: the event `disconnected` is on its way, and notifications sent
        from now on are missed. `Gap.error` and the event quote `error`. `notify` still works, on its own connection.
        Raises `TimeoutError` after `timeout` seconds.
        """
        server = self.server
        with server.lock:
            self._door.shut = error
            server._end(error, self._door)
            server._await_loss([self], monotonic() + timeout)

    def restore_connection(self, timeout: float = 5.0) -> None:
        """Let the notifier connect. Return when it listens; event `reconnected` and gaps are on their way then.

        Does nothing if the connection is not lost. Raises `TimeoutError` after `timeout` seconds.
        """
        with self.server.lock:
            self._door.shut = ""
            self.server._ring()
        self._reach(monotonic() + timeout)

    @contextlib.contextmanager
    def connection_lost(self, timeout: float = 5.0) -> Iterator[None]:
        """Lose the connection in the `with` block, and restore it at its end."""
        self.lose_connection(timeout=timeout)
        try:
            yield
        finally:
            self.restore_connection(timeout)

    def raise_gap(
        self,
        channels: Channels = (),
        reason: Reason = "connection",
        *,
        since: datetime | None = None,
        dropped: int | None = None,
        error: str | None = None,
    ) -> None:
        """Call `on_listen` of unmuted subscribers with a `Gap`, on these channels (none: all).

        The call comes after all that was sent before. Nothing else happens: no event, no counter, no loss. `since`
        is now unless given. Raises `UnknownChannel`, and `ValueError` if no unmuted subscriber of these channels has
        an `on_listen`.
        """
        if reason not in GRAVEST_FIRST:
            raise ValueError(f"reason must be one of {', '.join(map(repr, GRAVEST_FIRST))}, not {reason!r:.100}")
        names = check_channels(channels)
        reach(self.server, self, monotonic() + 5.0)
        moment = now()
        reg = self._supervisor.shared.registry
        calls = []
        for name in names or tuple(reg.channels):
            entry = reg.channels.get(name)
            if entry is None:
                raise UnknownChannel(f"channel {name!r} is not registered")
            if name in self._listened():
                gap = Gap(name, reason, since or moment, moment, dropped, error)
                subs = registry.audience(entry).items()
                calls += [(id, ListenCall(name, gap)) for id, sub in subs if sub.on_listen is not None]
        if not calls:
            raise ValueError("no unmuted subscriber of these channels has an on_listen")
        self._dispatcher.tell(calls)

    # -- between the server and the rest --------------------------------------------------------------------

    def _reach(self, deadline: float) -> None:
        reach(self.server, self, deadline)

    def _on_listener(self) -> bool:
        supervisor = getattr(self, "_supervisor", None)
        return supervisor is not None and supervisor.phase is RECONNECTING

    def _Notifier__notify(self, generator: Iterable[Notify], since: datetime | None = None) -> tuple[int, float]:
        """Post as `Notifier` does, and note which marks of `settle` have arrived. The listener thread."""
        batch = list(generator)
        taken, seconds = super()._Notifier__notify(batch, since)  # type: ignore[misc]
        marks = [n.payload for n in batch[:taken] if n.channel == MARK]
        if marks:
            self._received -= len(marks)
            with self.server.lock:
                self._passed.update(marks)
                self.server.changed.notify_all()
        return taken, seconds


MemoryServer._notifier_class = MemoryNotifier
