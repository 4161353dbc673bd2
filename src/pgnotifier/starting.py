"""Starts and stops for coroutines: a stop waits for no earlier call, and follows a cancelled start."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from . import registry
from .calls import Call
from .registry import Registry

if TYPE_CHECKING:
    from .notifier import Notifier

AGAIN_SECONDS = 0.02  # after which a stop is repeated while an earlier start is under way


class Starting:
    """Starts and stops a notifier, each on a separate thread. `loop` is the event loop on which it was started.

    Methods run on the event loop unless they say otherwise.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._starts: list[Call] = []  # under way
        self._stops: list[Call] = []
        self._awaited: list[Call] = []  # starts that a task still awaits
        self._is_wanted = False  # a start has returned, and no stop has been called since
        self.loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_up(self) -> bool:
        """True if the notifier is running, and neither a start nor a stop is under way."""
        return not (self._starts or self._stops) and self._notifier.is_running()

    async def start(self) -> None:
        """Start as `Notifier.start`. If the task is cancelled, stop again, unless another start succeeds."""
        stops = tuple(self._stops)
        self._is_wanted = self._is_wanted and self._notifier.is_running()
        start: Call = Call(lambda: self._start(start, stops, loop))
        loop = asyncio.get_running_loop()
        self._begin(start, self._starts)
        self._awaited.append(start)
        try:
            await start.wait()
        except BaseException:  # no `await` here: the task may be cancelled at each
            if start.error is None:
                self._drop(start)
                if not self._is_wanted and all(other.dropped for other in self._awaited):
                    with suppress(RuntimeError):  # no thread can be started
                        self._stop(0.0, False)
            raise
        finally:
            self._awaited.remove(start)
        self._is_wanted = self._notifier.is_running()

    def _start(self, start: Call, stops: tuple[Call, ...], loop: asyncio.AbstractEventLoop) -> None:
        """Wait for earlier stops, then start. On its thread."""
        notifier = self._notifier
        try:
            for stop in stops:
                stop.done.wait_for(partial(self._may_go, start, stop))
            if start.dropped:
                return
            if self.loop is None or self.loop.is_closed() or not notifier.is_running():
                notifier._supervisor.change(partial(self._move, loop), False)
            notifier.start()
        finally:
            self._starts.remove(start)

    @staticmethod
    def _may_go(start: Call, stop: Call) -> bool:
        return start.dropped or stop.done.is_set()

    def _move(self, loop: asyncio.AbstractEventLoop, reg: Registry) -> registry.Step:
        """Make coroutine functions run on `loop`: a step. Under the state lock."""
        self.loop = loop
        return registry.move(reg, loop)

    async def stop(self, seconds: float, drain: bool) -> None:
        """Stop as `Notifier.stop`, even if the task is cancelled."""
        await self._stop(seconds, drain).wait()

    def _stop(self, seconds: float, drain: bool) -> Call:
        starts = tuple(self._starts)
        for start in starts:
            self._drop(start)
        self._is_wanted = False

        def work() -> None:
            try:
                self._notifier.stop(seconds, drain=drain)
                for start in starts:  # one that had begun may have finished after this stop
                    while not start.done.wait(AGAIN_SECONDS):
                        self._notifier.stop(0)
                    self._notifier.stop(0)
            finally:
                self._stops.remove(stop)

        stop = Call(work)
        self._begin(stop, self._stops)
        return stop

    @staticmethod
    def _begin(call: Call, calls: list[Call]) -> None:
        calls.append(call)
        try:
            call.begin()
        except BaseException:
            calls.remove(call)
            raise

    def _drop(self, start: Call) -> None:
        """Cancel a start that has not begun, also if it waits for a stop."""
        start.dropped = True
        for stop in tuple(self._stops):
            stop.done.ring()
