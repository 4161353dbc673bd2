"""The listener thread: an asyncio task that drains a session whenever its socket is readable (contract 5).

Runs no user code, but for a callable `dbconf` that is asked between two sessions, and does not poll. A listener
serves one thread's life; the session outlives it, and so does the event loop, which the next thread runs again.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime
from math import inf
from typing import Any

from ..log import CRITICAL, WARNING, describe, log
from .connect import PortableSelector
from .session import Session


def new_loop() -> asyncio.SelectorEventLoop:
    """An event loop that shares nothing with a forked child."""
    return asyncio.SelectorEventLoop(PortableSelector())


def as_async(f: Callable[..., Any], *a: Any) -> Future[Any]:
    """Run `f(*a)`, blocking or a coroutine function, as a task in a new event loop in a thread of its own.

    Returns at once. Cancelling the future ends the task (a blocking function runs to its end, unheard).
    """
    loop = new_loop()
    future: Future[Any] = Future()
    task: asyncio.Task[Any] | None = None

    async def call() -> Any:
        result = f(*a)
        return await result if inspect.isawaitable(result) else result

    def cancel(future: Future[Any]) -> None:
        if future.cancelled():
            try:
                loop.call_soon_threadsafe(lambda: task and task.cancel())
            except RuntimeError:
                return  # the loop is closed: the task has ended

    def run() -> None:
        nonlocal task
        outcome: tuple[Callable[[Any], None], Any] | None = None
        try:
            task = loop.create_task(call())
            if future.cancelled():
                task.cancel()
            outcome = (future.set_result, loop.run_until_complete(task))
        except asyncio.CancelledError:
            future.cancel()
        except BaseException as error:
            outcome = (future.set_exception, error)
        finally:
            task = None
            loop.close()
        if outcome is not None and future.set_running_or_notify_cancel():
            outcome[0](outcome[1])

    future.add_done_callback(cancel)
    name = f"pgnotifier-{getattr(f, '__name__', 'task')}"
    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    except BaseException:
        loop.close()
        raise
    return future


NAME = "pgnotifier-listener"


class Listener:
    """Drains a session into `deliver` until asked to stop, while it has `turn`, which the owner of the session has.

    It lets go of the turn while there is nothing to read: who wants to own the session asks it to give way, and takes
    the turn. It starts the next thread itself then, with `follow()`, while the server answers; where that cannot be
    had it goes on. `running` is held by the thread that runs the loop.

    `session()` is what there is to begin with; `wished()` whether somebody waits for the turn. `deliver(batch, well,
    give_up)` returns how many it took; the others come first in the next drain. `lost(session, error)` is called when
    the session fails, and `renew()` for the next one, which is None where none is wanted any more; with no session to
    begin with, `renew` comes first. `ended()` comes last.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        running: threading.Lock,
        turn: threading.Lock,
        session: Callable[[], Session | None],
        wished: Callable[[], bool],
        deliver: Callable[[list[Any], datetime, Callable[[], bool]], int],
        nudge: Callable[[], None],
        lost: Callable[[Session, BaseException], None],
        renew: Callable[[], Session | None],
        follow: Callable[[], object],
        ended: Callable[[], object],
    ) -> None:
        self._loop, self._running, self._turn = loop, running, turn
        self._session, self._wished = session, wished
        self._deliver, self._nudge, self._lost, self._renew = deliver, nudge, lost, renew
        self._follow, self._ended = follow, ended
        self._stopping = self._giving_way = False  # counts even before the thread has begun to run
        self._readable: asyncio.Event | None = None
        self._heard = True
        self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_here(self) -> bool:
        return threading.current_thread() is self._thread

    def ask_to_give_way(self) -> None:
        """Have the next thread take over; by whoever is to have the turn in between."""
        self._giving_way = True
        self._wake()

    def ask_to_stop(self) -> None:
        """Have the thread end; it is between two drains then, and what it drained is delivered or put back."""
        self._stopping = True
        self._wake()

    def _wake(self) -> None:
        readable = self._readable
        if readable is not None:
            try:
                self._loop.call_soon_threadsafe(readable.set)
            except RuntimeError:
                pass  # the loop is closed: the thread has ended
        self._nudge()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the thread has ended; whether that is so."""
        if self.is_here:
            return False
        if self._thread.ident is not None:  # else it was never started
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        with self._running:
            try:
                self._serve()
                while not self._stopping and self._giving_way and not self._succeeded():
                    self._giving_way = False
                    self._serve()
            finally:
                self._ended()

    def _succeeded(self) -> bool:
        self._thread.name += "-ending"  # there is one of that name
        try:
            self._follow()
        except Exception as error:
            self._thread.name = NAME
            log(WARNING, "no other listener thread can be started, so this one goes on: %s", describe(error))
            return False
        return True

    def _ends(self) -> bool:
        if self._wished():  # by one who asked the listener before this one
            self._giving_way = True
        return self._stopping or self._giving_way

    def _serve(self) -> None:
        """Until asked to stop, or to give way."""
        while not self._ends():
            session: Session | None = None
            try:
                session = self._session() or self._renew()
                if session is None:
                    return
                self._loop.run_until_complete(self._listen(session))
            except BaseException as error:
                if session is None:
                    log(CRITICAL, "the listener met what it did not expect, and goes on", error=error)
                else:
                    with self._turn:
                        self._lost(session, error)

    async def _listen(self, session: Session) -> None:
        """Until asked to stop, or the session is lost."""
        loop = self._loop
        readable = self._readable = asyncio.Event()
        timer: asyncio.TimerHandle | None = None
        due = 0.0

        def bytes_came() -> None:
            self._heard = True
            readable.set()

        loop.add_reader(session.fileno, bytes_came)
        try:
            while True:
                with self._turn:
                    if self._ends() or self._session() is not session:  # lost by one who had the turn
                        return
                    readable.clear()
                    try:
                        batch = session.drain()
                        if batch:
                            self._hand_over(session, batch)
                        heard, self._heard = self._heard or bool(batch), False
                        latest = session.check(heard)
                    except BaseException as error:
                        self._lost(session, error)
                        return
                if latest != due:
                    # Only the end of a heartbeat wakes an idle listener; traffic does not move the timer.
                    if timer is not None:
                        timer.cancel()
                    timer, due = (loop.call_at(latest, readable.set), latest) if latest < inf else (None, latest)
                if not batch:
                    await readable.wait()
        finally:
            if timer is not None:
                timer.cancel()
            loop.remove_reader(session.fileno)

    def _hand_over(self, session: Session, batch: list[Any]) -> None:
        failures: list[BaseException] = []

        def stops() -> bool:
            """Asked again and again while a mailbox is full: the server must not wait for it."""
            ends = self._ends()
            if not ends and not failures:
                try:
                    session.read_on()
                except Exception as error:
                    failures.append(error)
            return ends

        taken = self._deliver(batch, session.drained, stops)
        if taken < len(batch):
            session.put_back(batch[taken:])
        if failures:
            raise failures[0]
