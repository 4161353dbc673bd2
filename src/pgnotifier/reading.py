"""The task of the listener thread: reads a session whenever its socket is readable (guarantee 5)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .connection import Lifetime, Session
    from .shared import Shared


class Reading:
    """Reads and hands over on the listener thread, without the state lock. `tidy()` ends forgotten streams."""

    def __init__(self, shared: Shared, life: Lifetime, session: Session, tidy: Callable[[], object]) -> None:
        self._shared, self._life, self._session, self._tidy = shared, life, session, tidy
        self._readable = asyncio.Event()
        self._heard = monotonic()  # when bytes last came
        self._failure: BaseException | None = None

    def _bytes_came(self) -> None:
        """Read and hand over at once: the task would run one pass of the event loop later."""
        session, self._heard = self._session, monotonic()
        try:
            if not session.backlog:  # else the task waits for room
                session.read()
                self._shared.hand_over(self._life, session)
        except BaseException as error:
            self._failure = error
        if self._failure is not None or session.has_more:
            self._readable.set()

    async def run(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read until a change waits or the notifier is stopped. Raises the error that ended the session."""
        shared, life, session = self._shared, self._life, self._session
        readable = life.readable = self._readable
        timer: asyncio.TimerHandle | None = None
        due, reading = inf, False
        try:
            while self._failure is not None or not (life.stopping or life.requests):
                if self._failure is not None:
                    raise self._failure
                readable.clear()
                if shared.forgotten:
                    self._tidy()
                    continue
                if reading is not session.has_room:  # else the socket would be reported readable again and again
                    reading = session.has_room
                    if reading:
                        loop.add_reader(session.fileno, self._bytes_came)
                    else:
                        loop.remove_reader(session.fileno)
                came = reading and session.read()
                seconds = shared.hand_over(life, session) if session.backlog else 0.0
                latest = session.check(monotonic() if came or not reading else self._heard)
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
