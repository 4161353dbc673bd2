"""Starts, stops and changes the listener. Runs on the caller's thread, any thread, without the state lock.

Only a listener thread touches a session. Callers record changes under the state lock. If LISTEN or UNLISTEN must be
sent, they wake the listener and wait for its report. `NEXT` in `connection/lifetime.py` is the table of phases.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from datetime import datetime
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any

from . import changes, threads
from .connection import STOPPED, STOPPING, Abandoned, Lifetime, Phase, Session
from .deferred import Deferred
from .listener import Listener
from .registry import EMPTY, Registry
from .shared import Notify, Request, Shared, Step, nothing
from .types import DbConf

if TYPE_CHECKING:
    from .delivery import Calls, Dispatcher, Workers

STOP_SECONDS = 0.5  # that `stop` waits for a listener thread that resolves a name or calls dbconf


class Supervisor:
    """Owns what caller and listener share. `notify(batch, since)` fills mailboxes, as `Dispatcher.post` does."""

    def __init__(
        self,
        source: DbConf,
        heartbeat: float | None,
        retry_delay: tuple[float, float],
        connect_wait: float,
        dispatcher: Dispatcher,
        workers: Workers,
        notify: Notify,
        reg: Registry = EMPTY,
    ) -> None:
        self._options = (source, heartbeat, retry_delay, connect_wait)
        self._workers = workers
        self.shared: Shared = Shared(dispatcher, notify, workers.start, reg)
        self._deferred = Deferred(self.shared)

    @property
    def calls(self) -> Calls:
        """The object that decodes payloads and reports failed calls."""
        return self._workers.calls

    @property
    def phase(self) -> Phase:
        life = self.shared.life
        return STOPPED if life is None else life.phase

    @property
    def since(self) -> datetime:
        """The time at which this phase began, aware UTC."""
        life = self.shared.life
        return self.shared.stopped_since if life is None else life.since

    @property
    def running(self) -> bool:
        """True from `start` until `stop`, connected or not."""
        life = self.shared.life
        return life is not None and not life.stopping

    @property
    def session(self) -> Session | None:
        """The session that listens now, or None."""
        life = self.shared.life
        return life.session if life is not None and not life.stopping else None

    @property
    def confirmed(self) -> datetime | None:
        """The time before which every commit has arrived; None before the first session."""
        life = self.shared.life
        session = None if life is None else life.session
        if life is None or not life.published:
            return self.shared.confirmed
        return life.confirmed if session is None else session.confirmed

    def problems(self) -> tuple[list[str], list[str]]:
        """Return texts that say why the notifier is not live, and why it is not ready. Takes no lock."""
        life = self.shared.life
        if life is None or life.stopping or life.ended.is_set():
            return ["the notifier is stopped"], []
        published = life.published  # read before the workers are counted: they start before it is set
        missing, session = self._workers.missing, life.session
        if life.stopping or life is not self.shared.life:  # read after they are counted: they end after it
            return ["the notifier is stopped"], []
        dead = [f"{missing} of its worker threads are missing"] if missing and published else []
        error = self.shared.last_error
        if session is None:
            reason = f": {error}" if error else ""
            return dead, [f"not connected since {life.since:%Y-%m-%d %H:%M:%S} UTC{reason}"]
        silent = session.silent_for
        return dead, [f"no answer from the server for {silent:.0f} s"] if silent else []

    # -- changes ---------------------------------------------------------------------------------------------

    def change(self, step: Step, autorun: bool, everything: bool = False) -> None:
        """Make `step` the next registry; with `autorun`, return when the server listens accordingly.

        Without a session the change is only recorded. Raises the error of `step`, or the server's if it refuses;
        nothing has changed then. `everything`: compare all channels with the server, not only those of `step`.
        """
        if not self._deferred.take(lambda: self.change(step, autorun, everything)):
            request = changes.begin(self.shared, step, autorun, everything)
            request.done.wait()
            if request.error is not None:
                raise request.error

    def release(self, step: Step) -> None:
        """Make a removing step at once; the listener sends the UNLISTEN later. Does not wait."""
        if not self._deferred.take(lambda: self.release(step)):
            changes.release(self.shared, step)

    def take_back(self, request: Request, undo: Step) -> None:
        """Undo a change whose caller was cancelled. Does not wait."""
        if not self._deferred.take(lambda: self.take_back(request, undo)):
            changes.take_back(self.shared, request, undo)

    # -- start and stop ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect and listen. If the listener is running, apply pending changes.

        Raises `psycopg.OperationalError` if it can't connect. The notifier is stopped then.
        """
        if self._deferred.take(self.start):
            return
        while (life := self.shared.life) is not None and life.stopping:
            self._finish(life)  # a stop() that another thread has not finished, or that Ctrl-C interrupted
        if life is None:
            self._begin()
        elif life.begun or life.starter != threading.get_ident():
            self._await_start(life)
            self.change(nothing, True, everything=True)
        elif not self._interrupts_begin():  # Ctrl-C ended the earlier call before it started the thread
            self._finish(life)
            self._begin()

    def _begin(self) -> None:
        shared, life = self.shared, Lifetime(*self._options)
        life.listener = Listener(shared, life)
        try:
            with shared.lock:
                mine = shared.life is None
                if mine:
                    shared.life = life  # one assignment: Ctrl-C leaves a lifetime, or none
                    shared.stopped.clear()
                    shared.dispatcher.begin()
            if mine:
                threads.start(life.listener)
                self._await_start(life)
                return
        except BaseException:
            if shared.life is life:
                self._finish(life)
            life.close()
            threads.join(life.listener, STOP_SECONDS)
            raise
        life.close()
        self.start()  # another thread was first

    def _interrupts_begin(self) -> bool:
        """Return True if this call interrupts `_begin` in the same thread, before the listener starts."""
        frame: FrameType | None = sys._getframe()
        while frame is not None and frame.f_code is not Supervisor._begin.__code__:
            frame = frame.f_back
        return frame is not None

    @staticmethod
    def _await_start(life: Lifetime) -> None:
        life.started.wait()
        if life.error is not None and not (life.stopping and isinstance(life.error, Abandoned)):
            life.ended.wait(STOP_SECONDS)
            raise life.error

    def stop(self, deadline: float, drain: bool) -> None:
        """End the listener, then the workers; throw away what waits. Blocks until `deadline` (monotonic) at most."""
        if self._deferred.take(lambda: self.stop(deadline, drain)):
            return
        workers, turns = self._workers, self.shared.dispatcher.turns
        wait = not self.in_a_callback()
        life = self.shared.life
        if life is not None:
            self._finish(life, deadline if drain and wait else None)
        turns.wake()  # Ctrl-C may have ended an earlier stop() before it
        if wait:
            turns.reclaim()
            turns.bell.wait_for(lambda: turns.running or workers.ended, max(0.0, deadline - monotonic()))
        with self.shared.lock:
            if self.shared.life is None:
                self.shared.stopped.set()

    def _finish(self, life: Lifetime, drain_until: float | None = None) -> None:
        """End a lifetime and its calls. Every step can be repeated: the next call finishes an interrupted one."""
        with self.shared.lock:
            life.drains = drain_until is not None
            if not life.stopping:
                life.to(STOPPING)
        life.token.cancel()
        life.wake()
        if not life.begun:  # then its thread, if it starts at all, ends at once
            life.close()
        elif life.ended.wait(STOP_SECONDS):
            threads.join(life.listener, STOP_SECONDS)
        if drain_until is not None:
            self._drain(life, drain_until)
        self.shared.end(life, {"event": "stopped"})

    def _drain(self, life: Lifetime, deadline: float) -> None:
        rest, life.rest = life.rest, deque()
        for batch in rest:
            while batch.notifications and monotonic() < deadline:
                count, seconds = self.shared.notify(batch.notifications, batch.since)
                batch.notifications = batch.notifications[count:]  # a copy: runs keep the list
                self.shared.dispatcher.turns.bell.wait_for(lambda: False, seconds)
        self.wait_idle(deadline)

    def wait_idle(self, deadline: float, streams: bool = True) -> bool:
        """Wait until no notification waits and no call runs, until `deadline` (monotonic) at most; return True if so.

        `streams`: wait until nothing is left in a stream either.
        """
        turns = self.shared.dispatcher.turns
        turns.reclaim()
        idle = self.shared.dispatcher.is_idle
        turns.bell.wait_for(lambda: idle(streams) or self.in_a_callback(), max(0.0, deadline - monotonic()))
        return idle(streams)

    def in_a_callback(self) -> bool:
        """Return True if the current thread makes calls, or runs an event loop that does or is about to."""
        return self._workers.has_caller()

    def wake(self) -> None:
        """Wake the listener, to look for changes and for room in mailboxes."""
        life = self.shared.life
        if life is not None:
            life.wake()

    def abandon(self) -> None:
        """Let go of the parent's session without touching it. In a forked child."""
        life, self.shared.life = self.shared.life, None
        if life is not None:
            if life.session is not None:
                life.session.abandon()
            life.token.close()
            _kept.append(life)


_kept: list[Any] = []  # keeps the parent's objects alive in a forked child, so that their finalizers never run there
