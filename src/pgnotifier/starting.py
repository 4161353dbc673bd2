"""Starting and stopping for coroutines: a stop waits for no call before it, and follows a cancelled start."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from . import registry
from .calls import Call, run
from .flag import Flag
from .registry import Registry

if TYPE_CHECKING:
    from .notifier import Notifier

AGAIN_SECONDS = 0.02  # after which a stop is repeated while a start that had begun before it is under way


class Start(Call):
    """A start; it comes after the calls whose flags are in `behind`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, behind: list[Flag]) -> None:
        super().__init__(loop)
        self.behind = behind

    def drop(self) -> None:
        """Have it not be made if it has not begun. Any thread."""
        self.dropped = True
        for flag in self.behind:
            flag.ring()

    def wait(self) -> bool:
        """Wait for its turn; returns whether it is to be made. On its thread."""
        for flag in self.behind:
            flag.wait_for(partial(self._may_go, flag))
        return not self.dropped

    def _may_go(self, flag: Flag) -> bool:
        return self.dropped or flag.is_set()


class Starting:
    """Starts and stops a notifier, each on a thread of its own. `home` is the event loop on which it was started."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._starts: list[Start] = []  # whose threads run
        self._awaited: list[Start] = []  # whose tasks have not gone on
        self._stops: list[Call] = []
        self._is_wanted = False  # a start has returned, and no stop has been called since
        self.home: asyncio.AbstractEventLoop | None = None

    @property
    def is_up(self) -> bool:
        """Whether the notifier is running, and no stop is under way."""
        return not self._stops and self._notifier.is_running()

    async def start(self) -> None:
        """As `Notifier.start`. If the task is cancelled, a stop follows, unless another start succeeds."""
        loop = asyncio.get_running_loop()
        start = Start(loop, [stop.done for stop in tuple(self._stops)])
        self._starts.append(start)
        try:
            run(start, partial(self._start, start, loop))
        except BaseException:
            self._starts.remove(start)
            raise
        self._awaited.append(start)
        try:
            await start
        except BaseException:  # no `await` here: the task may be cancelled at each
            if not start.has_failed:
                start.drop()
                if not self._is_wanted and all(other.dropped for other in self._awaited):
                    with suppress(RuntimeError):  # no thread can be started
                        self._stop(Call(None), 0.0, False)
            raise
        finally:
            self._awaited.remove(start)
        self._is_wanted = self._notifier.is_running()

    def _start(self, start: Start, loop: asyncio.AbstractEventLoop) -> None:
        """On the start's thread."""
        notifier = self._notifier
        try:
            if start.wait():
                if self.home is None or self.home.is_closed() or not notifier.is_running():
                    notifier._supervisor.change(partial(self._move, loop), False)
                notifier.start()
        finally:
            self._starts.remove(start)

    def _move(self, loop: asyncio.AbstractEventLoop, reg: Registry) -> registry.Step:
        """Coroutine functions run on that event loop from now on. Under the state lock."""
        self.home = loop
        return registry.move(reg, loop)

    async def stop(self, seconds: float, drain: bool) -> None:
        """As `Notifier.stop`, also if the task is cancelled."""
        await self._stop(Call(asyncio.get_running_loop()), seconds, drain)

    def _stop(self, stop: Call, seconds: float, drain: bool) -> Call:
        starts = tuple(self._starts)
        for start in starts:
            start.drop()
        self._is_wanted = False
        self._stops.append(stop)

        def work() -> None:
            try:
                self._notifier.stop(seconds, drain=drain)
                for start in starts:  # one that had begun may have come after this stop
                    while not start.done.wait(AGAIN_SECONDS):
                        self._notifier.stop(0)
                    self._notifier.stop(0)
            finally:
                self._stops.remove(stop)

        try:
            run(stop, work)
        except BaseException:
            self._stops.remove(stop)
            raise
        return stop
