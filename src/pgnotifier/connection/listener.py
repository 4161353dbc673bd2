"""The listener thread: an asyncio task that reads a session whenever its socket is readable (guarantee 5).

A change of channels starts the next listener thread, which ends its predecessor, sends the change, and listens on.
Starting, changing and reconnecting are one life of a thread. It runs no callback, and does not poll; it runs log
handlers and a callable `dbconf`, without holding a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import deque
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

import psycopg

from .. import threads
from ..log import CRITICAL, INFO, WARNING, describe, log
from . import backoff
from .aioloop import new_loop
from .session import Session
from .waiting import Abandoned

if TYPE_CHECKING:
    from .lifetime import Lifetime

NAME = "pgnotifier-listener"


class Owner(Protocol):
    """The supervisor, as its listener threads see it. The threads alone call its methods."""

    def may_begin(self, listener: Listener) -> bool:
        """Whether the thread has something to do; if so, its predecessor has been asked to end."""

    def wanted(self) -> list[str]:
        """The channels that a new session has to listen to."""

    def publish(self, life: Lifetime, session: Session, refused: dict[str, psycopg.Error]) -> None:
        """The session listens. Raises `Abandoned` where nobody wants it any more."""

    def reconnected(self, down_for: float, attempts: int) -> None: ...

    def serve(self, listener: Listener, session: Session) -> None:
        """Close the difference between wanted and actual channels, and report to the callers that wait."""

    def hand_over(self, session: Session) -> float:
        """Move the backlog into mailboxes; after how many seconds to try again, where some have no room, else 0."""

    def lost(self, listener: Listener, session: Session, error: BaseException) -> None: ...

    def failed(self, error: BaseException) -> None:
        """An attempt to connect again has failed."""

    def ended(self, listener: Listener) -> None:
        """The thread ends; the last one of a lifetime closes what that holds."""


class _Thread(threading.Thread):
    owner: Owner


class Listener:
    """One thread of a lifetime, the one before it, and `requests`: the changes for which it is started."""

    def __init__(self, owner: Owner, life: Lifetime) -> None:
        self._owner, self.life, self.predecessor = owner, life, life.listener
        self.requests: deque[Any] = deque()
        self._creator = threading.get_ident()
        self.begun = self.over = False
        self.ending = False  # asked to end by a successor
        self.cancelled = False  # it has not begun, and never will
        self._heard = True
        self._readable: asyncio.Event | None = None
        self._thread = _Thread(target=self._run, name=NAME, daemon=True)
        self._thread.owner = owner

    @staticmethod
    def runs_for(owner: Owner) -> bool:
        """Whether the current thread is one of its listener threads."""
        thread = threading.current_thread()
        return isinstance(thread, _Thread) and thread.owner is owner

    def start(self) -> None:
        """Start the thread. Raises what kept it from starting."""
        threads.start(self._thread)

    @property
    def is_being_started(self) -> bool:
        """Whether a call that this one interrupts is about to start it: then this thread can't wait for it."""
        return not self.begun and self._creator == threading.get_ident()

    @property
    def is_here(self) -> bool:
        """Whether this is the current thread."""
        return threading.current_thread() is self._thread

    def join(self, timeout: float) -> None:
        if not self.is_here:
            with contextlib.suppress(RuntimeError):  # Ctrl-C kept it from being started, or came before it began
                self._thread.join(timeout)

    def wake(self) -> None:
        """Have the thread look whether it has to end, or whether mailboxes have room. Any thread."""
        readable, loop = self._readable, self.life.loop
        if readable is not None and loop is not None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed: the thread has ended
                loop.call_soon_threadsafe(readable.set)

    def _ends(self) -> bool:
        return self.ending or self.life.stopping

    # -- on the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        if not self._owner.may_begin(self):
            return
        before, self.predecessor = self.predecessor, None
        if before is not None:
            before.wake()
        with self.life.turn:
            try:
                self._live()
            except BaseException as error:
                log(CRITICAL, "the listener met what it did not expect, and ends", error=error)
            finally:
                self._owner.ended(self)

    def _live(self) -> None:
        """Until asked to end: connect where there is no session, make changes, and listen."""
        owner, life = self._owner, self.life
        while True:
            session = life.session
            try:
                if session is None:
                    if self._ends():
                        return
                    session = self._reconnect() if life.started.is_set() else self._connect()
                if session is None:
                    return
                owner.serve(self, session)
                life.started.set()
                if self._ends():
                    return
                if life.loop is None:  # here and not in `start`, where Ctrl-C could leave half a loop behind
                    life.loop = new_loop()
                life.loop.run_until_complete(self._listen(life.loop, session))
                if self._ends():
                    return
            except BaseException as error:
                if session is not None:
                    owner.lost(self, session, error)
                elif life.started.is_set():
                    raise
                else:
                    life.error = error
                    return

    def _connect(self) -> Session:
        """A session that listens to everything that is wanted, published. Raises what kept it from that."""
        owner, life = self._owner, self.life
        session = Session(life.source, life.heartbeat, life.token)
        try:
            session.prove(life.source)
            refused = session.listen_where_allowed(owner.wanted())
            session.verify()
            owner.publish(life, session, refused)
        except BaseException:
            session.close()
            raise
        return session

    def _reconnect(self) -> Session | None:
        """Connect again, for ever; None where the notifier was stopped meanwhile."""
        life, (least, most) = self.life, self.life.retry_delay
        life.attempt = backoff.next_attempt(life.attempt, life.down_since - life.up_since, least, most)
        attempts = 0
        while True:
            seconds = backoff.delay(life.attempt, least, most, random.random())
            attempts += 1
            log(WARNING, "connecting again in %.2f s, attempt %d", seconds, attempts)
            try:
                life.token.wait(monotonic() + seconds)
                session = self._connect()
            except Abandoned:
                return None
            except BaseException as error:  # whatever a callable dbconf may raise
                self._owner.failed(error)
                log(WARNING, "attempt %d to connect failed: %s", attempts, describe(error))
                life.attempt += 1
                continue
            down_for = life.up_since - life.down_since
            log(INFO, "connected again after %.2f s, attempt %d", down_for, attempts)
            self._owner.reconnected(down_for, attempts)
            return session

    async def _listen(self, loop: asyncio.AbstractEventLoop, session: Session) -> None:
        """Read and hand over, until asked to end. Raises when the session is lost."""
        owner = self._owner
        readable = self._readable = asyncio.Event()
        timer: asyncio.TimerHandle | None = None
        due = inf
        reading = False

        def bytes_came() -> None:
            self._heard = True
            readable.set()

        try:
            while not self._ends():
                readable.clear()
                if reading is not session.has_room:  # else the socket would be reported readable again and again
                    reading = session.has_room
                    loop.add_reader(session.fileno, bytes_came) if reading else loop.remove_reader(session.fileno)
                came = reading and session.read()
                seconds = owner.hand_over(session) if session.backlog else 0.0
                heard, self._heard = self._heard or came or not reading, False
                latest = session.check(heard)
                if seconds:
                    latest = min(latest, monotonic() + seconds)
                if latest != due:
                    # Only the end of a heartbeat wakes an idle listener; traffic does not move the timer.
                    if timer is not None:
                        timer.cancel()
                    timer, due = (loop.call_at(latest, readable.set), latest) if latest < inf else (None, latest)
                if not came or seconds:
                    await readable.wait()
        finally:
            if timer is not None:
                timer.cancel()
            loop.remove_reader(session.fileno)
