"""Notifier: argument checks, the lock, the one reference to the registry, and 0.0.10's private seam.

A change is made under one lock that serialises changes: the new registry is computed, the server listens to
what it makes valid, and only then is it swapped in, so that a refused call leaves everything as it was. User
code never runs under that lock, and readers take none.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterable
from datetime import datetime, timezone
from time import monotonic
from typing import Any

import psycopg
from pyrsistent import PVector

from . import lifecycle, registry
from .delivery import Delivery, logger
from .listener import Listener
from .payload import decode as default_decode
from .registry import EMPTY, Callback, Registry
from .sender import Sender
from .session import Session, Source

Channels = str | Iterable[str]


class Notifier:
    """Calls subscribers back, by id, for notifications on PostgreSQL channels.

    `dbconf`: a mapping of `psycopg.connect` arguments, a conninfo string or URI, or a callable that returns
    either; empty means libpq's environment. `decode`: `str -> object`, run on a worker. `workers`: how many
    threads run callbacks. `daemon=False`: the interpreter waits at its end until `stop()` or Ctrl-C.

    Construction connects and listens; it raises `psycopg.OperationalError` when it can't, and leaves nothing
    behind. Every method may be called from any thread, and from inside a callback.
    """

    SYSCHAN = registry.SYSCHAN

    def __init__(
        self,
        dbconf: Source = "",
        *,
        decode: Callable[[str], Any] = default_decode,
        workers: int = 1,
        daemon: bool = True,
    ) -> None:
        if not callable(decode):
            raise TypeError(f"decode must be callable, not {decode!r:.100}")
        if type(workers) is not int or workers < 1:
            raise ValueError(f"workers must be an int of at least 1, not {workers!r:.100}")
        self._source = dbconf
        self._decode = decode
        self._workers = workers
        self.daemon = bool(daemon)
        self._registry: Registry = EMPTY
        self._serial = 0
        self._received = self._delivered = self._failed = self._restarts = 0
        self._last_error: str | None = None
        self._since = datetime.now(timezone.utc)
        self._sender = Sender(dbconf)
        self._reset()
        self.start()
        lifecycle.watch(self)

    def _reset(self) -> None:
        """No listener, no workers, fresh locks: as constructed, and in a forked child."""
        self._changing = threading.RLock()
        self._session: Session | None = None
        self._listener: Listener | None = None
        self._delivery: Delivery | None = None
        self._stopped = threading.Event()
        self._stopped.set()

    def __enter__(self) -> Notifier:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # -- the registry ---------------------------------------------------------------------------------------

    def add_channels(self, channels: Channels) -> None:
        """Register channels, unmuted, without subscribers; a no-op for those that exist."""
        names = registry.check_channels(channels)
        self.__change(lambda reg: registry.add_channels(reg, names), autorun=False)

    def remove_channels(self, channels: Channels, autorun: bool = True) -> None:
        """Forget channels with their subscriptions; a no-op for those that do not exist."""
        names = registry.check_channels(channels)
        self.__change(lambda reg: registry.remove_channels(reg, names), autorun)

    def subscribe(self, id: Hashable, channel: str, fn: Callback, autorun: bool = True) -> None:
        """Have `fn(id, channel, payload, pid)` called on a worker for notifications on `channel`.

        Again for the same pair: replaces `fn` and keeps the mute state. When it returns, a NOTIFY that commits
        later is delivered. Raises `psycopg.Error` where the server refuses the name, and changes nothing then.
        """
        registry.check_id(id)
        name = registry.check_channel(channel)
        if not callable(fn):
            raise TypeError(f"a callback must be callable, not {fn!r:.100}")

        def step(reg: Registry) -> Registry:
            self._serial += 1
            return registry.subscribe(reg, id, name, fn, self._serial)

        self.__change(step, autorun)

    def unsubscribe(self, id: Hashable, channel: str, autorun: bool = True) -> None:
        """Remove that pair and no other; a no-op where it does not exist."""
        registry.check_id(id)
        name = registry.check_channel(channel)
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

    def channels(self) -> dict[str, dict[str, Any]]:
        """`{channel: {"mute": bool, "active": bool, "subscribers": {id: {"fn": fn, "mute": bool}}}}`, a copy."""
        return registry.channels_dict(self._registry, self._listened())

    def subscribers(self) -> dict[Hashable, dict[str, Any]]:
        """`{id: {"fn": latest, "channels": {channel: {"fn", "active", "mute", "sub_mute"}}}}`, a copy."""
        return registry.subscribers_dict(self._registry, self._listened())

    def active_channels(self) -> list[str]:
        """The channels listened to now, sorted, without SYSCHAN."""
        return sorted(self._listened() - {self.SYSCHAN})

    def muted_channels(self, channels: Channels = ()) -> list[str]:
        """The muted among `channels` (none given: among all), sorted."""
        return self.__by_mute(channels, True)

    def non_muted_channels(self, channels: Channels = ()) -> list[str]:
        """The channels that are not muted, among `channels` (none given: among all), sorted."""
        return self.__by_mute(channels, False)

    def muted_subscribers(self, channels: Channels = ()) -> dict[str, list[Hashable]]:
        """`{channel: [ids]}` of the subscribers muted there."""
        return registry.ids_by_channel(self._registry, registry.check_channels(channels), True)

    def non_muted_subscribers(self, channels: Channels = ()) -> dict[str, list[Hashable]]:
        """`{channel: [ids]}` of the subscribers not muted there."""
        return registry.ids_by_channel(self._registry, registry.check_channels(channels), False)

    # -- life cycle -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Bring the listener into being where there is none; on a running one apply what is pending."""
        with self._changing:
            if self.is_running():
                self.__maybe_restart()
            else:
                self.__maybe_stop()  # what is left of a session that was lost
                self.__connect()

    def restart(self) -> None:
        """As `start`."""
        self.start()

    def stop(self, timeout: float = 10.0) -> None:
        """End the listener, let running callbacks finish for `timeout` seconds, drop what waits, disconnect.

        From a callback it waits for none. A no-op on a stopped notifier.
        """
        deadline = monotonic() + timeout
        while not self._changing.acquire(timeout=0.05):
            session = self._session
            if session is not None:
                session.abort()  # another thread's change waits for the server: it is abandoned
        try:
            self.__maybe_stop()
            delivery, self._delivery = self._delivery, None
        finally:
            self._changing.release()
        if delivery is not None:
            delivery.stop({"event": "stopped"}, max(0.0, deadline - monotonic()))
            self._delivered += delivery.delivered
            self._failed += delivery.failed
        self._sender.close()
        with self._changing:
            if self._session is None:  # nobody has started it again meanwhile
                self._stopped.set()

    def is_running(self) -> bool:
        """True from construction or `start()` until `stop()`, or until the listener has ended."""
        return self._session is not None and not self._stopped.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until stopped, for `timeout` seconds at most; whether it is stopped. Ctrl-C interrupts it."""
        return self._stopped.wait(timeout)

    def status(self) -> dict[str, Any]:
        """Counters and state as a plain dict; counters only grow."""
        delivery, session = self._delivery, self._session
        return {
            "running": self.is_running(),
            "connected": session is not None and self.is_running(),
            "pid": session.pid if session is not None else None,
            "active": self.active_channels(),
            "received": self._received,
            "delivered": self._delivered + (delivery.delivered if delivery else 0),
            "failed": self._failed + (delivery.failed if delivery else 0),
            "pending": delivery.pending() if delivery else 0,
            "restarts": self._restarts,
            "last_error": self._last_error,
            "since": self._since,
        }

    def notify(self, channel: str, payload: object = "") -> None:
        """Send on a connection of its own; returns when the server has committed. A str goes as it is."""
        self._sender.send(registry.check_channel(channel), payload)

    # -- 0.0.10's private seam ------------------------------------------------------------------------------

    def __change(self, step: Callable[[Registry], Registry], autorun: bool) -> None:
        with self._changing:
            new = step(self._registry)
            if autorun:
                self.__maybe_restart(new)
            self.__publish(new)

    def __publish(self, new: Registry) -> None:
        self._registry = new
        if self._delivery is not None:
            self._delivery.publish(new)

    def __maybe_restart(self, new: Registry | None = None) -> None:
        """Compare valid with active channels; where they differ: stop the thread, LISTEN, start a new one."""
        session = self._session
        if new is None:
            new = self._registry
        if session is None or self._stopped.is_set():
            return  # stopped: changes are only recorded
        wanted = {self.SYSCHAN, *self.__valid_chans(new)}
        if wanted == session.listened:
            return
        if self._listener is not None:
            self._listener.stop()
        try:
            session.listen(wanted)
            self.__publish(new)
        except psycopg.OperationalError as error:
            self.__lost(error)
            self.__publish(new)
            return
        except BaseException as error:
            if not isinstance(error, psycopg.Error):  # Ctrl-C in mid-command: what follows on it is undefined
                session.abort()
            raise
        finally:
            if not self._stopped.is_set():
                self._restarts += 1
                self.__listen(session)

    def __listen(self, session: Session) -> None:
        self._listener = Listener(session, self.__notify, self.__lost)

    def __connect(self) -> None:
        session = Session(self._source)
        try:
            session.listen({self.SYSCHAN, *self.__valid_chans()})
            # The workers outlive a lost session: what it brought is still delivered.
            delivery = self._delivery or Delivery(self._workers, self._decode, self._registry, self.__fatal)
        except BaseException:
            session.close()
            raise
        delivery.post_event({"event": "connected"})
        self._session, self._delivery = session, delivery
        self._since = datetime.now(timezone.utc)
        self._stopped.clear()
        self.__listen(session)

    def __maybe_stop(self) -> None:
        """End the listener thread, where there is one, and close its session."""
        listener, self._listener = self._listener, None
        session, self._session = self._session, None
        if listener is not None:
            listener.stop()
        if session is not None:
            session.close()

    def __lost(self, error: BaseException) -> None:
        """The listener thread, or a change, met an error that ends the session."""
        self._last_error = f"{type(error).__name__}: {error}"
        logger.error("the connection is lost, the listener has ended: %s", self._last_error)
        self._stopped.set()

    def __fatal(self) -> None:
        with contextlib.suppress(Exception):
            self.stop(0)

    def __notify(self, generator: Iterable[psycopg.Notify]) -> None:
        """Hand what the generator yields to the mailboxes of the non-muted subscribers."""
        batch = list(generator)
        self._received += len(batch)
        delivery = self._delivery
        if delivery is not None:
            delivery.post(batch)

    def __valid_chans(self, reg: Registry | None = None) -> PVector[str]:
        """The channels that should be listened to: not muted, with an unmuted subscriber; sorted."""
        return registry.valid_channels(self._registry if reg is None else reg)

    def __mute_chans(self, channels: Channels, b: bool) -> None:
        names = registry.check_channels(channels)
        self.__change(lambda reg: registry.mute_channels(reg, names, b), autorun=True)

    def __mute_sub(self, id: Hashable, channels: Channels, b: bool) -> None:
        registry.check_id(id)
        names = registry.check_channels(channels)
        self.__change(lambda reg: registry.mute_subscriber(reg, id, names, b), autorun=True)

    def __by_mute(self, channels: Channels, b: bool) -> list[str]:
        names, reg = registry.check_channels(channels), self._registry
        return sorted(c for c, entry in reg.channels.items() if entry.mute == b and (not names or c in names))

    def _listened(self) -> frozenset[str]:
        session = self._session
        return session.listened if session is not None and self.is_running() else frozenset()

    def _forked(self) -> None:
        """In a forked child: stopped, without touching the parent's session."""
        if self._session is not None:
            self._session.abandon()
        self._sender.abandon()
        self._reset()
