"""Calls that `AsyncNotifier` has made by threads of the library's own, and what a task awaits of them.

The event loop never waits for such a thread, and there is no lock: each step is one operation of a deque or a list.
A default executor would not do: it refuses calls once the main thread has ended.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from contextvars import copy_context
from math import inf
from time import monotonic
from typing import Any, Generic, TypeVar

from . import threads
from .flag import Bell, Flag
from .log import CRITICAL, log

THREAD_NAME = "pgnotifier-call"


class Call:
    """One call. A task on `loop` awaits it, or nobody; `finish` ends it, on the thread that makes it.

    `dropped`: its task has been cancelled, or it has been called off. If it has not begun, it is not made.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._loop = loop
        self._future: asyncio.Future[None] | None = None if loop is None else loop.create_future()
        self.done = Flag()
        self.dropped = False
        self.error: BaseException | None = None

    def __await__(self) -> Generator[Any, None, None]:
        assert self._future is not None
        return self._future.__await__()

    @property
    def has_failed(self) -> bool:
        """Whether it has ended with an error."""
        return self.done.is_set() and self.error is not None

    def finish(self) -> None:
        """Let its task go on, with `error` if there is one. Any thread."""
        self.done.set()
        if self._loop is not None:
            with suppress(RuntimeError):  # the event loop is closed
                self._loop.call_soon_threadsafe(self._resolve)

    def _resolve(self) -> None:
        future = self._future
        if future is None or future.done():
            return  # cancelled
        if self.error is None:
            future.set_result(None)
        elif isinstance(self.error, StopIteration):  # which a future refuses
            future.set_exception(RuntimeError(f"{self.error!r} was raised"))
        else:
            future.set_exception(self.error)


def run(call: Call, function: Callable[[], object]) -> None:
    """Have a thread of its own make the call, in the caller's context.

    Raises `RuntimeError` if no thread can be started.
    """

    def work() -> None:
        try:
            context.run(function)
        except BaseException as error:
            call.error = error
        call.finish()

    context = copy_context()
    threads.start(threading.Thread(target=work, name=THREAD_NAME, daemon=True))


C = TypeVar("C", bound=Call)


class Lane(Generic[C]):
    """Makes calls one after the other, on a thread that ends when none is left.

    `serve(calls)` takes one call or more from the left, makes them and finishes them.
    """

    def __init__(self, serve: Callable[[deque[C]], None]) -> None:
        self._serve = serve
        self._calls: deque[C] = deque()
        self._idle = [True]  # one token: whoever pops it starts the thread, and that puts it back

    def put(self, call: C) -> None:
        """Have the call made after those before it. Raises `RuntimeError` if no thread can be started.

        Any thread, also in a finalizer.
        """
        calls, token = self._calls, list[bool]()
        calls.append(call)
        try:
            token.extend(map(list.pop, (self._idle,)))  # one call of C: Ctrl-C comes before or after it
            threads.start(threading.Thread(target=self._work, name=THREAD_NAME, daemon=True))
        except IndexError:
            return  # the thread that has the token comes to this call
        except BaseException:
            with suppress(ValueError):
                calls.remove(call)
            self._idle += token
            raise

    def _work(self) -> None:
        calls, idle = self._calls, self._idle
        while True:
            while calls:
                try:
                    self._serve(calls)
                except BaseException as error:
                    log(CRITICAL, "a call of AsyncNotifier met what it did not expect", error=error)
            idle[:] = [True]
            try:
                if not calls or not idle.pop():
                    return
            except IndexError:
                return  # another thread goes on


class Send(Call):
    """A notification to be sent, by `send()`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Callable[[], None]) -> None:
        super().__init__(loop)
        self.send = send


class Sends:
    """Sends notifications one after the other, on a thread that ends when none is left."""

    def __init__(self) -> None:
        self._lane = Lane(self._serve)

    async def make(self, send: Callable[[], None]) -> None:
        """Call `send()`; not if the task is cancelled before its turn. Raises what that raises."""
        call = Send(asyncio.get_running_loop(), send)
        self._lane.put(call)
        try:
            await call
        finally:
            call.dropped = True

    @staticmethod
    def _serve(calls: deque[Send]) -> None:
        call = calls.popleft()
        if not call.dropped:
            try:
                call.send()
            except BaseException as error:
                call.error = error
        call.finish()


async def until(bell: Bell, condition: Callable[[], object], timeout: float | None = None) -> bool:
    """Wait until `condition()` is true, for `timeout` seconds at most; returns whether it is. `bell` rings for it."""
    deadline = inf if timeout is None else monotonic() + timeout
    while not condition():
        waker = _Waker()
        bell.watch(waker)
        try:
            if not condition():
                seconds = None if deadline == inf else deadline - monotonic()
                if seconds is not None and seconds <= 0:
                    return False
                await asyncio.wait([waker.future], timeout=seconds)
        finally:
            bell.unwatch(waker)
    return True


class _Waker:
    """Completes a future when a `Bell` rings."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self._loop.create_future()

    def release(self) -> None:
        """Any thread. Raises `RuntimeError` if the event loop is closed."""
        self._loop.call_soon_threadsafe(self._complete)

    def _complete(self) -> None:
        if not self.future.done():
            self.future.set_result(None)
