"""What listener threads do for a notifier: publish a session, make changes, hand over, and tell of a loss.

A listener thread of `connection` calls these methods, and nobody else but `wake`. No lock is held over I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from time import monotonic
from typing import Any

import psycopg

from . import registry
from .connection import LISTENING, RECONNECTING, Abandoned, Lifetime, Listener, Session
from .log import CRITICAL, ERROR, INFO, WARNING, describe, log
from .registry import SYSCHAN
from .shared import Request, Shared, nothing


class Listening:
    """The owner of listener threads. `notify(batch, since)` puts notifications into mailboxes.

    `start_workers()` comes before the first session is published, so that a failed start leaves no thread behind.
    """

    def __init__(
        self,
        shared: Shared,
        notify: Callable[[list[Any], datetime], tuple[int, float]],
        start_workers: Callable[[], object],
    ) -> None:
        self.shared, self.notify, self._start_workers = shared, notify, start_workers

    def may_begin(self, listener: Listener) -> bool:
        """Whether the thread has something to do; if so, its predecessor has been asked to end."""
        life, before = listener.life, listener.predecessor
        with self.shared.lock:
            if listener.cancelled:
                return False
            listener.begun = True
            if before is None or before.over or life.stopping or life.session is not None:
                if before is not None:
                    before.ending = True
                return True
            life.listener = before  # which is connecting again, and goes on
            waiting = self.shared.record(listener)
        self.shared.report(waiting)
        return False

    def wanted(self) -> list[str]:
        """The channels that a new session has to listen to."""
        return [SYSCHAN, *registry.valid_channels(self.shared.registry)]

    def publish(self, life: Lifetime, session: Session, refused: dict[str, psycopg.Error]) -> None:
        """Have calls follow a new session. Raises `Abandoned` where the notifier was stopped meanwhile."""
        if not life.started.is_set():
            self._start_workers()
        with self.shared.lock:
            if life.stopping:
                raise Abandoned("given up: the notifier was stopped")
            life.to(LISTENING)
            life.session, life.up_since, life.fresh = session, monotonic(), True
            reg = self.shared.registry
            life.pending = {*registry.valid_channels(reg)}.symmetric_difference(session.active).difference(refused)
            touched = [(name, None) for name in reg.channels]
            self.shared.dispatcher.commit(reg, touched, session.confirmed, session.active)
        self.shared.dispatcher.turns.wake()
        if not life.started.is_set():
            self.shared.dispatcher.event({"event": "connected"})
            log(INFO, "connected, listening to %d channels", len(session.active) - 1)
        self._refused(refused)

    def reconnected(self, down_for: float, attempts: int) -> None:
        self.shared.reconnects += 1
        self.shared.dispatcher.event({"event": "reconnected", "down_for": down_for, "attempts": attempts})

    def failed(self, error: BaseException) -> None:
        """An attempt to connect again has failed."""
        self.shared.last_error = describe(error)

    def _refused(self, refused: dict[str, psycopg.Error]) -> None:
        for name, error in refused.items():
            log(ERROR, "the server refuses to listen to channel %r: %s", name, describe(error))
            self.shared.dispatcher.event({"event": "channel_refused", "channel": name, "error": describe(error)})

    def serve(self, listener: Listener, session: Session) -> None:
        """Close the difference between wanted and actual channels, and report to the callers that wait.

        Each change is computed anew under the lock after the server has followed, so that one that came in between is
        not lost. Raises `psycopg.Error` where the session is lost.
        """
        life, requests = listener.life, listener.requests
        changed: set[str] = set()
        refused: dict[str, psycopg.Error] = {}
        while True:
            done: Request | None = None
            with self.shared.lock:
                if life.stopping:
                    raise Abandoned("given up: the notifier was stopped")
                if life.next is listener:
                    life.next = None  # the changes that come from now on are for a successor
                request: Request | None = requests[0] if requests else None
                if request is None and not life.fresh:
                    return
                everything = request is not None and request.everything
                try:
                    new, touched = (nothing if request is None else request.step)(self.shared.registry)
                except Exception as error:
                    done = requests.popleft()
                    done.error = error
                else:
                    add, remove = self.shared.difference(life, new, touched, everything)
                    add = [name for name in add if name not in refused]
                    if not add and not remove:
                        self.shared.commit(life, new, touched, changed, refused)
                        life.fresh = False
                        changed, refused = set(), {}
                        if requests:
                            done = requests.popleft()
                        else:
                            continue
            if done is not None:
                self.shared.report([done])
                continue
            self.hand_over(session)
            found = session.listen_where_allowed(add, remove, lambda: self.hand_over(session))
            own = {*add} if everything else {name for name, _ in touched}
            if requests and own & found.keys():
                session.listen_where_allowed(remove, [name for name in add if name not in found])
                done = requests.popleft()
                done.error = found[min(own & found.keys())]
                self.shared.report([done])
                continue
            changed.update(add, remove)
            refused.update(found)
            self._refused(found)

    def hand_over(self, session: Session) -> float:
        """Move the backlog into mailboxes; after how many seconds to try again, where some have no room, else 0."""
        while session.backlog:
            batch = session.backlog[0]
            count, seconds = self.notify(batch.notifications, batch.since)
            session.handed_over(count)
            if seconds:
                return seconds
        return 0.0

    def lost(self, listener: Listener, session: Session, error: BaseException) -> None:
        """The session is of no more use: record what waits for it, deliver what it had read, and tell."""
        life = listener.life
        with self.shared.lock:
            life.session, life.down_since = None, monotonic()
            stopping = life.stopping
            if not stopping:
                life.to(RECONNECTING)
                self.shared.last_error = describe(error)
            waiting = self.shared.record(listener)
            if life.listener is not None and life.listener is not listener:  # asked to take over: its callers, too
                waiting += self.shared.record(life.listener)
        self.shared.report(waiting)
        if stopping:
            self._keep(life, session)
            session.close()
            return
        session.close()
        try:
            while seconds := self.hand_over(session):
                life.token.wait(monotonic() + seconds)
        except Abandoned:
            life.rest = session.backlog  # of which `stop(drain=True)` delivers what it can
        life.confirmed = session.confirmed
        self.shared.dispatcher.lose("connection", session.confirmed, describe(error))
        if isinstance(error, psycopg.Error | UnicodeError | OSError):
            log(WARNING, "the connection is lost: %s", describe(error))
        else:
            log(CRITICAL, "the listener met what it did not expect, and connects again", error=error)
        self.shared.dispatcher.event({"event": "disconnected", "error": describe(error)})

    def _keep(self, life: Lifetime, session: Session) -> None:
        """Keep what the session has read for `stop(drain=True)`, which also gets what has arrived since."""
        if life.drains:
            try:
                session.read()
            except Exception:
                pass  # what had arrived before is in the backlog
        life.confirmed, life.rest = session.confirmed, session.backlog

    def ended(self, listener: Listener) -> None:
        """A listener thread ends; the last one of a lifetime closes what that holds."""
        life = listener.life
        with self.shared.lock:
            waiting = self.shared.record(listener)
            listener.over, last = True, life.listener is listener
            failed = last and self.shared.life is life and not life.stopping
        self.shared.report(waiting)
        if not last:
            return
        session = life.session
        if session is not None:
            self._keep(life, session)
        if failed:  # it could not connect, or met what it did not expect
            self.shared.end(life, {"event": "stopped"} if life.started.is_set() else None)
            with self.shared.lock:
                if self.shared.life is None:
                    self.shared.stopped.set()
        life.close()

    def wake(self) -> None:
        """A full mailbox has room: have the listener come again. Any thread, without the lock."""
        life = self.shared.life
        if life is not None and life.listener is not None:
            life.listener.wake()
