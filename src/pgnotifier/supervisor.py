"""Starts, stops and changes the listener. Any thread.

Only a listener thread touches a session. Callers record what they want under the state lock; where the server has to
be told, they start the next listener thread and wait for its report. `connection.NEXT` is the table of phases.
"""

from __future__ import annotations

import threading
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from datetime import datetime
from time import monotonic
from typing import TYPE_CHECKING, Any

from . import threads
from .connection import LISTENING, STOPPED, STOPPING, Abandoned, Lifetime, Listener, Phase, Session
from .log import ERROR, log
from .shared import Request, Shared, Step, nothing
from .types import DbConf

if TYPE_CHECKING:
    from .delivery import Workers
    from .listening import Listening

STOP_SECONDS = 0.5  # that `stop` waits for a thread that is asking for a name or a dbconf


class Supervisor:
    """`listening` is what its listener threads do, and what they share with callers."""

    def __init__(
        self,
        source: DbConf,
        heartbeat: float | None,
        retry_delay: tuple[float, float],
        workers: Workers,
        listening: Listening,
    ) -> None:
        self._options = (source, heartbeat, retry_delay)
        self._workers = workers
        self.shared: Shared = listening.shared
        self.listening: Listening = listening
        self._deferred: deque[Callable[[], object]] = deque()
        self._deferring = allocate_lock()

    @property
    def phase(self) -> Phase:
        life = self.shared.life
        return STOPPED if life is None else life.phase

    @property
    def since(self) -> datetime:
        """When this phase began."""
        life = self.shared.life
        return self.shared.stopped_since if life is None else life.since

    @property
    def running(self) -> bool:
        """From `start` to `stop`, connected or not."""
        life = self.shared.life
        return life is not None and not life.stopping

    @property
    def session(self) -> Session | None:
        """What is listened with now."""
        life = self.shared.life
        return life.session if life is not None and not life.stopping else None

    def _defer(self, call: Callable[[], object]) -> bool:
        """Have `call` made by a thread of its own if the current thread must not wait; returns whether that is so.

        A signal handler or finalizer may run while this very thread holds the lock, and on a listener thread.
        """
        if not (self.shared.lock._is_owned() or Listener.runs_for(self.listening)):
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
            with self.shared.lock:
                life = self.shared.life
                new, touched = step(self.shared.registry)
                live = life if autorun and life is not None and life.phase is LISTENING else None
                if live is None or not any(self.shared.difference(live, new, touched, everything)):
                    self.shared.commit(life, new, touched)
                else:
                    request = Request(step, everything)
                    request.awaited = live.next is None or not live.next.is_being_started
                    if live.next is None:
                        listener = live.next = live.listener = Listener(self.listening, live)
                    live.next.requests.append(request)
            self.shared.dispatcher.turns.wake()
            if listener is not None:
                self.shared.restarts += 1
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
        with self.shared.lock:
            if listener.begun:
                return  # it was: Ctrl-C came later
            orphaned = self.shared.withdraw(listener)
        if orphaned:
            listener.life.close()
            self.shared.end(listener.life, {"event": "stopped"})
        for request in listener.requests:
            request.error = error
            request.done.set()

    # -- start and stop ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect and begin to listen; if that is so already, apply what is pending.

        Raises `psycopg.OperationalError` where it can't connect, and is stopped then.
        """
        if self._defer(self.start):
            return
        while (life := self.shared.life) is not None and life.stopping:
            self._finish(life)  # a stop() that another thread has not finished, or that Ctrl-C interrupted
        if life is None:
            self._begin()
        elif life.listener is None or not life.listener.is_being_started:  # by a call that this one interrupts
            self._await_start(life)
            self.change(nothing, True, everything=True)

    def _begin(self) -> None:
        shared, life = self.shared, Lifetime(*self._options)
        listener = Listener(self.listening, life)
        try:
            with shared.lock:
                mine = shared.life is None
                if mine:
                    life.listener = listener
                    shared.life = life  # one assignment: Ctrl-C leaves a lifetime, or none
                    shared.stopped.clear()
                    shared.dispatcher.begin()
            if mine:
                listener.start()
                self._await_start(life)
                return
        except BaseException:
            if shared.life is life:
                self._finish(life)
            life.close()
            listener.join(STOP_SECONDS)
            raise
        life.close()
        self.start()  # another thread was first

    @staticmethod
    def _await_start(life: Lifetime) -> None:
        life.started.wait()
        if life.error is not None and not (life.stopping and isinstance(life.error, Abandoned)):
            life.ended.wait(STOP_SECONDS)
            raise life.error

    def stop(self, deadline: float, drain: bool) -> None:
        """End the listener, then the workers, until `deadline` (monotonic seconds) at most; drop what waits."""
        if self._defer(lambda: self.stop(deadline, drain)):
            return
        workers, turns = self._workers, self.shared.dispatcher.turns
        wait = not self.in_a_callback()
        life = self.shared.life
        if life is not None:
            self._finish(life, deadline if drain and wait else None)
        if wait:
            turns.reclaim()
            turns.bell.wait_for(lambda: turns.running or workers.ended, max(0.0, deadline - monotonic()))
        with self.shared.lock:
            if self.shared.life is None:
                self.shared.stopped.set()

    def _finish(self, life: Lifetime, drain_until: float | None = None) -> None:
        """End a lifetime, and calls. Every step can be repeated, so an interrupted one is finished by the next."""
        with self.shared.lock:
            life.drains = drain_until is not None
            if not life.stopping:
                life.to(STOPPING)
            listener, orphaned, waiting = life.listener, life.listener is None, list[Request]()
            if listener is not None and not listener.begun:
                waiting = self.shared.record(listener)
                orphaned = self.shared.withdraw(listener)
                listener = life.listener
        life.token.cancel()
        self.shared.report(waiting)
        if orphaned:
            life.close()
        elif listener is not None:
            listener.wake()
            if life.ended.wait(STOP_SECONDS):
                listener.join(STOP_SECONDS)
        if drain_until is not None:
            self._drain(life, drain_until)
        self.shared.end(life, {"event": "stopped"})

    def _drain(self, life: Lifetime, deadline: float) -> None:
        rest, life.rest = life.rest, deque()
        for batch in rest:
            while batch.notifications and monotonic() < deadline:
                count, seconds = self.listening.notify(batch.notifications, batch.since)
                batch.notifications = batch.notifications[count:]  # a copy: runs keep the list
                self.shared.dispatcher.turns.bell.wait_for(lambda: False, seconds)
        self.wait_idle(deadline)

    def wait_idle(self, deadline: float) -> bool:
        """Wait until nothing waits and no call is under way, until `deadline` at most; returns whether that is so."""
        turns = self.shared.dispatcher.turns
        turns.reclaim()
        return turns.bell.wait_for(self.shared.dispatcher.is_idle, max(0.0, deadline - monotonic()))

    def in_a_callback(self) -> bool:
        """Whether the current thread makes calls, or runs an event loop that does or is about to."""
        return self._workers.has_caller()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's session without touching it."""
        life, self.shared.life = self.shared.life, None
        if life is not None:
            if life.session is not None:
                life.session.abandon()
            life.token.close()
            _kept.append(life)


_kept: list[Any] = []  # keeps the parent's objects alive in a forked child, so that their finalizers never run there
