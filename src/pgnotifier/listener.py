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

from .log import CRITICAL, log
from .session import Session
from .wire import PortableSelector


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


class Listener:
    """Drains a session into `deliver` until asked to stop, while it has `turn`, which one thread has at a time.

    `session()` is what there is to begin with. `deliver(batch, well, give_up)` returns how many it took; the others
    come first in the next drain. `lost(session, error)` is called when the session fails, and `renew()` for the next
    one, which is None where none is wanted any more; with no session to begin with, `renew` comes first. `ended()`
    comes last.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        turn: threading.Lock,
        session: Callable[[], Session | None],
        deliver: Callable[[list[Any], datetime, Callable[[], bool]], int],
        nudge: Callable[[], None],
        lost: Callable[[Session, BaseException], None],
        renew: Callable[[], Session | None],
        ended: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._turn, self._session = turn, session
        self._deliver, self._nudge, self._lost, self._renew, self._ended = deliver, nudge, lost, renew, ended
        self._stopping = False  # counts even before the thread has begun to run
        self._readable: asyncio.Event | None = None
        self._heard = True
        self._thread = threading.Thread(target=self._run, name="pgnotifier-listener", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def serving(self) -> bool:
        """Whether the thread runs, and is to go on."""
        return self._thread.is_alive() and not self._stopping

    @property
    def is_here(self) -> bool:
        return threading.current_thread() is self._thread

    def ask_to_stop(self) -> None:
        """Have the thread end; it is between two drains then, and what it drained is delivered or put back."""
        self._stopping = True
        readable = self._readable
        if readable is not None:
            try:
                self._loop.call_soon_threadsafe(readable.set)
            except RuntimeError:
                pass  # the loop is closed: the thread has ended
        self._nudge()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the thread no longer touches the session; whether that is so."""
        if self.is_here:
            return False
        if self._thread.ident is not None:  # else it was never started
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _stop_asked(self) -> bool:
        return self._stopping

    def _run(self) -> None:
        with self._turn:
            try:
                session = self._session()
                while not self._stopping:
                    try:
                        session = session or self._renew()
                        if session is None:
                            return
                        self._loop.run_until_complete(self._listen(session))
                    except BaseException as error:
                        failed, session = session, None
                        if failed is not None:
                            self._lost(failed, error)
                        else:
                            log(CRITICAL, "the listener met what it did not expect, and goes on", error=error)
            finally:
                self._ended()

    def _stops(self, session: Session, failures: list[BaseException]) -> bool:
        """Asked again and again while a mailbox is full: the server must not wait for it."""
        if not self._stopping and not failures:
            try:
                session.read_on()
            except Exception as error:
                failures.append(error)
        return self._stopping

    async def _listen(self, session: Session) -> None:
        loop, stopping = self._loop, self._stop_asked
        readable = self._readable = asyncio.Event()
        timer: asyncio.TimerHandle | None = None
        due = 0.0

        def bytes_came() -> None:
            self._heard = True
            readable.set()

        loop.add_reader(session.fileno, bytes_came)
        try:
            while not stopping():
                readable.clear()
                batch = session.drain()
                if batch:
                    failures: list[BaseException] = []
                    taken = self._deliver(batch, session.drained, lambda: self._stops(session, failures))  # noqa: B023
                    if taken < len(batch):
                        session.put_back(batch[taken:])
                    if failures:
                        raise failures[0]
                heard, self._heard = self._heard or bool(batch), False
                latest = session.check(heard)
                if latest != due:
                    # Only the end of a heartbeat wakes an idle listener; traffic does not move the timer.
                    if timer is not None:
                        timer.cancel()
                    timer, due = (loop.call_at(latest, readable.set), latest) if latest < inf else (None, latest)
                if not batch and not stopping():
                    await readable.wait()
        finally:
            if timer is not None:
                timer.cancel()
            loop.remove_reader(session.fileno)
