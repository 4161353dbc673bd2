"""Notifier: the public methods, their argument checks, and 0.0.10's private seam.

Behind it, the supervisor has the registry and the connection, and the dispatcher the mailboxes.
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

    - `dbconf`: a conninfo string or URI (SQLAlchemy's too), a mapping of `psycopg.connect` arguments, a URL object of
      SQLAlchemy's, or a callable that returns one, asked before every connection; empty means libpq's environment.
    - `decode`: `str -> object`, called on a worker, once for each notification.
    - `workers`: how many threads run callbacks. `max_pending`: how many notifications may wait for one id.
    - `heartbeat`: seconds after which a session is asked whether it still listens, and has to answer; None: never.
    - `retry_delay`: the least and the most seconds between two attempts to reconnect.
    - `daemon=False`: the interpreter waits at its end until `stop()` or Ctrl-C.
    - `autostart=False`: construction connects nothing and starts no thread; `start()` does, or `with`.
    - `connect_wait`: for so many seconds construction and `start()` try again if the server can't be reached yet.

    Construction connects and listens; it raises `psycopg.OperationalError` when it can't (`CannotListen` on a standby
    or behind a pooler in transaction mode), and leaves nothing behind. `with Notifier(...) as n:` starts it if it is
    stopped, and stops it at the end of the block.

    Every method may be called from any thread, and from inside a callback. `channels` is one name or an iterable of
    names. Each checks its arguments before anything is touched: `TypeError`, and `InvalidChannel` for a name that
    PostgreSQL cannot hold as given. `autorun=False` leaves the set that is listened to as it is until `start()` or
    the next change; who is called follows at once.
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
        """Register channels, unmuted, without subscribers; a no-op for those that exist."""
        names = check_channels(channels)
        self.__change(lambda reg: registry.add_channels(reg, names), autorun=False)

    def remove_channels(self, channels: Channels, autorun: bool = True) -> None:
        """Forget channels with their subscriptions; a no-op for those that do not exist."""
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
        """Have `fn(id, channel, payload, pid)` called for notifications on `channel`, one at a time for each id.

        When this returns, a NOTIFY that commits later is delivered; while the connection is down it returns at
        once, and takes effect with the next. Again for the same pair: replaces `fn` and keeps the mute state.

        - `fn`: a plain function runs on a worker, an `async def` on `loop` or the event loop that is running here.
        - `on_listen(id, channel, gap)` is called in the same stream: with None when listening is in effect for the
          first time (read your state then), with a `Gap` after each stretch in which some may have been missed.
        - `deliver="latest"`: a newer notification takes the place of one that still waits for that id and channel.

        Raises `TypeError` for an `async def` without an event loop, and `psycopg.Error` where the server refuses the
        name; nothing has changed then.
        """
        check_id(id)
        name = check_channel(channel)
        sub = make_subscription(fn, on_listen, deliver, loop)

        self.__change(lambda reg: registry.subscribe(reg, id, name, sub, self._next_serial()), autorun)

    def listen(self, *channels: str, id: Hashable = None, deliver: Deliver = "all") -> Stream:
        """A stream of what comes on `channels`, to be read where and when you like: `for event in stream`.

        When this returns, a NOTIFY that commits later comes, as with `subscribe`. The stream is a subscriber under
        `id`, or under itself where none is given. `deliver` as in `subscribe`. A channel that nobody had registered
        goes with the stream. Raises `ValueError` without a channel and for an id that is registered already, and
        `psycopg.Error` where the server refuses a name; nothing has changed then.
        """
        stream = self._new_stream(channels, id)
        self.__maybe_restart(self._listening(stream, deliver))
        return stream

    def unsubscribe(self, id: Hashable, channel: str, autorun: bool = True) -> None:
        """Remove that pair and no other; a no-op where it does not exist."""
        check_id(id)
        name = check_channel(channel)
        self.__change(lambda reg: registry.unsubscribe(reg, id, name), autorun)

    def mute_channels(self, channels: Channels = ()) -> None:
        """Mute channels (none given: all but SYSCHAN). Raises `UnknownChannel`."""
        self.__mute_chans(channels, True)

    def unmute_channels(self, channels: Channels = ()) -> None:
        """Unmute channels (none given: all but SYSCHAN). Raises `UnknownChannel`."""
        self.__mute_chans(channels, False)

    def mute_subscriber(self, id: Hashable, channels: Channels = ()) -> None:
        """Mute a subscriber on channels (none given: all it is on). Raises `UnknownSubscriber`, `UnknownChannel`."""
        self.__mute_sub(id, channels, True)

    def unmute_subscriber(self, id: Hashable, channels: Channels = ()) -> None:
        """Unmute a subscriber, as `mute_subscriber` mutes it."""
        self.__mute_sub(id, channels, False)

    def channels(self) -> dict[str, ChannelState]:
        """`{channel: {"mute": bool, "active": bool, "subscribers": {id: {"fn": fn, "mute": bool}}}}`, a copy."""
        return snapshots.channels_dict(self._supervisor.shared.registry, self._listened())

    def subscribers(self) -> dict[Hashable, SubscriberState]:
        """`{id: {"fn": latest, "channels": {channel: {"fn", "active", "mute", "sub_mute"}}}}`, a copy."""
        return snapshots.subscribers_dict(self._supervisor.shared.registry, self._listened())

    def active_channels(self) -> list[str]:
        """The channels listened to now, sorted, without SYSCHAN."""
        return sorted(name for name in self._listened() if name != self.SYSCHAN)

    def muted_channels(self, channels: Channels = ()) -> list[str]:
        """The muted among `channels` (none given: among all), sorted."""
        return self.__by_mute(channels, True)

    def non_muted_channels(self, channels: Channels = ()) -> list[str]:
        """The channels that are not muted, among `channels` (none given: among all), sorted."""
        return self.__by_mute(channels, False)

    def muted_subscribers(self, channels: Channels = ()) -> dict[str, list[Hashable]]:
        """`{channel: [ids]}` of the subscribers muted there."""
        return snapshots.ids_by_channel(self._supervisor.shared.registry, check_channels(channels), True)

    def non_muted_subscribers(self, channels: Channels = ()) -> dict[str, list[Hashable]]:
        """`{channel: [ids]}` of the subscribers not muted there."""
        return snapshots.ids_by_channel(self._supervisor.shared.registry, check_channels(channels), False)

    # -- life cycle -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Bring the listener into being where there is none; on a running one apply what is pending.

        Raises `psycopg.OperationalError` when it can't connect, and is stopped then.
        """
        self._supervisor.start()

    def restart(self) -> None:
        """As `start`."""
        self._supervisor.start()

    def stop(self, timeout: float = 10.0, *, drain: bool = False) -> None:
        """End the listener, let running callbacks finish for `timeout` seconds, drop what waits, disconnect.

        `drain=True` delivers what waits first, within the same time. From a callback, or on an event loop that has
        one running, it waits for none and drains nothing. A no-op on a stopped notifier.
        """
        seconds = check_timeout(timeout)
        self._sender.close()
        self.__maybe_stop(seconds, drain)
        self._sender.close_idle()  # of callbacks that sent meanwhile

    def is_running(self) -> bool:
        """True from construction or `start()` until `stop()`, or until the listener has ended for another reason."""
        return self._supervisor.running

    def wait(self, timeout: float | None = None) -> bool:
        """Block until stopped, for `timeout` seconds at most; whether it is stopped. Ctrl-C interrupts it."""
        return self._supervisor.shared.stopped.wait(None if timeout is None else check_timeout(timeout))

    def status(self) -> Status:
        """Counters, which only grow, and state, as a plain dict.

        `running`, `connected`, `pid` of the session (or None), `active` channels, `received` notifications,
        `delivered` and `failed` calls, `dropped` and `pending` ones, `restarts` of the listener thread,
        `reconnects`, `last_error` (text or None), `since` (when this state of the connection began, aware UTC),
        `last_failure` (text of the last exception of a callback, an `on_listen` or the decoder, or None),
        `longest_call` (`(id, channel, seconds)` of the call that has been running longest, or None), `confirmed` (all
        that was committed before has arrived, aware UTC; None before the first connection).
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
        """Whether it works, for probes: `Health(live, ready, problems)`. Asks no server and never blocks.

        `max_call`: seconds after which a call that has not returned counts as stuck.
        """
        return examine(self._supervisor, check_timeout(max_call, "max_call"))

    def notify(self, channel: str, payload: object = "") -> None:
        """Send on a connection of its own; returns when the server has committed. A str goes as it is.

        Anything else goes through `encode`. Raises `InvalidChannel`, `PayloadTooLong`, `TypeError`, `ValueError`, and
        `psycopg.OperationalError` where the server can't be reached or gives no answer for ten seconds.
        """
        self._sender.send(check_channel(channel), payload)

    # -- 0.0.10's private seam ------------------------------------------------------------------------------

    def __change(self, step: Step, autorun: bool) -> None:
        if autorun:
            self.__maybe_restart(step)
        else:
            self._supervisor.change(step, False)

    def __maybe_restart(self, step: Step | None = None) -> None:
        """Compare valid with active channels; where they differ: end the thread, and LISTEN on the next one."""
        self._supervisor.change(step or nothing, True, everything=step is None)

    def __maybe_stop(self, timeout: float = 10.0, drain: bool = False) -> None:
        """End the listener thread, where there is one, and close its session; then the workers."""
        self._supervisor.stop(monotonic() + timeout, drain)

    def __notify(self, generator: Iterable[Notify], since: datetime | None = None) -> tuple[int, float]:
        """Put what the generator yields into the mailboxes of the non-muted subscribers.

        Returns how many, and, where mailboxes have no room for the others, after how many seconds to try again.
        """
        batch = generator if isinstance(generator, list) else list(generator)
        taken, seconds = self._dispatcher.post(batch, since or now())
        self._received += taken
        return taken, seconds

    def __valid_chans(self) -> PVector[str]:
        """The channels that should be listened to: not muted, with an unmuted subscriber; sorted."""
        return registry.valid_channels(self._supervisor.shared.registry)

    def __mute_chans(self, channels: Channels, b: bool) -> None:
        names = check_channels(channels)
        self.__change(lambda reg: registry.mute_channels(reg, names, b), autorun=True)

    def __mute_sub(self, id: Hashable, channels: Channels, b: bool) -> None:
        check_id(id)
        names = check_channels(channels)
        self.__change(lambda reg: registry.mute_subscriber(reg, id, names, b), autorun=True)

    def _next_serial(self) -> int:
        """A number for a subscription, greater the later it is made. Under the state lock."""
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
            if stream.closed:  # meanwhile, where this waits for what a signal handler has interrupted
                return nothing(reg)
            return registry.listen(reg, stream.key, stream.channels, sub, self._next_serial())

        return step

    def _delivery(self) -> tuple[Dispatcher, Calls]:
        return self._dispatcher, self._supervisor.calls

    def _release(self, id: Hashable, puller: Puller) -> None:
        self._supervisor.release(lambda reg: registry.close_stream(reg, id, puller))

    def _forget(self, id: Hashable, puller: Puller) -> None:
        """In a finalizer: takes no lock."""
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
        """In a forked child: stopped, without touching the parent's session."""
        old = self._supervisor
        session = old.session
        self._dispatcher = self._dispatcher.for_child(now() if session is None else session.confirmed)
        self._supervisor = self.__supervisor(old.shared.registry)
        self._supervisor.shared.forgotten.extend(old.shared.forgotten)
        old.abandon()
        self._sender.abandon()
