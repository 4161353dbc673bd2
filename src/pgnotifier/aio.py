"""AsyncNotifier: the public methods for coroutines, over one Notifier.

The event loop checks arguments, reads, and begins changes, which the listener makes. Threads make the calls that
would block (`calls.py`). The event loop takes the state lock, which is held for microseconds, and no other lock.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from time import monotonic
from typing import Final

from . import lifecycle, registry
from .aiostreams import AsyncStream, change
from .calls import Sends, until
from .connection import payload_bytes
from .health import Health
from .notifier import Notifier
from .payload import decode as default_decode
from .registry import Registry
from .shared import Step
from .starting import Starting
from .types import Callback, Channels, ChannelState, DbConf, Decoder, Deliver, OnListen, Status, SubscriberState
from .validation import check_channel, check_channels, check_id, check_timeout, make_subscription


class AsyncNotifier:
    """`Notifier` for asyncio: the same arguments (but `daemon` and `autostart`), methods and errors.

    Methods that may wait are coroutines and never block the event loop. Read-only methods are plain. It connects in
    `async with AsyncNotifier(...) as n:` or `await n.start()`, not when it is constructed.

    - A coroutine function runs on the event loop on which the notifier was started, each call in a separate task.
      A plain function runs on a worker thread.
    - Changes (`subscribe` and the like) are made in the order of the calls. `notify` and `stop` don't wait for them.
    - Errors are raised where the call is awaited, argument errors too.
    - A cancelled `subscribe` leaves the registry as it was, and a cancelled `start` leaves the notifier stopped.
      Threads of the library undo them; the task does not wait. A cancelled `notify` that waits for earlier ones is
      not sent. All other calls take effect even if their task is cancelled, so that its clean-up can `unsubscribe`
      and `stop`.
    - Between calls there is no task on the event loop, and no thread but those of `Notifier`.
    """

    SYSCHAN: Final[str] = registry.SYSCHAN

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
    ) -> None:
        self._own(
            Notifier(
                dbconf,
                decode=decode,
                workers=workers,
                max_pending=max_pending,
                heartbeat=heartbeat,
                retry_delay=retry_delay,
                autostart=False,
                connect_wait=connect_wait,
            )
        )

    def _own(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._forked()
        lifecycle.watch_forks(self)

    def _forked(self) -> None:
        """Forget the parent's calls: no thread of a forked child makes them."""
        notifier = self._notifier
        self._starting = Starting(notifier)
        self._sends = Sends()

    async def __aenter__(self) -> AsyncNotifier:
        if not self._starting.is_up:
            await self._starting.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    def __repr__(self) -> str:
        return self._notifier._shown(type(self).__name__)

    # -- the registry ---------------------------------------------------------------------------------------

    async def add_channels(self, channels: Channels) -> None:
        """Register channels, unmuted and without subscribers. Existing ones stay as they are."""
        names = check_channels(channels)
        await self._change(lambda reg: registry.add_channels(reg, names), False)

    async def remove_channels(self, channels: Channels, autorun: bool = True) -> None:
        """Remove channels and their subscriptions. Ignore channels that are not registered."""
        names = check_channels(channels)
        await self._change(lambda reg: registry.remove_channels(reg, names), autorun)

    async def subscribe(
        self,
        id: Hashable,
        channel: str,
        fn: Callback,
        autorun: bool = True,
        *,
        on_listen: OnListen | None = None,
        deliver: Deliver = "all",
    ) -> None:
        """Call `fn(id, channel, payload, pid)` for notifications on `channel`, as `Notifier.subscribe` does.

        When this returns, the server listens: a NOTIFY that commits later is delivered. Coroutine functions run on
        the event loop on which the notifier was started. If the task is cancelled, the registry and the channels that
        are listened to become what they were, a replaced callback included. Raises as `Notifier.subscribe`.
        """
        check_id(id)
        name = check_channel(channel)
        sub = make_subscription(fn, on_listen, deliver, None)
        before, serial = registry.EMPTY, 0

        def step(reg: Registry) -> registry.Step:
            nonlocal before, serial
            before, serial, loop = reg, self._notifier._next_serial(), self._starting.loop
            here = sub if sub.loop is None or loop is None else replace(sub, loop=loop)
            return registry.subscribe(reg, id, name, here, serial)

        await self._change(step, autorun, lambda reg: registry.take_back(reg, before, id, name, serial))

    async def unsubscribe(self, id: Hashable, channel: str, autorun: bool = True) -> None:
        """Remove this id from this channel only, also if the task is cancelled. Do nothing if not subscribed."""
        check_id(id)
        name = check_channel(channel)
        await self._change(lambda reg: registry.unsubscribe(reg, id, name), autorun)

    async def mute_channels(self, channels: Channels = ()) -> None:
        """Mute `channels` (none: all but SYSCHAN). Raises `UnknownChannel`; nothing has changed then."""
        await self._mute_channels(channels, True)

    async def unmute_channels(self, channels: Channels = ()) -> None:
        """Unmute `channels` (none: all but SYSCHAN). Raises `UnknownChannel`; nothing has changed then."""
        await self._mute_channels(channels, False)

    async def mute_subscriber(self, id: Hashable, channels: Channels = ()) -> None:
        """Mute a subscriber on `channels` (none: all of its own). Raises `UnknownSubscriber`, `UnknownChannel`."""
        await self._mute_subscriber(id, channels, True)

    async def unmute_subscriber(self, id: Hashable, channels: Channels = ()) -> None:
        """Unmute a subscriber on `channels` (none: all of its own). Raises as `mute_subscriber`."""
        await self._mute_subscriber(id, channels, False)

    async def _mute_channels(self, channels: Channels, mute: bool) -> None:
        names = check_channels(channels)
        await self._change(lambda reg: registry.mute_channels(reg, names, mute))

    async def _mute_subscriber(self, id: Hashable, channels: Channels, mute: bool) -> None:
        check_id(id)
        names = check_channels(channels)
        await self._change(lambda reg: registry.mute_subscriber(reg, id, names, mute))

    def channels(self) -> dict[str, ChannelState]:
        """Return all channels with their state and subscribers, as `Notifier.channels`."""
        return self._notifier.channels()

    def subscribers(self) -> dict[Hashable, SubscriberState]:
        """Return all subscribers with their channels, as `Notifier.subscribers`."""
        return self._notifier.subscribers()

    def active_channels(self) -> list[str]:
        """Return the channels that are listened to now, sorted, without SYSCHAN."""
        return self._notifier.active_channels()

    def muted_channels(self, channels: Channels = ()) -> list[str]:
        """Return the muted channels among `channels` (none: all), sorted."""
        return self._notifier.muted_channels(channels)

    def non_muted_channels(self, channels: Channels = ()) -> list[str]:
        """Return the channels among `channels` (none: all) that are not muted, sorted."""
        return self._notifier.non_muted_channels(channels)

    def muted_subscribers(self, channels: Channels = ()) -> dict[str, list[Hashable]]:
        """Return `{channel: [ids]}` of the subscribers muted on `channels` (none: all)."""
        return self._notifier.muted_subscribers(channels)

    def non_muted_subscribers(self, channels: Channels = ()) -> dict[str, list[Hashable]]:
        """Return `{channel: [ids]}` of the subscribers not muted on `channels` (none: all)."""
        return self._notifier.non_muted_subscribers(channels)

    def listen(self, *channels: str, id: Hashable = None, deliver: Deliver = "all") -> AsyncStream:
        """Return a stream, to use as `async with n.listen("orders") as stream: async for event in stream:`.

        The server listens when the block has been entered; leaving it waits for nothing. Raises as `Notifier.listen`:
        argument errors at once, the others on entering.
        """
        return AsyncStream(self._notifier, channels, id, deliver)

    async def _change(self, step: Step, autorun: bool = True, undo: Step | None = None) -> None:
        await change(self._notifier, step, autorun, undo)

    # -- life cycle -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the listener. If it is running, apply pending changes.

        Coroutine functions run on this event loop if the notifier was stopped or its event loop has been closed.
        Raises `psycopg.OperationalError` if it can't connect. The notifier is stopped then, and if the task is
        cancelled.
        """
        await self._starting.start()

    async def restart(self) -> None:
        """Start the listener, or apply pending changes, as `start` does."""
        await self._starting.start()

    async def stop(self, timeout: float = 10.0, *, drain: bool = False) -> None:
        """Stop the listener, throw away what waits, let running callbacks finish for `timeout` seconds, disconnect.

        `drain=True` first delivers what waits, within the same time. In a callback, and in tasks that the callback
        has begun, it waits for no callback and drains nothing. On a stopped notifier it does nothing. If the task is
        cancelled, a thread goes on stopping.
        """
        await self._starting.stop(check_timeout(timeout), drain)

    def is_running(self) -> bool:
        """Return True from `start()` until `stop()`, or until the listener ends by itself."""
        return self._notifier.is_running()

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until stopped, at most `timeout` seconds; return True if it is stopped."""
        seconds = None if timeout is None else check_timeout(timeout)
        stopped = self._notifier._supervisor.shared.stopped
        return await until(stopped, stopped.is_set, seconds)

    def status(self) -> Status:
        """Return counters and state as a plain dict, as `Notifier.status`."""
        return self._notifier.status()

    def health(self, max_call: float = 60.0) -> Health:
        """Return `Health(live, ready, problems)`, for probes, as `Notifier.health`."""
        return self._notifier.health(max_call)

    async def notify(self, channel: str, payload: object = "") -> None:
        """Send a notification on a separate connection, in the order of the calls; return when it is committed.

        Raises as `Notifier.notify`, within ten seconds. If the task is cancelled, it may have been sent.
        """
        name, text, since = check_channel(channel), payload_bytes(payload).decode(), monotonic()
        await self._sends.make(lambda: self._notifier._sender.send(name, text, since))
