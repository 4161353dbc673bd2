"""Threads that make blocking calls for `AsyncNotifier`, and waiting on an event loop.

The event loop never blocks on such a thread. There is no lock: each step is one operation of a deque or a list.
asyncio's default executor would not do, because it refuses calls once the main thread has ended.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from math import inf
from time import monotonic

from . import threads
from .flag import Bell, Flag

THREAD_NAME = "pgnotifier-call"


async def until(bell: Bell, condition: Callable[[], object], timeout: float | None = None) -> bool:
    """Wait until `condition()` is true, at most `timeout` seconds; return True if it is. `bell` rings on changes."""
    deadline = inf if timeout is None else monotonic() + timeout
    while not condition():
        waker = _Waker()
        bell.watch(waker)
        try:
            if not condition():
                seconds = deadline - monotonic()
                if seconds <= 0:
                    return False
                await waker.rung(seconds)
        finally:
            bell.unwatch(waker)
    return True


class _Waker:
    """Completes a future when a `Bell` rings."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()

    def release(self) -> None:
        """Complete the future. Any thread. Raises `RuntimeError` if the event loop is closed."""
        self._loop.call_soon_threadsafe(self._complete)

    def _complete(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def rung(self, seconds: float) -> None:
        """Wait until `release()`, at most `seconds`."""
        timer = None if seconds == inf else self._loop.call_later(seconds, self._complete)
        try:
            await self._future
        finally:
            if timer is not None:
                timer.cancel()


class Call:
    """A call of `function()` on a thread. `dropped` tells the function that no task waits for it."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self.done: Flag = Flag()
        self.dropped: bool = False
        self.error: BaseException | None = None

    def make(self) -> None:
        """Make the call, and keep its error. On its thread."""
        try:
            self._function()
        except BaseException as error:
            self.error = error
        self.done.set()

    def begin(self) -> None:
        """Start a thread that makes it, in the caller's context. Raises `RuntimeError` if none can be started."""
        make = partial(copy_context().run, self.make)
        threads.start(threading.Thread(target=make, name=THREAD_NAME, daemon=True))

    async def wait(self) -> None:
        """Wait until the call has ended. Raises the error that it raised. On the event loop."""
        await until(self.done, self.done.is_set)
        if self.error is not None:
            raise self.error


class Sends:
    """Sends notifications one after another, on a thread that ends when none is left."""

    def __init__(self) -> None:
        self._calls: deque[Call] = deque()
        self._idle = [True]  # one token: the caller that pops it starts the thread, which puts it back

    async def make(self, send: Callable[[], object]) -> None:
        """Call `send()` on the thread, unless the task is cancelled before. Raises the error that it raises."""
        call: Call = Call(lambda: call.dropped or send())
        self._put(call)
        try:
            await call.wait()
        finally:
            call.dropped = True

    def _put(self, call: Call) -> None:
        token = list[bool]()
        self._calls.append(call)
        try:
            token.extend(map(list.pop, (self._idle,)))  # one call of C: Ctrl-C comes before or after it
            threads.start(threading.Thread(target=self._work, name=THREAD_NAME, daemon=True))
        except IndexError:
            return  # the thread that has the token makes this call too
        except BaseException:
            with suppress(ValueError):
                self._calls.remove(call)
            self._idle += token
            raise

    def _work(self) -> None:
        calls, idle = self._calls, self._idle
        while True:
            while calls:
                calls.popleft().make()
            idle[:] = [True]
            try:
                if not calls or not idle.pop():
                    return
            except IndexError:
                return  # another thread goes on
