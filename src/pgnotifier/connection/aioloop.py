"""The event loop of the library's threads, and 0.0.10's `as_async`, which runs a function in one."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from .waiting import PortableSelector


def new_loop() -> asyncio.SelectorEventLoop:
    """Return an event loop that shares nothing with a forked child."""
    return asyncio.SelectorEventLoop(PortableSelector())


def as_async(f: Callable[..., Any], *a: Any) -> Future[Any]:
    """Run `f(*a)`, a blocking or coroutine function, in a new event loop on a new thread; return a future at once.

    Cancelling the future cancels the task. A blocking function runs to its end, and its result is ignored.
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
