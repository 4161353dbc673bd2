"""The listener thread: an asyncio task that reads a session whenever its socket is readable (guarantee 5).

To change channels, the thread ends its task, sends LISTEN and UNLISTEN, and starts a new thread, which listens on.
The thread runs no callback, and does not poll. It runs log handlers and a callable `dbconf`, without a lock. Every
method runs on it, without the state lock.
"""

from __future__ import annotations

import random
import threading
from time import monotonic

import psycopg

from . import changes, threads
from .connection import LISTENING, RECONNECTING, Abandoned, Lifetime, Session, delay, lasts, new_loop, next_attempt
from .log import CRITICAL, INFO, WARNING, describe, log
from .reading import Reading
from .shared import Shared, nothing

NAME = "pgnotifier-listener"
LEAST_SECONDS = 0.01  # between two attempts to make the first connection
END_SECONDS = 0.5  # that a thread waits for the end of the one before it


class Listener(threads.Relied):
    """One thread of a lifetime. `before` is the thread that it replaces, which only has to end."""

    def __init__(self, shared: Shared, life: Lifetime, before: threading.Thread | None = None) -> None:
        super().__init__(name=NAME, daemon=True)
        self.shared: Shared = shared
        self._life, self._before = life, before

    def run(self) -> None:
        if self._before is not None:
            # It ends at once, unless a finalizer in it waits for this thread.
            self._before.join(END_SECONDS)
            self._before = None
        with self.shared.lock:
            if self._life.stopping and not self._life.begun:
                return  # `stop` has closed everything
            self._life.begun = True
        try:
            if self._live():
                return
        except BaseException as error:
            log(CRITICAL, "an unexpected error ends the listener", error=error)
        self._end()

    def _live(self) -> bool:
        """Connect if there is no session, make changes, and listen, until the notifier is stopped.

        Returns True if another thread goes on.
        """
        life, shared = self._life, self.shared
        while not life.stopping:
            session, fresh = life.session, False
            try:
                if session is None:
                    session, fresh = self._reconnect() if life.started.is_set() else self._connect_first(), True
                    if session is None:
                        return False
                changes.serve(shared, life, session, fresh)
                if life.loop is None:  # here and not in `start`, where Ctrl-C could leave half a loop behind
                    life.loop = new_loop()
                reading = Reading(shared, life, session, lambda: changes.begin(shared, nothing))
                life.loop.run_until_complete(reading.run(life.loop))
                if life.requests:
                    shared.restarts += 1
                    changes.serve(shared, life, session)
                    if self._succeed():
                        return True
            except BaseException as error:
                if session is not None:
                    self._lost(session, error)
                elif life.started.is_set():
                    raise
                else:
                    life.error = error
                    return False
        return False

    def _succeed(self) -> bool:
        """Start the next thread, which listens on. Return False if none can be started: this one listens on then."""
        life = self._life
        successor = Listener(self.shared, life, self)
        life.listener = successor
        try:
            threads.start(successor)
        except Exception as error:
            life.listener = self
            log(WARNING, "no thread can be started after a change, so the old one listens on: %s", describe(error))
            return False
        return True

    def _connect(self) -> Session:
        """Return a new session that listens to all wanted channels, published. After an error nothing is open."""
        life = self._life
        session = Session(life.source, life.heartbeat, life.token)
        try:
            session.prove(life.source)
            refused = session.listen_where_allowed(self.shared.wanted())
            session.verify()
            self._publish(session, refused)
        except BaseException:
            session.close()
            raise
        return session

    def _connect_first(self) -> Session:
        """Connect as `_connect` does; try again for `connect_wait` seconds if the error may pass by itself."""
        life, (least, most) = self._life, self._life.retry_delay
        deadline, attempt = monotonic() + life.connect_wait, 0
        while True:
            try:
                return self._connect()
            except psycopg.OperationalError as error:
                attempt += 1
                left = deadline - monotonic()
                if left <= 0 or lasts(error):
                    raise
                seconds = min(left, max(LEAST_SECONDS, delay(attempt, least, most, random.random())))
                self.shared.last_error = describe(error)
                log(WARNING, "not connected yet, trying again in %.2f s: %s", seconds, describe(error))
            life.token.wait(monotonic() + seconds)

    def _publish(self, session: Session, refused: dict[str, psycopg.Error]) -> None:
        """Make `session` the lifetime's session. Raises `Abandoned` if the notifier was stopped meanwhile."""
        life, shared = self._life, self.shared
        first = not life.started.is_set()
        if first:  # once connected, so that a failed start leaves no worker; before `published`
            shared.start_workers()
        with shared.lock:
            life.check()
            shared.publish(life, session, refused)
            life.session, life.up_since, life.published = session, monotonic(), True
            life.to(LISTENING)
        shared.dispatcher.turns.wake()
        if first:
            shared.event(life, {"event": "connected"})
            log(INFO, "connected, listening to %d channels", len(session.active) - 1)
        shared.refused(life, refused)
        life.started.set()

    def _reconnect(self) -> Session | None:
        """Reconnect, trying without limit; return None if the notifier was stopped meanwhile."""
        life, shared, (least, most) = self._life, self.shared, self._life.retry_delay
        life.attempt = next_attempt(life.attempt, life.down_since - life.up_since, least, most)
        attempts = 0
        while True:
            seconds = delay(life.attempt, least, most, random.random())
            attempts += 1
            log(WARNING, "connecting again in %.2f s, attempt %d", seconds, attempts)
            try:
                life.token.wait(monotonic() + seconds)
                session = self._connect()
            except Abandoned:
                return None
            except BaseException as error:  # a callable dbconf may raise anything
                shared.last_error = describe(error)
                log(WARNING, "attempt %d to connect failed: %s", attempts, describe(error))
                life.attempt += 1
                continue
            down_for = life.up_since - life.down_since
            log(INFO, "connected again after %.2f s, attempt %d", down_for, attempts)
            shared.reconnects += 1
            shared.event(life, {"event": "reconnected", "down_for": down_for, "attempts": attempts})
            return session

    def _lost(self, session: Session, error: BaseException) -> None:
        """Close a lost session: record the changes that wait, hand over what was read, and report the loss."""
        life, shared = self._life, self.shared
        with shared.lock:
            life.session, life.down_since = None, monotonic()
            life.confirmed = session.confirmed  # of the oldest in the backlog, which is handed over below
            stopping = life.stopping
            if not stopping:
                life.to(RECONNECTING)
                shared.last_error = describe(error)
            waiting = shared.record(life)
        shared.report(waiting)
        if stopping:
            life.keep(session)
            session.close()
            return
        session.close()
        try:
            while seconds := shared.hand_over(life, session):
                life.token.wait(monotonic() + seconds)
        except Abandoned:
            life.rest = session.backlog  # for `stop(drain=True)`
        with shared.lock:
            if shared.life is not life:
                return
            life.confirmed = session.confirmed
            shared.dispatcher.lose("connection", session.confirmed, describe(error))
        if isinstance(error, psycopg.Error | UnicodeError | OSError):
            log(WARNING, "the connection is lost: %s", describe(error))
        else:
            log(CRITICAL, "an unexpected error in the listener, which connects again", error=error)
        shared.event(life, {"event": "disconnected", "error": describe(error)})

    def _end(self) -> None:
        """Close what the lifetime holds, on its last thread."""
        life, shared = self._life, self.shared
        with shared.lock:
            waiting = shared.record(life)
            failed = shared.life is life and not life.stopping
        shared.report(waiting)
        if life.session is not None:
            life.keep(life.session)
        if failed:  # it could not connect, or an unexpected error ended it
            shared.end(life, {"event": "stopped"} if life.started.is_set() else None)
            with shared.lock:
                if shared.life is None:
                    shared.stopped.set()
        life.close()
