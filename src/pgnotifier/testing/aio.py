"""AsyncMemoryNotifier: `pgnotifier.AsyncNotifier` on a server in memory, with controls for tests."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import datetime

from ..aio import AsyncNotifier
from ..calls import Call
from ..gap import Reason
from ..payload import decode as default_decode
from ..types import Channels, DbConf, Decoder
from .notifier import MemoryNotifier
from .server import MemoryServer


class AsyncMemoryNotifier(AsyncNotifier):
    """An `AsyncNotifier` that needs no PostgreSQL, and differs in nothing but the server that it connects to.

    Arguments are those of `AsyncNotifier`, and `server` as of `MemoryNotifier`. The controls of `MemoryNotifier` are
    coroutines here. A thread makes them, so the event loop runs on; they take effect even if the task is cancelled.
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
        connect_wait: float = 0.0,
        server: MemoryServer | None = None,
    ) -> None:
        self._memory = MemoryNotifier(
            dbconf,
            decode=decode,
            workers=workers,
            max_pending=max_pending,
            heartbeat=heartbeat,
            retry_delay=retry_delay,
            autostart=False,
            connect_wait=connect_wait,
            server=server or self._default_server,
        )
        self.server: MemoryServer = self._memory.server
        self._own(self._memory)

    async def settle(self, timeout: float = 5.0) -> None:
        """Wait until all callbacks have returned, as `MemoryServer.settle`, on any event loop."""
        await self._on_a_thread(lambda: self._memory.settle(timeout))

    async def lose_connection(
        self, error: str = "terminating connection due to administrator command", timeout: float = 5.0
    ) -> None:
        """End the session, as `MemoryNotifier.lose_connection`."""
        await self._on_a_thread(lambda: self._memory.lose_connection(error, timeout))

    async def restore_connection(self, timeout: float = 5.0) -> None:
        """Let the notifier connect, as `MemoryNotifier.restore_connection`."""
        await self._on_a_thread(lambda: self._memory.restore_connection(timeout))

    @contextlib.asynccontextmanager
    async def connection_lost(self, timeout: float = 5.0) -> AsyncIterator[None]:
        """Lose the connection in the `async with` block, and restore it at its end."""
        try:
            await self.lose_connection(timeout=timeout)
            yield
        finally:
            await self.restore_connection(timeout)

    async def raise_gap(
        self,
        channels: Channels = (),
        reason: Reason = "connection",
        *,
        since: datetime | None = None,
        dropped: int | None = None,
        error: str | None = None,
    ) -> None:
        """Call `on_listen` with a `Gap`, as `MemoryNotifier.raise_gap`."""
        names = (channels,) if isinstance(channels, str) else tuple(channels)
        await self._on_a_thread(
            lambda: self._memory.raise_gap(names, reason, since=since, dropped=dropped, error=error)
        )

    async def _on_a_thread(self, function: Callable[[], None]) -> None:
        call = Call(function)
        call.begin()
        await call.wait()


MemoryServer._async_notifier_class = AsyncMemoryNotifier
