"""Starts, stops and changes the listener. Owns the registry that is wanted.

Only a listener thread touches a session. Callers record what they want under the state lock, the dispatcher's; where
the server has to be told, they start the next listener thread and wait for its report. `connection.NEXT` is
the table of phases.
"""

from __future__ import annotations

import threading
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime
from time import monotonic
from typing import Any

import psycopg

from . import registry, threads
from .clock import now
from .connection import (
    LISTENING,
    RECONNECTING,
    STOPPED,
    STOPPING,
    Abandoned,
    Lifetime,
    Listener,
    Phase,
    Session,
)
from .delivery import NOTHING, Dispatcher, Workers
from .flag import Flag
from .log import CRITICAL, ERROR, INFO, WARNING, describe, log
from .registry import EMPTY, SYSCHAN, Registry, Touched
from .types import DbConf

STOP_SECONDS = 0.5  # that `stop` waits for a thread that is asking for a name or a dbconf

Step = Callable[[Registry], registry.Step]


class Request:
    """A change that waits for the server; `everything` compares all channels, not only those that it touches."""

    def __init__(self, step: Step, everything: bool) -> None:
        self.step, self.everything = step, everything
        self.awaited = True
        self.done = Flag()
        self.error: BaseException | None = None


def nothing(reg: Registry) -> registry.Step:
    """The step that changes nothing."""
    return reg, ()


