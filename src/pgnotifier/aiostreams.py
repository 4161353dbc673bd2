"""Streams for coroutines, and changes that a task awaits (guarantees 16 and 17). Runs on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from . import changes
from .calls import until
from .delivery import Stream
from .errors import StreamClosed
from .events import Event
from .registry import Keyed
from .shared import Step
from .types import Deliver
from .validation import check_timeout

if TYPE_CHECKING:
    from .notifier import Notifier

FAIR = 64  # events after which other tasks may run, however many wait


async def change(notifier: Notifier, step: Step, autorun: bool = True, undo: Step | None = None) -> None:
    """Make `step`; return when the server listens accordingly. Changes keep their order.

    If the task is cancelled, the change is still made; with `undo` it is dropped or undone, without waiting.
    Raises as `Supervisor.change`.
    """
    shared = notifier._supervisor.shared
    request = changes.begin(shared, step, autorun, ordered=True)
    try:
        await until(request.done, request.done.is_set)
    except BaseException:  # no `await` here: the task may be cancelled at each
        if undo is not None:
            notifier._supervisor.take_back(request, undo)
        raise
    if request.error is not None:
        raise request.error


class AsyncStream(Keyed):
    """Notifications on some channels, for coroutines. Made by `AsyncNotifier.listen`.

    Enter it with `async with`, then read it with `async for event in stream:` or `get`, in any number of tasks: each
    event goes to one of them. Everything else is as with `Stream`. It can be entered once.
    """

    def __init__(self, notifier: Notifier, channels: tuple[str, ...], id: Hashable, deliver: Deliver) -> None:
        self._notifier = notifier
        self._stream: Stream = notifier._new_stream(channels, id)
        self.key: Hashable = self._stream.key
        self._step = notifier._listening(self._stream, deliver)
        self._entered = False
        self._taken = 0

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels that it was made with."""
        return self._stream.channels

    @property
    def id(self) -> Hashable:
        """Its id in `subscribers()`: the id that was given, or the stream itself."""
        return self if self._stream.id is self._stream else self._stream.id

    def __eq__(self, other: object) -> bool:
        return other is self or (not isinstance(other, AsyncStream) and self._stream == other)

    def __hash__(self) -> int:
        return hash(self._stream)

    def __repr__(self) -> str:
        return repr(self._stream)

    async def __aenter__(self) -> AsyncStream:
        stream = self._stream
        if self._entered or stream.closed:
            raise RuntimeError(f"{self!r} has been entered or closed already: call listen() again")
        self._entered = True
        try:
            await change(self._notifier, self._step, undo=stream.closing)
        except BaseException:
            stream.bell.over = True
            raise
        if stream.closed:  # by another task, before it was registered
            self._notifier._supervisor.release(stream.closing)
            raise stream.over()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stream.close()

    async def close(self) -> None:
        """Close the stream, as `Stream.close`: nothing comes any more. Waits for nothing."""
        self._stream.close()

    async def get(self, timeout: float | None = None) -> Event:
        """Return the next event; wait at most `timeout` seconds (None: no limit). A cancellation loses no event.

        Raises `TimeoutError`, `StreamClosed` if nothing comes any more, and `RuntimeError` outside its block.
        """
        limit = None if timeout is None else check_timeout(timeout)
        return self._taken_at_once() or await self._awaited(limit)

    def _taken_at_once(self) -> Event | None:
        """Return the next event; None if nothing waits, or if other tasks should run first."""
        if not self._entered:
            raise RuntimeError("enter the stream first: async with n.listen(...) as stream")
        self._taken = number = self._taken + 1
        return self._stream.pull.next() if number % FAIR else None

    async def _awaited(self, timeout: float | None) -> Event:
        deadline = inf if timeout is None else monotonic() + timeout
        stream, pull = self._stream, self._stream.pull
        if self._taken % FAIR == 0:
            await asyncio.sleep(0)  # before an event is taken, because the task may be cancelled here
        while (event := stream.poll()) is None:
            seconds = None if deadline == inf else deadline - monotonic()
            if not await until(stream.bell, lambda: pull.has_news or pull.is_over, seconds):
                raise stream.late(timeout)
        return event

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Event:
        try:
            return self._taken_at_once() or await self._awaited(None)
        except StreamClosed:
            raise StopAsyncIteration from None
