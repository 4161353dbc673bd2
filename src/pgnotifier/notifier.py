"""Notifier: the public methods, their argument checks, and the private methods of 0.0.10.

Methods run on the caller's thread. The supervisor owns the registry and the connection, the dispatcher the mailboxes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Hashable, Iterable
from datetime import datetime
from random import random
from time import monotonic
from typing import Final

from psycopg import Notify
from pyrsistent import PVector

from . import lifecycle, registry, snapshots
from .clock import now
from .connection import Sender, delay, server_of
from .delivery import Calls, Dispatcher, Puller, Stream, Workers
from .health import Health, examine
from .payload import decode as default_decode
from .registry import Registry
from .shared import Step, nothing
from .supervisor import Supervisor
from .types import Callback, Channels, ChannelState, DbConf, Decoder, Deliver, OnListen, Status, SubscriberState
from .validation import (
    check_channel,
    check_channels,
    check_dbconf,
    check_deliver,
    check_id,
    check_options,
    check_timeout,
    make_subscription,
)


class Notifier:
    """Calls subscribers back, by id, for notifications on PostgreSQL channels.

    - `dbconf`: a conninfo string or URI (SQLAlchemy's too), a mapping of `psycopg.connect` arguments, a SQLAlchemy
      `URL`, or a callable that returns one, called before every connection. Empty: libpq's environment variables.
    - `decode`: `str -> object`, called on a worker thread, once for each notification.
    - `workers`: number of threads that run callbacks.
    - `max_pending`: number of notifications that may wait for one id; beyond it the oldest are dropped and reported.
    - `heartbeat`: every so many seconds the session is queried; no answer within the same time counts as a lost
      connection. None: never.
    - `retry_delay`: least and greatest number of seconds between two attempts to connect.
    - `daemon=False`: at its end, the interpreter waits until `stop()` or Ctrl-C.
    - `autostart=False`: construction connects nothing and starts no thread; `start()` or `with` does.
    - `connect_wait`: seconds for which construction and `start()` try again while the server can't be reached.

    Construction connects and listens. If it can't, it raises `psycopg.OperationalError` (`CannotListen` on a standby
    or behind a pooler in transaction mode), and leaves no thread or connection behind. `with Notifier(...) as n:`
    starts it if it is stopped, and stops it at the end of the block.

    Every method may be called from any thread, and from inside a callback. `channels` is one name or an iterable of
    names. Arguments are checked before anything changes: a wrong type raises `TypeError`, a name that PostgreSQL
    can't hold as given `InvalidChannel`. Subscription changes apply at once; `autorun=False` only postpones sending
    LISTEN and UNLISTEN until `start()` or the next change.
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
        daemon: bool = True,
        autostart: bool = True,
        connect_wait: float = 0.0,
    ) -> None:
        dbconf = check_dbconf(dbconf)
        seconds, delays = check_options(decode, workers, max_pending, heartbeat, retry_delay)
        self._decode, self._workers = decode, workers
        self._options = (dbconf, seconds, delays, check_timeout(connect_wait, "connect_wait"))
        self._received = 0
        self._serial = 0
        self.daemon: bool = bool(daemon)
        self._sender = Sender(dbconf)
        least, most = delays
        self._dispatcher = Dispatcher(max_pending, lambda n: delay(n, least, most, random()), self._wake)
        self._supervisor = self.__supervisor(registry.EMPTY)
        lifecycle.watch(self)
        if autostart:
            self._supervisor.start()

    def __supervisor(self, reg: Registry) -> Supervisor:
        workers = Workers(self._workers, self._dispatcher, self._decode, self._fatal)
        return Supervisor(*self._options, self._dispatcher, workers, self.__notify, reg)

    def __enter__(self) -> Notifier:
        if not self.is_running():
            self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return self._shown(type(self).__name__)

    def _shown(self, name: str) -> str:
        supervisor = self._supervisor
        session, reg, (dbconf, *_) = supervisor.session, supervisor.shared.registry, self._options
        server = server_of(dbconf) if session is None else session.server
        sizes = f"channels={len(reg.channels)}, subscribers={len(reg.ids)}"
        return f"<{name} {supervisor.phase.name.lower()}, {server}, {sizes}>"

    # -- the registry ---------------------------------------------------------------------------------------

    def add_channels(self, channels: Channels) -> None:
        """Register channels, unmuted and without subscribers. Existing ones stay as they are."""
        names = check_channels(channels)
        self.__change(lambda reg: registry.add_channels(reg, names), autorun=False)

    def remove_channels(self, channels: Channels, autorun: bool = True) -> None:
        """Remove channels and their subscriptions. Ignore channels that are not registered."""
        names = check_channels(channels)
        self.__change(lambda reg: registry.remove_channels(reg, names), autorun)

    def subscribe(
        self,
        id: Hashable,
        channel: str,
        fn: Callback,
        autorun: bool = True,
        *,
        on_listen: OnListen | None = None,
        deliver: Deliver = "all",
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Call `fn(id, channel, payload, pid)` for notifications on `channel`, one at a time for each id.

        When this returns, the server listens: a NOTIFY that commits later is delivered. While the connection is down,
        it returns at once and takes effect with the next connection. Subscribing the same pair again replaces `fn`
        and keeps the mute state.

        - `fn`: a plain function runs on a worker thread, an `async def` on `loop` or the event loop that runs here.
        - `on_listen(id, channel, gap)`: called in order with `fn`: with None when listening begins (read your state
          then), with a `Gap` after each period in which notifications may have been missed.
        - `deliver="latest"`: a newer notification replaces one that still waits for this id and channel.

        Raises `TypeError` for an `async def` without an event loop, `ValueError` if `id` is a stream's, and
        `psycopg.Error` if the server refuses the name. Nothing has changed then.
        """
        check_id(id)
        name = check_channel(channel)
        sub = make_subscription(fn, on_listen, deliver, loop)

        self.__change(lambda reg: registry.subscribe(reg, id, name, sub, self._next_serial()), autorun)

    def listen(self, *channels: str, id: Hashable = None, deliver: Deliver = "all") -> Stream:
        """Return a stream of the notifications on `channels`, to be read on any thread: `for event in stream`.

        When this returns, the server listens, as with `subscribe`. The stream is a subscriber under `id`, or without
        one under itself. `deliver` as in `subscribe`. Closing the stream removes channels that only streams have
        registered. Raises `ValueError` without a channel and for an id that is registered, and `psycopg.Error` if the
        server refuses a name. Nothing has changed then.
        """
        stream = self._new_stream(channels, id)
        self.__maybe_restart(self._listening(stream, deliver))
        return stream

    def unsubscribe(self, id: Hashable, channel: str, autorun: bool = True) -> None:
        """Remove this id from this channel only. Do nothing if it is not subscribed."""
        check_id(id)
        name = check_channel(channel)
        self.__change(lambda reg: registry.unsubscribe(reg, id, name), autorun)

    def mute_channels(self, channels: Channels = ()) -> None:
        """Mute `channels` (none: all but SYSCHAN). Raises `UnknownChannel`; nothing has changed then."""
        self.__mute_chans(channels, True)

    def unmute_channels(self, channels: Channels = ()) -> None:
        """Unmute `channels` (none: all but SYSCHAN). Raises `UnknownChannel`; nothing has changed then."""
        self.__mute_chans(channels, False)

    def mute_subscriber(self, id: Hashable, channels: Channels = ()) -> None:
        """Mute a subscriber on `channels` (none: all of its own). Raises `UnknownSubscriber`, `UnknownChannel`."""
        self.__mute_sub(id, channels, True)

    def unmute_subscriber(self, id: Hashable, channels: Channels = ()) -> None:
        """Unmute a subscriber on `channels` (none: all of its own). Raises as `mute_subscriber`."""
        self.__mute_sub(id, channels, False)

    def channels(self) -> dict[str, ChannelState]:
        """Return all channels with their state and subscribers, as a plain dict that belongs to the caller.

        `{channel: {"mute": bool, "active": bool, "subscribers": {id: {"fn": fn, "mute": bool}}}}`
        """
        return snapshots.channels_dict(self._supervisor.shared.registry, self._listened())

    def subscribers(self) -> dict[Hashable, SubscriberState]:
        """Return all subscribers with their channels, as a plain dict that belongs to the caller.

        `{id: {"fn": latest fn, "channels": {channel: {"fn": fn, "active": bool, "mute": bool, "sub_mute": bool}}}}`
        """
        return snapshots.subscribers_dict(self._supervisor.shared.registry, self._listened())

    def active_channels(self) -> list[str]:
        """Return the channels that are listened to now, sorted, without SYSCHAN."""
        return sorted(name for name in self._listened() if name != self.SYSCHAN)

    def muted_channels(self, channels: Channels = ()) -> list[str]:
        """Return the muted channels among `channels` (none: all), sorted."""
        return self.__by_mute(channels, True)

    def non_muted_channels(self, channels: Channels = ()) -> list[str]:
        """Return the channels among `channels` (none: all) that are not muted, sorted."""
        return self.__by_mute(channels, False)

    def muted_subscribers(self, channels: Channels = ()) -> dict[str, list[Hashable]]:
        """Return `{channel: [ids]}` of the subscribers muted on `channels` (none: all)."""
        return snapshots.ids_by_channel(self._supervisor.shared.registry, check_channels(channels), True)

    def non_muted_subscribers(self, channels: Channels = ()) -> dict[str, list[Hashable]]:
        """Return `{channel: [ids]}` of the subscribers not muted on `channels` (none: all)."""
        return snapshots.ids_by_channel(self._supervisor.shared.registry, check_channels(channels), False)

    # -- life cycle -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the listener. If it is running, apply pending changes.

        Raises `psycopg.OperationalError` if it can't connect. The notifier is stopped then.
        """
        self._supervisor.start()

    def restart(self) -> None:
        """Start the listener, or apply pending changes, as `start` does."""
        self._supervisor.start()

    def stop(self, timeout: float = 10.0, *, drain: bool = False) -> None:
        """Stop the listener, throw away what waits, let running callbacks finish for `timeout` seconds, disconnect.

        `drain=True` first delivers what waits, within the same time. In a callback, or on an event loop that has one
        running, it waits for no callback and drains nothing. On a stopped notifier it does nothing.
        """
        seconds = check_timeout(timeout)
        self._sender.close()
        self.__maybe_stop(seconds, drain)
        self._sender.close_idle()  # connections of callbacks that sent meanwhile

    def is_running(self) -> bool:
        """Return True from construction or `start()` until `stop()`, or until the listener ends by itself."""
        return self._supervisor.running

    def wait(self, timeout: float | None = None) -> bool:
        """Block until stopped, at most `timeout` seconds; return True if it is stopped. Ctrl-C interrupts it."""
        return self._supervisor.shared.stopped.wait(None if timeout is None else check_timeout(timeout))

    def status(self) -> Status:
        """Return counters, which only grow, and state, as a plain dict. Never blocks.

        `running`, `connected`, `pid` of the session (or None), `active` channels, `received` notifications,
        `delivered` and `failed` calls, `dropped` and `pending` ones, `restarts` of the listener thread,
        `reconnects`, `last_error` (text or None), `since` (when this state of the connection began, aware UTC),
        `last_failure` (text of the last exception of a callback, an `on_listen` or the decoder, or None),
        `longest_call` (`(id, channel, seconds)` of the call that has been running longest, or None), `confirmed`
        (everything committed before has arrived, aware UTC; None before the first connection).
        """
        supervisor, counts = self._supervisor, self._dispatcher.counts()
        session = supervisor.session
        return {
            "running": supervisor.running,
            "connected": session is not None,
            "pid": session.pid if session is not None else None,
            "active": self.active_channels(),
            "received": self._received,
            "delivered": counts["delivered"],
            "failed": counts["failed"],
            "dropped": counts["dropped"],
            "pending": counts["pending"],
            "restarts": supervisor.shared.restarts,
            "reconnects": supervisor.shared.reconnects,
            "last_error": supervisor.shared.last_error,
            "since": supervisor.since,
            "last_failure": self._dispatcher.last_failure,
            "longest_call": supervisor.calls.longest(),
            "confirmed": supervisor.confirmed,
        }

    def health(self, max_call: float = 60.0) -> Health:
        """Return `Health(live, ready, problems)`, for probes. Sends nothing to the server and never blocks.

        `max_call`: a call that has been running for more seconds counts as stuck.
        """
        return examine(self._supervisor, check_timeout(max_call, "max_call"))

    def notify(self, channel: str, payload: object = "") -> None:
        """Send a notification on a separate connection; return when the server has committed it.

        A str is sent as it is, anything else through `encode`. Raises `InvalidChannel`, `PayloadTooLong`,
        `TypeError`, `ValueError`, and `psycopg.OperationalError` if the server can't be reached or does not answer
        within ten seconds.
        """
        self._sender.send(check_channel(channel), payload)

    # -- 0.0.10's private methods ---------------------------------------------------------------------------

    def __change(self, step: Step, autorun: bool) -> None:
        if autorun:
            self.__maybe_restart(step)
        else:
            self._supervisor.change(step, False)

    def __maybe_restart(self, step: Step | None = None) -> None:
        """Make `step`. If valid and active channels differ, return when the listener has sent LISTEN and UNLISTEN."""
        self._supervisor.change(step or nothing, True, everything=step is None)

    def __maybe_stop(self, timeout: float = 10.0, drain: bool = False) -> None:
        """End the listener thread, if there is one, and close its session; then end the workers."""
        self._supervisor.stop(monotonic() + timeout, drain)

    def __notify(self, generator: Iterable[Notify], since: datetime | None = None) -> tuple[int, float]:
        """Put notifications into the mailboxes of non-muted subscribers. The listener thread, without the lock.

        Returns how many, and, if mailboxes have no room for the others, after how many seconds to try again (else 0).
        """
        batch = generator if isinstance(generator, list) else list(generator)
        taken, seconds = self._dispatcher.post(batch, since or now())
        self._received += taken
        return taken, seconds

    def __valid_chans(self) -> PVector[str]:
        """Return the channels that should be listened to, sorted: not muted, with an unmuted subscriber."""
        return registry.valid_channels(self._supervisor.shared.registry)

    def __mute_chans(self, channels: Channels, b: bool) -> None:
        names = check_channels(channels)
        self.__change(lambda reg: registry.mute_channels(reg, names, b), autorun=True)

    def __mute_sub(self, id: Hashable, channels: Channels, b: bool) -> None:
        check_id(id)
        names = check_channels(channels)
        self.__change(lambda reg: registry.mute_subscriber(reg, id, names, b), autorun=True)

    def _next_serial(self) -> int:
        """Return a number that is greater for each later subscription. Under the state lock."""
        self._serial += 1
        return self._serial

    def __by_mute(self, channels: Channels, b: bool) -> list[str]:
        names, reg = check_channels(channels), self._supervisor.shared.registry
        return sorted(c for c, entry in reg.channels.items() if entry.mute == b and (not names or c in names))

    def _new_stream(self, channels: tuple[str, ...], id: Hashable) -> Stream:
        names = check_channels(channels)
        if not names:
            raise ValueError("listen needs at least one channel")
        return Stream(self, names, check_id(id))

    def _listening(self, stream: Stream, deliver: Deliver) -> Step:
        check_deliver(deliver)
        sub = stream.subscription(deliver == "latest")

        def step(reg: Registry) -> registry.Step:
            if stream.closed:  # while this change was deferred
                return nothing(reg)
            return registry.listen(reg, stream.key, stream.channels, sub, self._next_serial())

        return step

    def _delivery(self) -> tuple[Dispatcher, Calls]:
        return self._dispatcher, self._supervisor.calls

    def _release(self, id: Hashable, puller: Puller) -> None:
        self._supervisor.release(lambda reg: registry.close_stream(reg, id, puller))

    def _forget(self, id: Hashable, puller: Puller) -> None:
        """Have the listener close a collected stream. In a finalizer on any thread: takes no lock."""
        self._supervisor.shared.forgotten.append(lambda reg: registry.close_stream(reg, id, puller))
        self._supervisor.wake()

    def _listened(self) -> Iterable[str]:
        session = self._supervisor.session
        return session.active if session is not None else ()

    def _fatal(self) -> None:
        with contextlib.suppress(Exception):
            self.stop(0)

    def _wake(self) -> None:
        self._supervisor.wake()

    def _forked(self) -> None:
        """Replace the supervisor in a forked child: stopped, without touching the parent's session."""
        old = self._supervisor
        session = old.session
        self._dispatcher = self._dispatcher.for_child(now() if session is None else session.confirmed)
        self._supervisor = self.__supervisor(old.shared.registry)
        self._supervisor.shared.forgotten.extend(old.shared.forgotten)
        old.abandon()
        self._sender.abandon()
