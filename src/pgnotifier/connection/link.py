"""One `start` to `stop`: its sessions, one after the other, and its listener threads.

The first connection and every later one are made by the same function, and published only when what they listen
to is what the registry of that moment wants. The session is touched by its owner alone: the listener thread, or
whoever changes channels between two listener threads.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic
from typing import Any

import psycopg

from .. import registry
from ..delivery.dispatcher import Delivery
from ..log import CRITICAL, ERROR, INFO, WARNING, describe, log
from ..registry import SYSCHAN, Registry
from ..types import DbConf
from . import backoff
from .connect import Abandoned, Breaker
from .listener import Listener, new_loop
from .session import Session, now

STOP_TIME = 0.5  # seconds that the end waits for a thread that is asking for a name or a dbconf


@dataclass
class History:
    """What `status()` tells of all links."""

    restarts: int = 0
    reconnects: int = 0
    last_error: str | None = None
    since: datetime = field(default_factory=now)


@dataclass(frozen=True)
class Setting:
    """What links are made of; `notify(batch, well, give_up)` hands over, `wanted()` is the registry, under `lock`."""

    source: DbConf
    heartbeat: float | None
    retry_delay: tuple[float, float]
    delivery: Delivery
    notify: Callable[[list[Any], datetime, Callable[[], bool]], int]
    wanted: Callable[[], Registry]
    lock: Any
    history: History


class Link:
    """`session` is None while the connection is lost, `closed` from the moment that nobody wants it any more."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._breaker = Breaker()
        self._loop = new_loop()
        self._running = threading.Lock()  # held by the thread that runs the loop
        self.turn: threading.Lock = threading.Lock()  # whoever has it owns the session
        self.session: Session | None = None
        self._listeners: tuple[Listener, ...] = ()
        self.closed = False
        self.wished = False  # somebody who changes channels waits for the turn
        self._orphaned = False  # its thread was left asking for a name or a dbconf: that thread cleans up
        self._up_since = self._down_since = monotonic()
        self._attempt = 0
        self._well = now()

    @property
    def well(self) -> datetime:
        """Before that moment all has been received."""
        session = self.session
        if session is not None:
            self._well = session.well
        return self._well

    def connect(self) -> Session:
        """A new session that listens to all that is wanted, published. Raises what kept it from that."""
        setting = self._setting
        session = Session(setting.source, setting.heartbeat, self._breaker)
        try:
            session.prove(setting.source)
            refused: dict[str, psycopg.Error] = {}
            reg: Registry | None = None
            while True:
                with self.turn:
                    with setting.lock:
                        if self.closed:
                            raise Abandoned("given up: the notifier was stopped")
                        reg, before = setting.wanted(), reg
                        if reg is before:  # nothing has changed since it was asked for
                            self.session = session
                            self._up_since = monotonic()
                    if reg is before:
                        setting.delivery.connected(lambda: session.active, session.well)
                        break
                session.leftover()  # from channels as they were wanted a moment ago; a gap covers it
                valid = {SYSCHAN, *registry.valid_channels(reg)}
                add = [name for name in valid if name not in session.active and name not in refused]
                remove = [name for name in session.active if name not in valid]
                refused.update(session.listen_where_allowed(add, remove, session.leftover))
                session.verify()
        except BaseException:
            session.close()
            raise
        self.report_refused(refused)
        setting.history.since = now()
        return session

    def hand_over(self, session: Session, seconds: float = 0.0) -> None:
        """By its owner: what was read until now goes to those who are subscribed now, before that changes.

        Among it may be the last of a channel that is listened to no more, and about to be again. Waits for room in
        full mailboxes, as the listener thread does, for `seconds` at most.
        """
        end = monotonic() + seconds
        batch = session.arrived()
        if batch:
            taken = self._setting.notify(batch, session.drained, lambda: self.closed or monotonic() >= end)
            if taken < len(batch):
                session.put_back(batch[taken:])

    def report_refused(self, refused: dict[str, psycopg.Error]) -> None:
        """Tell of names that the server does not take; the other channels are heard."""
        for name, error in refused.items():
            log(ERROR, "the server refuses to listen to channel %r: %s", name, describe(error))
            event = {"event": "channel_refused", "channel": name, "error": describe(error)}
            self._setting.delivery.event(event)

    def spawn(self) -> None:
        """Start the next listener thread: on the session or, where it is lost, to connect again.

        Raises what kept the thread from starting.
        """
        with self._setting.lock:
            if self.closed:
                return
            before = self.listener
            new = Listener(
                self._loop,
                self._running,
                self.turn,
                lambda: self.session,
                lambda: self.wished,
                self._setting.notify,
                self._setting.delivery.nudge,
                self.lost,
                self._reconnect,
                self.spawn,
                self._thread_ended,
            )
            self._listeners = (before, new) if before is not None else (new,)
        try:
            new.start()
        except Exception:  # it has not begun; after Ctrl-C it may have, and is stopped with the others
            with self._setting.lock:
                self._listeners = (before,) if before is not None else ()
            raise

    @property
    def listener(self) -> Listener | None:
        """The one that listens, or is about to; the one before it may be ending."""
        listeners = self._listeners
        return listeners[-1] if listeners else None

    @property
    def is_here(self) -> bool:
        """Whether this is a listener thread."""
        return any(listener.is_here for listener in self._listeners)

    def lost(self, session: Session, error: BaseException) -> None:
        """By the owner of the session: it is of no more use."""
        delivery, history = self._setting.delivery, self._setting.history
        with self._setting.lock:
            if self.closed or self.session is not session:
                session.close()
                return
            self._well = session.well
            self.session = None
            self._down_since = monotonic()
            history.last_error, history.since = describe(error), now()
        session.close()
        well, rest = session.well, session.leftover()
        if rest:
            self._setting.notify(rest, well, lambda: self.closed)
        delivery.deaf("connection", well, describe(error))
        if isinstance(error, psycopg.Error | UnicodeError | OSError):
            log(WARNING, "the connection is lost: %s", describe(error))
        else:
            log(CRITICAL, "the listener met what it did not expect, and connects again", error=error)
        delivery.event({"event": "disconnected", "error": describe(error)})

    def _reconnect(self) -> Session | None:
        """On the listener thread: connect again, for ever; None where the notifier was stopped meanwhile."""
        least, most = self._setting.retry_delay
        history = self._setting.history
        self._attempt = backoff.next_attempt(self._attempt, self._down_since - self._up_since, least, most)
        attempts = 0
        while True:
            seconds = backoff.delay(self._attempt, least, most, random.random())
            attempts += 1
            log(WARNING, "connecting again in %.2f s, attempt %d", seconds, attempts)
            try:
                self._breaker.wait(monotonic() + seconds)
                session = self.connect()
            except Abandoned:
                return None
            except BaseException as error:  # whatever a callable dbconf may raise
                history.last_error = describe(error)
                log(WARNING, "attempt %d to connect failed: %s", attempts, history.last_error)
                self._attempt += 1
                continue
            down_for = monotonic() - self._down_since
            history.reconnects += 1
            log(INFO, "connected again after %.2f s, attempt %d", down_for, attempts)
            self._setting.delivery.event({"event": "reconnected", "down_for": down_for, "attempts": attempts})
            return session

    # -- the end -------------------------------------------------------------------------------------------

    def give_up(self) -> None:
        """End all waits for the server, in any thread."""
        self._breaker.snap()

    def end(self, undisturbed: bool, drain: bool = False) -> list[Any]:
        """Close what the link holds; with `drain` return what had arrived.

        `undisturbed`: no other thread is changing channels or connecting; one that is closes what it gets.
        """
        rest: list[Any] = []
        for listener in self._listeners:  # there will be no more
            listener.ask_to_stop()
            if not listener.join(STOP_TIME):
                self._orphaned = True
                if not listener.join(0):
                    return rest
        self._well = self.well
        session, self.session = self.session, None
        if session is not None:
            if drain:
                try:
                    rest = session.drain()
                except Exception:
                    rest = session.leftover()
            session.close()
        if undisturbed:
            self._close()
        return rest

    def abandon(self) -> None:
        """In a forked child: let go of the parent's session without touching it."""
        if self.session is not None:
            self.session.abandon()
        self._breaker.close()
        _kept.append(self)

    def _thread_ended(self) -> None:
        if self._orphaned:
            self._close()

    def _close(self) -> None:
        session, self.session = self.session, None
        if session is not None:
            session.close()
        self._breaker.close()
        if not self._loop.is_running():
            self._loop.close()


_kept: list[Any] = []  # in a forked child: never collected, for its clean-up is the parent's