class Supervisor:
    """`notify(batch, since)` puts notifications into mailboxes, as `Dispatcher.post`."""

    def __init__(
        self,
        source: DbConf,
        heartbeat: float | None,
        retry_delay: tuple[float, float],
        dispatcher: Dispatcher,
        workers: Workers,
        notify: Callable[[list[Any], datetime], tuple[int, float]],
        reg: Registry = EMPTY,
    ) -> None:
        self._options = (source, heartbeat, retry_delay)
        self._dispatcher, self._workers, self._notify = dispatcher, workers, notify
        self._lock = dispatcher.lock
        self.registry: Registry = reg
        self.life: Lifetime | None = None
        self.stopped: Flag = Flag(True)
        self.restarts: int = 0
        self.reconnects: int = 0
        self.last_error: str | None = None
        self._stopped_since = now()
        self._deferred: deque[Callable[[], object]] = deque()
        self._deferring = allocate_lock()

    @property
    def phase(self) -> Phase:
        life = self.life
        return STOPPED if life is None else life.phase

    @property
    def since(self) -> datetime:
        """When this phase began."""
        life = self.life
        return self._stopped_since if life is None else life.since

    @property
    def running(self) -> bool:
        """From `start` to `stop`, connected or not."""
        life = self.life
        return life is not None and not life.stopping

    @property
    def session(self) -> Session | None:
        """What is listened with now."""
        life = self.life
        return life.session if life is not None and not life.stopping else None

    def _defer(self, call: Callable[[], object]) -> bool:
        """Have `call` made by a thread of its own if the current thread must not wait; returns whether that is so.

        A signal handler or finalizer may run while this very thread holds the lock, and on a listener thread.
        """
        if not (self._lock._is_owned() or Listener.runs_for(self)):
            return False
        self._deferred.append(call)
        threads.start(threading.Thread(target=self._catch_up, name="pgnotifier-change", daemon=True))
        return True

    def _catch_up(self) -> None:
        with self._deferring:  # one after the other, in their order
            while self._deferred:
                try:
                    self._deferred.popleft()()
                except Exception as error:
                    log(ERROR, "a change that interrupted another failed", error=error)

    # -- changes ---------------------------------------------------------------------------------------------

    def change(self, step: Step, autorun: bool, everything: bool = False) -> None:
        """Make `step` the next registry, and have the server follow (`autorun`); returns when it does.

        With no session it is only recorded. Raises what `step` or the server refuses; nothing has changed then.
        """
        if self._defer(lambda: self.change(step, autorun, everything)):
            return
        listener = request = None
        try:
            with self._lock:
                life = self.life
                new, touched = step(self.registry)
                live = life if autorun and life is not None and life.phase is LISTENING else None
                if live is None or not any(self._difference(live, new, touched, everything)):
                    self._commit(life, new, touched)
                else:
                    request = Request(step, everything)
                    request.awaited = live.next is None or not live.next.is_being_started
                    if live.next is None:
                        listener = live.next = live.listener = Listener(self, live)
                    live.next.requests.append(request)
            self._dispatcher.turns.wake()
            if listener is not None:
                self.restarts += 1
                listener.start()
        except BaseException as error:
            if listener is not None:
                self._not_started(listener, error)
            raise
        if request is not None and request.awaited:
            request.done.wait()
            if request.error is not None:
                raise request.error

    def _not_started(self, listener: Listener, error: BaseException) -> None:
        """No thread could be started for a change: its predecessor goes on, and what waits for it fails."""
        with self._lock:
            if listener.begun:
                return  # it was: Ctrl-C came later
            orphaned = self._withdraw(listener)
        if orphaned:
            listener.life.close()
            self._end(listener.life, {"event": "stopped"})
        for request in listener.requests:
            request.error = error
            request.done.set()

    @staticmethod
    def _withdraw(listener: Listener) -> bool:
        """A thread that has not begun never will, under the lock; returns whether none is left to close all."""
        life, before = listener.life, listener.predecessor
        listener.cancelled, life.listener = True, before
        if life.next is listener:
            life.next = None
        return before is None or before.over

    def _difference(
        self, life: Lifetime, reg: Registry, touched: Iterable[Touched], everything: bool
    ) -> tuple[list[str], list[str]]:
        """The channels to listen to and to listen to no longer, under the lock. SYSCHAN is always listened to."""
        session = life.session
        active = session.active if session is not None else NOTHING
        names = {*life.pending, *(name for name, _ in touched)}
        if everything:
            names.update(registry.valid_channels(reg), active)
        names.discard(SYSCHAN)
        add = [name for name in names if name not in active and registry.is_valid(reg, name)]
        return add, [name for name in names if name in active and not registry.is_valid(reg, name)]

    def _commit(
        self,
        life: Lifetime | None,
        new: Registry,
        touched: Iterable[Touched],
        changed: Iterable[str] = (),
        refused: Iterable[str] = (),
    ) -> None:
        """Make `new` the registry, under the lock; `changed` channels are listened to since, or no longer."""
        self.registry = new
        session = life.session if life is not None else None
        touched = (*touched, *((name, None) for name in changed))
        if life is None or session is None:
            self._dispatcher.commit(new, touched, now(), NOTHING)
            return
        add, remove = self._difference(life, new, touched, False)
        life.pending = {*add, *remove}.difference(refused)
        self._dispatcher.commit(new, touched, session.confirmed, session.active)

    # -- for listener threads -----------------------------------------------------------------------------------

    def may_begin(self, listener: Listener) -> bool:
        """Whether the thread has something to do; if so, its predecessor has been asked to end."""
        life, before = listener.life, listener.predecessor
        with self._lock:
            if listener.cancelled:
                return False
            listener.begun = True
            if before is None or life.stopping or life.session is not None:
                if before is not None:
                    before.ending = True
                return True
            life.listener = before  # which is connecting again, and goes on
            waiting = self._record(listener)
        self._report(waiting)
        return False

    def _record(self, listener: Listener) -> list[Request]:
        """Make the changes that wait for a session that is gone, under the lock: the next one begins with them."""
        life, waiting = listener.life, list(listener.requests)
        listener.requests.clear()
        if life.next is listener:
            life.next = None
        for request in waiting:
            try:
                new, touched = request.step(self.registry)
                self._commit(life, new, touched)
            except Exception as error:
                request.error = error
        return waiting

    def _report(self, waiting: list[Request]) -> None:
        self._dispatcher.turns.wake()
        for request in waiting:
            request.done.set()
            if request.error is not None and not request.awaited:
                log(ERROR, "a change that interrupted another failed", error=request.error)

    def wanted(self) -> list[str]:
        """The channels that a new session has to listen to."""
        return [SYSCHAN, *registry.valid_channels(self.registry)]

    def publish(self, life: Lifetime, session: Session, refused: dict[str, psycopg.Error]) -> None:
        """Have calls follow a new session. Raises `Abandoned` where the notifier was stopped meanwhile."""
        with self._lock:
            if life.stopping:
                raise Abandoned("given up: the notifier was stopped")
            life.to(LISTENING)
            life.session, life.up_since, life.fresh = session, monotonic(), True
            reg = self.registry
            life.pending = {*registry.valid_channels(reg)}.symmetric_difference(session.active).difference(refused)
            touched = [(name, None) for name in reg.channels]
            self._dispatcher.commit(reg, touched, session.confirmed, session.active)
        self._dispatcher.turns.wake()
        if not life.started.is_set():
            self._dispatcher.event({"event": "connected"})
            log(INFO, "connected, listening to %d channels", len(session.active) - 1)
        self._refused(refused)

    def reconnected(self, down_for: float, attempts: int) -> None:
        self.reconnects += 1
        self._dispatcher.event({"event": "reconnected", "down_for": down_for, "attempts": attempts})

    def failed(self, error: BaseException) -> None:
        """An attempt to connect again has failed."""
        self.last_error = describe(error)

    def _refused(self, refused: dict[str, psycopg.Error]) -> None:
        for name, error in refused.items():
            log(ERROR, "the server refuses to listen to channel %r: %s", name, describe(error))
            self._dispatcher.event({"event": "channel_refused", "channel": name, "error": describe(error)})

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
            with self._lock:
                if life.stopping:
                    raise Abandoned("given up: the notifier was stopped")
                if life.next is listener:
                    life.next = None  # the changes that come from now on are for a successor
                request: Request | None = requests[0] if requests else None
                if request is None and not life.fresh:
                    return
                everything = request is not None and request.everything
                try:
                    new, touched = (nothing if request is None else request.step)(self.registry)
                except Exception as error:
                    done = requests.popleft()
                    done.error = error
                else:
                    add, remove = self._difference(life, new, touched, everything)
                    add = [name for name in add if name not in refused]
                    if not add and not remove:
                        self._commit(life, new, touched, changed, refused)
                        life.fresh = False
                        changed, refused = set(), {}
                        if requests:
                            done = requests.popleft()
                        else:
                            continue
            if done is not None:
                self._report([done])
                continue
            self.hand_over(session)
            found = session.listen_where_allowed(add, remove, lambda: self.hand_over(session))
            own = {*add} if everything else {name for name, _ in touched}
            if requests and own & found.keys():
                session.listen_where_allowed(remove, [name for name in add if name not in found])
                done = requests.popleft()
                done.error = found[min(own & found.keys())]
                self._report([done])
                continue
            changed.update(add, remove)
            refused.update(found)
            self._refused(found)

    def hand_over(self, session: Session) -> float:
        """Move the backlog into mailboxes; after how many seconds to try again, where some have no room, else 0."""
        while session.backlog:
            batch = session.backlog[0]
            count, seconds = self._notify(batch.notifications, batch.since)
            session.handed_over(count)
            if seconds:
                return seconds
        return 0.0

    def lost(self, listener: Listener, session: Session, error: BaseException) -> None:
        """The session is of no more use: record what waits for it, deliver what it had read, and tell."""
        life = listener.life
        with self._lock:
            life.session, life.down_since = None, monotonic()
            stopping = life.stopping
            if not stopping:
                life.to(RECONNECTING)
                self.last_error = describe(error)
            waiting = self._record(listener)
        self._report(waiting)
        session.close()
        if stopping:
            life.confirmed, life.rest = session.confirmed, session.backlog
            return
        try:
            while seconds := self.hand_over(session):
                life.token.wait(monotonic() + seconds)
        except Abandoned:
            pass
        life.confirmed = session.confirmed
        self._dispatcher.lose("connection", session.confirmed, describe(error))
        if isinstance(error, psycopg.Error | UnicodeError | OSError):
            log(WARNING, "the connection is lost: %s", describe(error))
        else:
            log(CRITICAL, "the listener met what it did not expect, and connects again", error=error)
        self._dispatcher.event({"event": "disconnected", "error": describe(error)})

    def ended(self, listener: Listener) -> None:
        """A listener thread ends; the last one of a lifetime closes what that holds."""
        life = listener.life
        with self._lock:
            waiting = self._record(listener)
            listener.over, last = True, life.listener is listener
            failed = last and self.life is life and not life.stopping
        self._report(waiting)
        if not last:
            return
        session = life.session
        if session is not None:
            if life.drains:
                try:
                    session.read()
                except Exception:
                    pass  # what had arrived is in the backlog
            life.confirmed, life.rest = session.confirmed, session.backlog
        if failed:  # it could not connect, or met what it did not expect
            self._end(life, {"event": "stopped"} if life.started.is_set() else None)
            self.stopped.set()
        life.close()

    def wake(self) -> None:
        """A full mailbox has room: have the listener come again. Any thread, without the lock."""
        life = self.life
        if life is not None and life.listener is not None:
            life.listener.wake()

    # -- start and stop ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect and begin to listen; if that is so already, apply what is pending.

        Raises `psycopg.OperationalError` where it can't connect, and is stopped then.
        """
        if self._defer(self.start):
            return
        while (life := self.life) is not None and life.stopping:
            self._finish(life)  # a stop() that another thread has not finished, or that Ctrl-C interrupted
        if life is not None:
            if life.listener is not None and life.listener.is_being_started:
                return
            life.started.wait()
            if life.error is None:
                self.change(nothing, True, everything=True)
                return
        else:
            life = Lifetime(*self._options)
            try:
                with self._lock:
                    mine = self.life is None
                    if mine:
                        listener = life.listener = Listener(self, life)
                        self.life = life  # one assignment: Ctrl-C leaves a lifetime, or none
                        self.stopped.clear()
                        self._dispatcher.begin()
                if not mine:
                    life.close()
                    self.start()
                    return
                self._workers.start()
                listener.start()
                life.started.wait()
            except BaseException:
                if self.life is life:
                    self._finish(life)
                else:
                    life.close()
                raise
        if life.error is not None and not (life.stopping and isinstance(life.error, Abandoned)):
            life.ended.wait(STOP_SECONDS)
            raise life.error

    def stop(self, deadline: float, drain: bool) -> None:
        """End the listener, then the workers, until `deadline` (monotonic seconds) at most; drop what waits."""
        if self._defer(lambda: self.stop(deadline, drain)):
            return
        workers, turns = self._workers, self._dispatcher.turns
        wait = not self.in_a_callback()
        life = self.life
        if life is not None:
            self._finish(life, deadline if drain and wait else None)
        if wait:
            turns.reclaim()
            turns.bell.wait_for(lambda: self._dispatcher.running or workers.ended, max(0.0, deadline - monotonic()))
        with self._lock:
            if self.life is None:
                self.stopped.set()

    def _finish(self, life: Lifetime, drain_until: float | None = None) -> None:
        """End a lifetime, and calls. Every step can be repeated, so an interrupted one is finished by the next."""
        with self._lock:
            life.drains = drain_until is not None
            if not life.stopping:
                life.to(STOPPING)
            listener, orphaned, waiting = life.listener, life.listener is None, list[Request]()
            if listener is not None and not listener.begun:
                waiting = self._record(listener)
                orphaned = self._withdraw(listener)
                listener = life.listener
        life.token.cancel()
        self._report(waiting)
        if orphaned:
            life.close()
        elif listener is not None:
            listener.wake()
            life.ended.wait(STOP_SECONDS)
            listener.join(STOP_SECONDS)
        if drain_until is not None:
            self._drain(life, drain_until)
        self._end(life, {"event": "stopped"})

    def _drain(self, life: Lifetime, deadline: float) -> None:
        rest, life.rest = life.rest, deque()
        for batch in rest:
            while batch.notifications and monotonic() < deadline:
                count, seconds = self._notify(batch.notifications, batch.since)
                del batch.notifications[:count]
                self._dispatcher.turns.bell.wait_for(lambda: False, seconds)
        self.wait_idle(deadline)

    def wait_idle(self, deadline: float) -> bool:
        """Wait until nothing waits and no call is under way, until `deadline` at most; returns whether that is so."""
        turns = self._dispatcher.turns
        turns.reclaim()
        return turns.bell.wait_for(self._dispatcher.is_idle, max(0.0, deadline - monotonic()))

    def in_a_callback(self) -> bool:
        """Whether the current thread makes calls, or runs an event loop that does or is about to."""
        return self._workers.has_caller()

    def _end(self, life: Lifetime, event: dict[str, Any] | None) -> None:
        with self._lock:
            if self.life is not life:
                return  # another thread was first
            self._dispatcher.halt(event, life.confirmed)
            self._stopped_since, self.life = now(), None
        self._dispatcher.turns.wake()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's session without touching it."""
        life, self.life = self.life, None
        if life is not None:
            if life.session is not None:
                life.session.abandon()
            life.token.close()
            _kept.append(life)


_kept: list[Any] = []  # keeps the parent's objects alive in a forked child, so that their finalizers never run there
