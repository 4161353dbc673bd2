"""Consumers: a thread that waits until its name is free, then for published entries (guarantee 18)."""

from __future__ import annotations

import asyncio
import threading
from time import monotonic
from typing import TypedDict

import psycopg

from .. import lifecycle, threads
from ..connection import Abandoned, CancelToken
from ..errors import StreamClosed
from ..log import CRITICAL, ERROR, INFO, WARNING, describe, log
from . import upkeep
from .lease import POLL, Lease
from .rounds import Order, Rounds
from .seam import Seam
from .sessions import Session, inside
from .slices import Moved, Removed, TurnEnded, leads, stored
from .work import CallFailed

CHANNEL = "pgnotifier_journal"  # on which the trigger of the table wakes consumers
TRIM_EVERY = 60.0  # seconds
TRIM_STEPS = 20  # transactions, each time
SERVER_SECONDS = 1.0  # that `stop` waits for the server
BUSY = 0.05  # seconds until a position that another session has locked is read again


class ConsumerStatus(TypedDict):
    """`Consumer.status()`. `active`: this process, of those of the name, consumes now."""

    name: str
    running: bool
    active: bool
    delivered: int
    failed: int
    skipped: int
    last_error: str | None


class Consumer:
    """Calls back for the entries of some channels, by name. Made by `Journal.consume`; runs until `stop()`.

    It also ends with its notifier. `with` stops it at the end of the block. Any thread may call its methods.
    """

    def __init__(self, seam: Seam, order: Order) -> None:
        self._seam, self._order = seam, order
        self._token = CancelToken()
        self._stopping = self._active = False
        self._lease = Lease(order.dbconf, self._token, order.schema, order.name)
        self._rounds = Rounds(seam, order, self._lease.holder, self._is_ending)
        self._session: Session | None = None
        self._trim_at, self._trim_after = monotonic(), 0
        self._stream = seam.listen(CHANNEL, f"journal consumer {order.schema}.{order.name}")
        lifecycle.watch_forks(self)
        self._thread = threading.Thread(target=self._work, name=f"pgnotifier-consumer-{order.name}", daemon=True)

    def __repr__(self) -> str:
        return f"<consumer {self._order.name!r} of {', '.join(map(repr, self._order.channels))}>"

    def __enter__(self) -> Consumer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the consumer's thread. `Journal.consume` calls it."""
        threads.start(self._thread)

    def status(self) -> ConsumerStatus:
        """Return its state, and counters since it was made, as a plain dict. Never blocks."""
        rounds = self._rounds
        return {
            "name": self._order.name,
            "running": self._thread.is_alive() and not self._stopping,
            "active": self._active and self._lease.is_held,
            "delivered": rounds.delivered,
            "failed": rounds.failed,
            "skipped": rounds.skipped,
            "last_error": rounds.last_error,
        }

    def stop(self, timeout: float = 10.0) -> None:
        """End the consumer after its present entry, keep its progress, and free the name for another process.

        A callback that takes longer than `timeout` seconds loses its connection, so its entry comes again. In a
        callback, or on the event loop that runs its callbacks, `stop` does not wait. A second call does nothing.
        """
        self._stopping = True
        self._stream.close()
        self._token.cancel()
        if inside.get() is self or (self._order.loop is not None and asyncio._get_running_loop() is self._order.loop):
            return
        threads.join(self._thread, min(timeout, SERVER_SECONDS))
        session = self._session
        if session is not None and session.in_call:
            threads.join(self._thread, max(0.0, timeout - SERVER_SECONDS))
        if (session := self._session) is not None:
            session.interrupt()
            threads.join(self._thread, SERVER_SECONDS)
            self._lease.stop_renewing()  # so that a callback which never returns does not keep the name

    def _forked(self) -> None:
        """Stop in a forked child, without touching the parent's session."""
        session, self._session = self._session, None
        self._stopping, self._token = True, CancelToken()
        if session is not None:
            session.abandon()

    # -- its thread -----------------------------------------------------------------------------------------

    def _is_ending(self) -> bool:
        return self._stopping or not self._seam.notifier.is_running()

    def _pause(self, seconds: float) -> None:
        """Wait for `seconds`, whatever is published meanwhile. Raises `StreamClosed` at the end."""
        deadline = monotonic() + seconds
        while (left := deadline - monotonic()) > 0:
            self._await_news(left)

    def _await_news(self, seconds: float) -> None:
        """Wait at most `seconds` until something is published, or listening goes on after a loss."""
        try:
            self._stream.get(seconds)
        except TimeoutError:
            return
        while self._stream.poll() is not None:
            pass

    def _work(self) -> None:
        attempt = 1
        try:
            while not self._is_ending():
                began = monotonic()
                try:
                    with Session(self._order.dbconf, self._token, self._order.loop, self) as self._session:
                        self._serve(self._session)
                except (StreamClosed, Abandoned, Removed):
                    raise
                except Exception as error:
                    if self._is_ending():
                        return
                    self._rounds.last_error = describe(error)
                    if self._order.loop is not None and self._order.loop.is_closed():
                        log(ERROR, "consumer %r ends: its event loop is closed", self._order.name)
                        return
                    log(WARNING, "consumer %r begins again: %s", self._order.name, self._rounds.last_error)
                    attempt = self._seam.next_attempt(attempt, monotonic() - began)
                    self._pause(self._seam.delay(attempt))
        except (StreamClosed, Abandoned):
            if not self._is_ending():
                self._rounds.last_error = f"channel {CHANNEL!r} was removed"
                log(ERROR, "consumer %r ends: %s", self._order.name, self._rounds.last_error)
        except Removed as error:
            self._rounds.last_error = str(error)
            log(ERROR, "consumer %r ends: %s", self._order.name, error)
        except BaseException as error:
            log(CRITICAL, "consumer %r raised %s: stopping the notifier", self._order.name, type(error).__name__)
            self._seam.notifier.stop(0)
        finally:
            self._session = None
            self._stream.close()
            self._token.cancel()

    def _serve(self, session: Session) -> None:
        """Wait until the name is free, then consume; repeat until the end."""
        order = self._order
        while not self._is_ending():
            upkeep.prepare(session, order.schema)
            session.run(stored(order.schema, order.name))
            if not self._lease.take(session):
                self._pause(POLL)
                continue
            self._active = True
            log(INFO, "consumer %r is active here", order.name)
            try:
                self._lead(session)
            finally:
                self._active = False
                self._lease.give_back(session)
            if not self._is_ending():
                log(INFO, "consumer %r is active elsewhere, or has other channels there", order.name)
                self._pause(2 * POLL)

    def _lead(self, session: Session) -> None:
        """Consume until another process has the lease, or has changed the list of channels."""
        schema, name, channels = self._order.schema, self._order.name, self._order.channels
        upkeep.register(session, schema, name, channels)
        session.run(upkeep.prune(schema, name, channels))
        self._rounds.begin()
        position, tell, attempt = session.run(stored(schema, name)), True, 0
        while not self._is_ending():
            try:
                if monotonic() >= self._trim_at:
                    self._trim(session)
                after = self._rounds.next(session, position, tell)
            except Moved:
                if not session.run(leads(schema, name, self._lease.holder, channels)):
                    return
                self._pause(BUSY)
                position = session.run(stored(schema, name))
                continue
            except (CallFailed, TurnEnded, psycopg.Error) as error:
                if session.is_broken:
                    raise
                attempt += 1
                self._pause(self._rounds.recover(error, attempt))
                continue
            is_idle = after == position
            position, tell, attempt = after, False, 0
            if is_idle:
                self._await_news(max(0.0, self._trim_at - monotonic()))

    def _trim(self, session: Session) -> None:
        """Delete some of the old entries; the next call goes on after them."""
        schema, self._trim_at = self._order.schema, monotonic() + TRIM_EVERY
        try:
            keep = session.run(upkeep.state(schema)).keep
            for _ in range(TRIM_STEPS if keep is not None else 0):
                assert keep is not None
                step = session.run(upkeep.trim(schema, keep, self._trim_after), transaction=True)
                self._trim_after = step.after if step.more else 0
                if not step.more or self._is_ending():
                    break
        except psycopg.Error as error:  # no fault of an entry
            if session.is_broken:
                raise
            log(WARNING, "consumer %r cannot trim the journal: %s", self._order.name, describe(error))
