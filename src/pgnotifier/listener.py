"""The listener thread: an asyncio task that drains a session whenever its socket is readable (contract 5).

Runs no user code, and does not poll. A listener serves one thread's life; the session outlives it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import selectors
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from .session import Session

logger = logging.getLogger("pgnotifier")


def as_async(f: Callable[..., Any], *a: Any) -> Future[Any]:
    """Run `f(*a)`, blocking or a coroutine function, as a task in a new event loop in a thread of its own.

    Returns at once. Cancelling the future ends the task (a blocking function runs to its end, unheard).
    """
    future: Future[Any] = Future()
    # epoll would be shared with a forked child, whose clean-up makes the parent's loop deaf; poll shares nothing.
    loop = asyncio.SelectorEventLoop(selectors.PollSelector() if hasattr(selectors, "PollSelector") else None)

    async def call() -> Any:
        result = f(*a)
        return await result if inspect.isawaitable(result) else result

    def cancel(future: Future[Any]) -> None:
        if future.cancelled():
            try:
                loop.call_soon_threadsafe(task.cancel)
            except RuntimeError:
                return  # the loop is closed: the task has ended

    task = loop.create_task(call())
    future.add_done_callback(cancel)

    def run() -> None:
        outcome: tuple[Callable[[Any], None], Any] | None = None
        try:
            outcome = (future.set_result, loop.run_until_complete(task))
        except asyncio.CancelledError:
            future.cancel()
        except BaseException as error:
            outcome = (future.set_exception, error)
        finally:
            loop.close()
        if outcome is not None and future.set_running_or_notify_cancel():
            outcome[0](outcome[1])

    thread = threading.Thread(target=run, name=f"pgnotifier-{getattr(f, '__name__', 'task')}", daemon=True)
    try:
        thread.start()
    except BaseException:
        task.cancel()
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        loop.close()
        raise
    return future


class Listener:
    """Drains `session` into `deliver(batch)` until `stop`; `lost(error)` is called when the connection fails."""

    def __init__(
        self,
        session: Session,
        deliver: Callable[[list[Any]], None],
        lost: Callable[[BaseException], None],
    ) -> None:
        self._session = session
        self._deliver = deliver
        self._lost = lost
        self._stopping = threading.Event()  # counts even before the thread has begun to run
        self._loop: asyncio.AbstractEventLoop | None = None
        self._readable: asyncio.Event | None = None
        self._future = as_async(self._run)

    def stop(self) -> None:
        """Wait until the thread no longer touches the session. It is between two drains then."""
        self._stopping.set()
        loop, readable = self._loop, self._readable
        if loop is not None and readable is not None:
            try:
                loop.call_soon_threadsafe(readable.set)
            except RuntimeError:
                pass  # the loop is closed: the thread has ended
        self._future.exception()

    async def _run(self) -> None:
        threading.current_thread().name = "pgnotifier-listener"
        readable = self._readable = asyncio.Event()
        loop = self._loop = asyncio.get_running_loop()
        try:
            loop.add_reader(self._session.fileno, readable.set)
            try:
                while not self._stopping.is_set():
                    readable.clear()
                    batch = self._session.drain()
                    if batch:
                        self._deliver(batch)
                    elif not self._stopping.is_set():
                        await readable.wait()
            finally:
                loop.remove_reader(self._session.fileno)
        except Exception as error:
            self._lost(error)
