"""Calls of coroutine functions, on the event loops of users (guarantee 8).

A worker takes the hand, decodes it and ships it as a batch. The event loop makes one call after another, each a task
with a separate context, and gives the mailbox back. A batch whose event loop is closed loses the mailbox (`notice`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from contextvars import Context, ContextVar
from time import monotonic
from typing import TYPE_CHECKING, Any

from .calls import Calls
from .mailbox import FAILED, Entry, Mailbox, Run
from .states import AWAITING, IDLE

if TYPE_CHECKING:
    from ..registry import Subscription
    from .dispatcher import Dispatcher


# In the context of a call, and of the tasks and threads that it begins: its dispatcher, until it has returned.
calling: ContextVar[list[Dispatcher]] = ContextVar("pgnotifier_calling")


class Batch:
    """A hand on an event loop. `begun`: a call is under way. `told`: `on_listen` has returned."""

    def __init__(self, dispatcher: Dispatcher, calls: Calls, box: Mailbox, hand: Entry, sub: Subscription) -> None:
        self._dispatcher, self._calls = dispatcher, calls
        self.box, self.hand, self.loop = box, hand, sub.loop
        self.begun = self.told = False
        self.task: Any = None  # an event loop itself holds its tasks weakly, and a garbage collection would end them
        self.items: deque[tuple[int, Any, int]] = deque([(0, None, 0)])  # place in the run, payload and pid
        if isinstance(hand, Run):
            pids = [notification[2] for notification in hand.notifications[hand.start : hand.stop]]
            payloads = [calls.payload(hand, place) for place in range(hand.start, hand.stop)]
            items = zip(range(hand.start, hand.stop), payloads, pids, strict=True)
            self.items = deque(item for item in items if item[1] is not FAILED)

    def ship(self) -> None:
        """Have the event loop make the calls; if it is closed, count all as failed. On a worker."""
        with self._dispatcher.lock:
            self.box.owner = self
            self.box.to(AWAITING)
        self._calls.callers.add(self)
        try:
            self.loop.call_soon_threadsafe(self._step, context=Context())
        except RuntimeError as error:
            with self._dispatcher.lock:
                lost = len(self.items) if self.box.owner is self else 0
                self.items.clear()
            for _ in range(lost):
                self._calls.failed(self.box, self.hand.channel, error)
            self._end()

    def _step(self) -> None:
        """Begin the next call, or give the mailbox back. On the event loop."""
        sub = self.box.sub
        if self.box.owner is not self:
            return
        if not self.items or sub is None or sub.loop is not self.loop or not awaits(sub, self.hand):
            self._end()  # done, void, or for another callback
            return
        try:
            self.task = self.loop.create_task(self._call(sub))
        except BaseException:
            self._end()
            raise
        self.task.add_done_callback(lambda task: self._end() if task.cancelled() else self._next())

    def _next(self) -> None:
        self.begun = False
        self._step()

    async def _call(self, sub: Subscription) -> None:
        box, hand = self.box, self.hand
        if box.owner is not self or box.sub is not sub:
            return  # void or replaced since the task was made: `_step` decides again
        call = [self._dispatcher]
        calling.set(call)
        _, payload, pid = self.items.popleft()  # not before: a task that is cancelled before it begins loses nothing
        self.begun, box.began = True, monotonic()
        try:
            if isinstance(hand, Run):
                await sub.fn(box.id, hand.channel, payload, pid)  # type: ignore[misc]
                with self._dispatcher.lock:
                    self._dispatcher.turns.delivered += 1
            else:
                if sub.on_listen is not None:
                    await sub.on_listen(box.id, hand.channel, hand.gap)  # type: ignore[misc]
                self.told = True
        except GeneratorExit:  # collected after its event loop was closed: `notice` reports it
            raise
        except BaseException as error:
            self._calls.failed(box, hand.channel, error)
            if not isinstance(error, Exception):
                raise
        finally:
            call.clear()
            if box.owner is self:
                box.began = 0.0

    def notice(self) -> None:
        """Take the mailbox back if the event loop is closed; a call under way counts as failed. Any thread."""
        if self.loop.is_closed():
            if self.begun and self.box.owner is self:
                error = RuntimeError("the event loop was closed during the callback")
                self._calls.failed(self.box, self.hand.channel, error)
            self._end()

    def _end(self) -> None:
        """Give the mailbox back, with the calls not begun, or an `on_listen` that did not return. Any thread."""
        box, hand = self.box, self.hand
        self.begun, self.task = False, None
        self._calls.callers.discard(self)
        with self._dispatcher.lock:
            if box.owner is not self:
                return
            box.owner = None
            if not isinstance(hand, Run):
                box.rest = None if self.told else hand
            elif self.items:
                box.rest = hand.part(self.items[0][0], hand.stop)
            self._dispatcher.turns.end(box)
        self._dispatcher.follow_up([box])


def awaits(sub: Subscription, hand: Entry) -> bool:
    """Return True if the hand is for an event loop."""
    return sub.awaits if isinstance(hand, Run) else sub.tells_by_awaiting


def busy(boxes: Iterable[Mailbox]) -> bool:
    """Return True if a call is under way on an event loop that is not closed. Any thread."""
    return any(isinstance(b := box.owner, Batch) and b.begun and not b.loop.is_closed() for box in boxes)


def runs_here(boxes: Iterable[Mailbox]) -> bool:
    """Return True if the current thread runs an event loop that makes calls, or will make those that wait."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return False
    return any(
        (box.state is not IDLE and any(sub.loop is loop for sub in tuple(box.subs.values())))
        or (isinstance(box.owner, Batch) and box.owner.loop is loop)
        for box in boxes
    )
