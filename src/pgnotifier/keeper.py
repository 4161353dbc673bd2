"""What is wanted and what is: the registry, the connection, and the roads that close the difference.

`change` records what is wanted and has the server listen to it; `start` connects, and so does the listener thread
after a loss, by the same function. One lock is held to swap values and for nothing else; another serialises
changes, so that each sees the one before in effect. User code never runs under either, but for a callable
`dbconf` that is asked in `start`.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable
from datetime import datetime
from time import monotonic
from typing import Any

import psycopg

from . import backoff, registry
from .calls import logger
from .delivery import NOTHING, Delivery
from .errors import CannotListen
from .listener import Listener, new_loop
from .registry import EMPTY, SYSCHAN, Registry
from .session import Session, now
from .wire import Abandoned, Breaker, Source

STOP_TIME = 0.5  # seconds that stop() waits for a thread that is asking for a name or a dbconf


class Link:
    """One `start` to `stop`: its sessions, one after the other, and its listener threads."""

    def __init__(self) -> None:
        self.breaker = Breaker()
        self.loop = new_loop()
        self.session: Session | None = None  # None while the connection is lost
        self.listener: Listener | None = None
        self.closed = False
        self.up_since = self.down_since = monotonic()
        self.attempt = 0
        self.orphaned = False  # stopped while its thread asked for a name or a dbconf: that thread cleans up

    def close(self) -> None:
        self.breaker.close()
        if not self.loop.is_running():
            self.loop.close()


class Keeper:
    def __init__(
        self,
        source: Source,
        heartbeat: float | None,
        retry_delay: tuple[float, float],
        delivery: Delivery,
        notify: Callable[[list[Any], datetime, Callable[[], bool]], int],
        reg: Registry = EMPTY,
    ) -> None:
        self._source, self._heartbeat, self._retry_delay = source, heartbeat, retry_delay
        self._delivery, self._notify = delivery, notify
        self.registry = reg
        self._lock = threading.RLock()  # reentrant: a signal handler may stop the notifier anywhere
        self._changing = threading.RLock()
        self.link: Link | None = None
        self.stopped = threading.Event()
        self.stopped.set()
        self.restarts = self.reconnects = 0
        self.last_error: str | None = None
        self.since: datetime = now()

    # -- a change ------------------------------------------------------------------------------------------

    def change(self, step: Callable[[Registry], Registry], apply: Callable[[Registry], None] | None) -> None:
        """Compute the next registry, and `apply` it (None: record it, and leave what is listened to as it is)."""
        with self._changing:
            new = step(self.registry)
            if apply is not None:
                apply(new)
            elif new is not self.registry:
                with self._lock:
                    self._swap(new)

    def apply(self, new: Registry) -> None:
        """Have the server listen to what `new` makes valid, then make it the registry; restart the listener for it.

        Where the server refuses a name that `new` brought, that error is raised, and nothing has changed.
        """
        with self._changing:
            with self._lock:
                link = self.link
                session = link.session if link is not None else None
                if link is None or session is None:
                    self._swap(new)  # recorded: the next connection listens to all of it
                    return
                add = [name for name in new.stale if name in new.valid and name not in session.active]
                remove = [name for name in new.stale if name not in new.valid and name in session.active]
                if not add and not remove:
                    if new is not self.registry or new.stale:
                        self._swap(new, told=True)
                    return
                old = link.listener
                if old is not None:
                    old.ask_to_stop()
            try:
                if old is not None:
                    old.join()
                self._listen(link, session, new, add, remove)
            finally:
                self.restarts += 1
                self._spawn(link)

    def _listen(self, link: Link, session: Session, new: Registry, add: list[str], remove: list[str]) -> None:
        own = {name for name, _ in new.touched}
        well = session.well
        try:
            if link.session is session:  # else lost while the thread ended
                refused = session.listen_where_allowed(add, remove)
                if own & refused.keys():
                    added = [name for name in add if name not in refused]
                    session.listen_where_allowed(remove, added)
                    raise refused[next(iter(own & refused.keys()))]
                self._report_refused(refused)
        except psycopg.Error as error:
            if not session.lost and not isinstance(error, CannotListen):
                raise
            self._lost(session, error)
        except BaseException as error:  # Ctrl-C in mid-command: what would follow on this session is undefined
            self._lost(session, error)
            raise
        with self._lock:
            if link.session is session:
                self._swap(new, [*add, *remove], well, told=True)
            else:
                self._swap(new)

    def _swap(
        self, new: Registry, changed: Iterable[str] = (), well: datetime | None = None, told: bool = False
    ) -> None:
        """Make `new` the registry, by which calls are made from now on; under the lock."""
        session = self.link.session if self.link is not None else None
        touched = new.touched
        if session is None or told:  # a connection to come begins with all that is valid
            new = registry.told(new)
        self.registry = new = registry.recorded(new)
        if session is None:
            self._delivery.publish(new, touched, NOTHING, (), well or now())
        else:
            self._delivery.publish(new, touched, session.active, changed, well or session.well)

    def _spawn(self, link: Link) -> None:
        """Start the next listener thread, on the session or, where it is lost, to connect again."""
        with self._lock:
            if link.closed:
                return
            try:
                link.listener = Listener(
                    link.loop,
                    link.session,
                    link.listener,
                    self._notify,
                    self._delivery.nudge,
                    self._lost,
                    lambda: self._reconnect(link),
                    lambda: link.close() if link.orphaned else None,
                )
                return
            except BaseException as error:  # no more threads: there is nothing left to listen with
                self.last_error = _text(error)
                logger.critical("the listener has ended: %s", self.last_error)
                self.link, link.closed = None, True
        self._end(link)
        self.stopped.set()

    def _report_refused(self, refused: dict[str, psycopg.Error]) -> None:
        for name, error in refused.items():
            logger.error("the server refuses to listen to channel %r: %s", name, error)
            self._delivery.event({"event": "channel_refused", "channel": name, "error": _text(error)})

    # -- connecting ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect and begin to listen, where there is no link; else apply what is pending."""
        with self._changing:
            if self.link is not None:
                self.apply(self.registry)
                return
            link = Link()
            with self._lock:
                self.link = link
                self.stopped.clear()
            try:
                self._delivery.start(self.registry)
                self._connect(link)
            except BaseException:
                with self._lock:
                    if self.link is link:
                        self.link = None
                    link.closed = True
                self._delivery.stop({}, now(), monotonic() + STOP_TIME, wait=True)
                self._end(link)
                self.stopped.set()
                raise
            self.since = now()
            self._delivery.event({"event": "connected"})
            logger.info("connected, listening to %d channels", len(self.registry.valid))
            self._spawn(link)

    def _connect(self, link: Link) -> Session:
        """A new session that listens to all that is valid, published; the first one and any later one."""
        session = Session(self._source, self._heartbeat, link.breaker)
        try:
            refused: dict[str, psycopg.Error] = {}
            reg: Registry | None = None
            while True:
                with self._lock:
                    if link.closed:
                        raise Abandoned("given up: the notifier was stopped")
                    if self.registry is reg:
                        link.session = session
                        link.up_since = monotonic()
                        break
                    reg = self.registry
                add = [name for name in (SYSCHAN, *reg.valid) if name not in session.active and name not in refused]
                remove = [name for name in session.active if name not in reg.valid and name != SYSCHAN]
                refused.update(session.listen_where_allowed(add, remove))
                session.verify()
        except BaseException:
            session.close()
            raise
        self._delivery.connected(session.active, session.well)
        self._report_refused(refused)
        return session

    def _reconnect(self, link: Link) -> Session | None:
        """On the listener thread: connect again, for ever; None where the notifier was stopped meanwhile."""
        least, most = self._retry_delay
        link.attempt = backoff.next_attempt(link.attempt, link.down_since - link.up_since, least, most)
        attempts = 0
        while True:
            seconds = backoff.delay(link.attempt, least, most, random.random())
            attempts += 1
            logger.warning("connecting again in %.2f s, attempt %d", seconds, attempts)
            try:
                link.breaker.wait(monotonic() + seconds)
                session = self._connect(link)
            except Abandoned:
                return None
            except Exception as error:
                self.last_error = _text(error)
                logger.warning("attempt %d to connect failed: %s", attempts, self.last_error)
                link.attempt += 1
                continue
            down_for = monotonic() - link.down_since
            self.reconnects += 1
            self.since = now()
            logger.info("connected again after %.2f s, attempt %d", down_for, attempts)
            self._delivery.event({"event": "reconnected", "down_for": down_for, "attempts": attempts})
            return session

    def _lost(self, session: Session, error: BaseException) -> None:
        """By whoever has the session: it is of no more use."""
        with self._lock:
            link = self.link
            if link is None or link.session is not session:
                session.close()
                return
            link.session = None
            link.down_since = monotonic()
        text = self.last_error = _text(error)
        if isinstance(error, psycopg.Error | UnicodeError | OSError):
            logger.warning("the connection is lost: %s", text)
        else:
            logger.critical("the listener met what it did not expect, and connects again", exc_info=error)
        session.close()
        rest = session.leftover()
        if rest:
            self._notify(rest, session.well, lambda: False)
        self._delivery.disconnected(session.well, text)
        self._delivery.event({"event": "disconnected", "error": text})

    # -- the end -------------------------------------------------------------------------------------------

    def stop(self, deadline: float, drain: bool) -> None:
        """End the listener, then the workers, until `deadline` (monotonic seconds) at most; drop what waits."""
        wait = not self._delivery.in_a_callback()
        with self._lock:
            link, self.link = self.link, None
            if link is not None:
                link.closed = True
        well = now()
        if link is not None:
            if link.session is not None:
                well = link.session.well
            link.breaker.snap()
            rest = self._end(link, drain=drain and wait)
            if drain and wait:
                self._notify(rest, well, lambda: monotonic() > deadline)
                self._delivery.drain(deadline)
        self._delivery.stop({"event": "stopped"}, well, deadline, wait=wait)
        with self._lock:
            if self.link is None:  # nobody has started it again meanwhile
                self.stopped.set()

    def _end(self, link: Link, drain: bool = False) -> list[Any]:
        """Close what a link holds, once nobody uses it any more; returns what had arrived."""
        rest: list[Any] = []
        # Another thread may be between two listener threads; what it waits for has been ended by the breaker.
        changing = self._changing.acquire(timeout=STOP_TIME)
        try:
            listener = link.listener
            if listener is not None:
                listener.ask_to_stop()
                if not listener.join(STOP_TIME):
                    link.orphaned = True
                    if not listener.join(0):
                        return rest
            session, link.session = link.session, None
            if session is not None:
                if drain:
                    try:
                        rest = session.drain()
                    except Exception:
                        rest = session.leftover()
                session.close()
        finally:
            if changing:
                self._changing.release()
        if changing:
            link.close()
        return rest

    def well(self) -> datetime:
        """Before that moment all has been received."""
        session = self.link.session if self.link is not None else None
        return session.well if session is not None else now()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's session without touching it."""
        if self.link is not None:
            if self.link.session is not None:
                self.link.session.abandon()
            self.link.breaker.close()
            _kept.append(self.link)  # never collected: its clean-up is the parent's


_kept: list[Any] = []


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
