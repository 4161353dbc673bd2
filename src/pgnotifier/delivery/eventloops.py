"""Calls of coroutine functions, on the event loops of users (guarantee 8).

A worker takes the hand, decodes it and ships it as a batch. The event loop makes one call after the other, each a
task with a context of its own, and gives the mailbox back. A batch that is not the mailbox's any more was reclaimed,
because its event loop was closed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any

from .coverage import ListenCall
from .mailbox import AWAITING, RUNNING, Mailbox
from .runs import Entry, Run

if TYPE_CHECKING:
    from ..registry import Subscription
    from .dispatcher import Dispatcher
    from .workers import Workers

Item = tuple[int, Any, int]  # place in the run, payload and pid; or 0, a ListenCall and 0


# The call whose task, or a task or thread that it has begun, is running: its EventLoops, and empty once it has ended.
_call: ContextVar[list[EventLoops]] = ContextVar("pgnotifier_call")


class Batch:
    """What an event loop has of a mailbox; `begun` is the call that is under way."""

    def __init__(self, box: Mailbox, hand: Entry, sub: Subscription, items: list[Item]) -> None:
        self.box, self.hand, self.loop = box, hand, sub.loop
        self.sub: Subscription = sub
        self.items: deque[Item] = deque(items)
        self.begun: Item | None = None
        self.failed: ListenCall | None = None


def awaits(sub: Subscription, hand: Entry) -> bool:
    """Whether what is in hand is for an event loop."""
    return sub.awaits if isinstance(hand, Run) else sub.tells_by_awaiting


class EventLoops:
    """`workers` reports what fails."""

    def __init__(self, dispatcher: Dispatcher, workers: Workers) -> None:
        self._dispatcher, self._workers = dispatcher, workers

    def take(self, box: Mailbox, hand: Entry, sub: Subscription, items: list[Item]) -> bool:
        """Have the subscription's event loop call; False where that is closed, and all calls failed. A worker."""
        batch = Batch(box, hand, sub, items)
        with self._dispatcher.lock:
            box.batch = batch
            box.to(AWAITING)
        try:
            sub.loop.call_soon_threadsafe(self._step, batch, context=Context())
        except RuntimeError as error:
            with self._dispatcher.lock:
                if box.batch is not batch:
                    return True
                box.batch = None
                box.to(RUNNING)
            for _ in items:
                self._workers.failed(box, hand.channel, error)
            return False
        return True

    def _step(self, batch: Batch) -> None:
        """Begin the next call. On the event loop."""
        box = batch.box
        if box.batch is not batch:
            return
        sub = batch.sub if box.sub is batch.sub else self._dispatcher.current(box, batch.hand)
        if not batch.items or sub is None or sub.loop is not batch.loop or not awaits(sub, batch.hand):
            self._end(batch)  # it is through, void, or for another callback
            return
        batch.sub = sub
        try:
            task = batch.loop.create_task(self._call(batch, sub))
        except BaseException:
            self._end(batch)
            raise
        task.add_done_callback(lambda task: self._end(batch) if task.cancelled() else self._next(batch))

    def _next(self, batch: Batch) -> None:
        batch.begun = None
        self._step(batch)

    async def _call(self, batch: Batch, sub: Subscription) -> None:
        box, channel = batch.box, batch.hand.channel
        if box.batch is not batch or box.sub is not sub:
            return  # void or replaced since the task was made: `_step` decides anew
        batch.begun = batch.items.popleft()  # not before: a task that is cancelled before it begins loses nothing
        _, payload, pid = batch.begun
        call = [self]
        _call.set(call)
        try:
            if isinstance(payload, ListenCall):
                batch.failed = payload
                if sub.on_listen is not None:
                    await sub.on_listen(box.id, channel, payload.gap)  # type: ignore[misc]
                batch.failed = None
            else:
                await sub.fn(box.id, channel, payload, pid)  # type: ignore[misc]
                with self._dispatcher.lock:
                    self._dispatcher.turns.delivered += 1
        except GeneratorExit:  # collected after its event loop was closed: `reclaim` reports it
            raise
        except asyncio.CancelledError as error:
            self._workers.failed(box, channel, error)
            raise
        except Exception as error:
            self._workers.failed(box, channel, error)
        except BaseException as error:
            self._workers.fatally(box, error)
            raise
        finally:
            call.clear()

    def _end(self, batch: Batch) -> None:
        """Give the mailbox back, with what was not begun."""
        box, hand, failed = batch.box, batch.hand, batch.failed
        batch.begun = None
        with self._dispatcher.lock:
            if box.batch is not batch:
                return
            box.batch = None
            if batch.items and isinstance(hand, Run):
                self._dispatcher.put_back(box, hand, batch.items[0][0])
            elif batch.items and isinstance(hand, ListenCall):
                if box.hand is hand:
                    box.put_back(hand)
                else:
                    failed = hand
        self._dispatcher.turns.release(box, failed)

    # -- from other threads ------------------------------------------------------------------------------------

    def _batches(self) -> list[Batch]:
        return [b for box in tuple(self._dispatcher.boxes.values()) if (b := box.batch) is not None]

    def reclaim(self) -> None:
        """Take mailboxes back from event loops that are closed; the call that was under way has failed."""
        for batch in self._batches():
            if batch.loop.is_closed():
                begun = batch.begun
                if begun is not None and batch.box.batch is batch:
                    error = RuntimeError("the event loop was closed under the callback")
                    self._workers.failed(batch.box, batch.hand.channel, error)
                self._end(batch)

    def busy(self) -> bool:
        """Whether a call is under way on an event loop that can finish it."""
        return any(batch.begun is not None and not batch.loop.is_closed() for batch in self._batches())

    def has_caller(self) -> bool:
        """Whether the current thread runs an event loop that makes calls, or is to make those that wait.

        A thread that has the context of a call counts as the call, which may be waiting for it.
        """
        if self in _call.get(()):
            return True
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        boxes = tuple(self._dispatcher.boxes.values())
        return any(
            (box.entries and any(sub.loop is loop for sub in tuple(box.subs.values())))
            or (box.batch is not None and box.batch.loop is loop)
            for box in boxes
        )
