"""Callbacks that are coroutine functions, on the event loops of users (contract 8).

A mailbox whose next items belong to an event loop is handed to it with its claim, which comes back when they are
through, or when the loop is found closed.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextvars import copy_context
from typing import Any

from psycopg import Notify

from . import registry
from .guard import CannotDecode, Guard
from .hearing import Telling
from .items import Begin, Item, Shared
from .mailbox import Mailbox
from .registry import Subscription


class Loops(Guard):
    """What `calls` hands to event loops."""

    def on_loop(self, box: Mailbox, item: Item) -> Any:
        """The event loop on which `item` is to be handled; None for a worker."""
        if type(item) is Begin:
            return None
        sub = registry.subscription(self.view, box.id, item.channel)
        return None if sub is None else self._loop_of(sub, item)

    @staticmethod
    def _loop_of(sub: Subscription, item: Item) -> Any:
        return sub.loop if (sub.tells_by_awaiting if type(item) is Telling else sub.awaits) else None

    def ship(self, box: Mailbox, hand: list[Item]) -> bool:
        """Hand the first of `hand` that belong to one event loop over to it, decoded; put back the others."""
        loop = self.on_loop(box, hand[0])
        if loop is None:  # it has another callback by now
            box.give_back(hand)
            return False
        batch: list[Shared | Telling] = []
        rest = 0
        for rest, item in enumerate(hand, 1):
            if self.on_loop(box, item) is not loop:
                rest -= 1
                break
            if type(item) is Notify:
                item = Shared(item.channel, item.payload, item.pid, threading.Lock())
            if isinstance(item, Shared):
                try:
                    self.payload(box, item)
                except CannotDecode:
                    continue
                except BaseException as error:  # as in `run`; what is in hand must not be lost with its barriers
                    self.fatally(box, error)
                    continue
            batch.append(item)  # type: ignore[arg-type]
        box.give_back(hand[rest:])
        if not batch:
            return False
        box.loop, box.shipped = loop, deque(batch)
        try:
            loop.call_soon_threadsafe(self._begin, box, box.shipped, self.epoch)
        except RuntimeError as error:  # the loop is closed
            box.loop, box.shipped = None, None
            for item in batch:
                self.failed(box, item.channel, error)
            return False
        return True

    def _begin(self, box: Mailbox, shipped: deque[Shared | Telling], epoch: int) -> None:
        if box.shipped is shipped:
            self.awaiting.add(box)
            try:
                task = box.loop.create_task(self._await(box, shipped, epoch))
            except BaseException:
                self.reclaim(box, shipped)
                raise
            # A task that is cancelled before it has begun runs nothing of its own.
            task.add_done_callback(lambda _: self.reclaim(box, shipped))

    async def _await(self, box: Mailbox, shipped: deque[Shared | Telling], epoch: int) -> None:
        loop = box.loop
        try:
            while shipped:
                # A task for each call, because a task has one context: what a call sets, the next must not see.
                step = copy_context().run(loop.create_task, self._step(box, shipped, epoch, loop))
                if not await step:
                    return  # it has another callback now: a worker looks again
        except (SystemExit, KeyboardInterrupt):
            pass  # the task of the call has raised it on the event loop
        finally:
            self.reclaim(box, shipped)

    async def _step(self, box: Mailbox, shipped: deque[Shared | Telling], epoch: int, loop: Any) -> bool:
        """Handle the first of `shipped`; return False if that belongs elsewhere. Takes nothing before it begins."""
        if box.shipped is not shipped:
            return False
        if self.epoch != epoch:
            self.void(box, tuple(shipped))
            shipped.clear()
            return True
        if shipped[0].channel in box.barriers:
            shipped.popleft()  # of an earlier subscription; put back, it would come here again for ever
            return True
        sub = registry.subscription(self.view, box.id, shipped[0].channel)
        if sub is None:
            self.void(box, [shipped.popleft()])
        elif self._loop_of(sub, shipped[0]) is loop:
            await self._await_one(box, sub, shipped.popleft())
        else:
            return False
        return True

    def reclaim_from_closed(self, box: Mailbox) -> None:
        """Take the claim back where the event loop that has it is closed."""
        loop, shipped = box.loop, box.shipped
        if shipped is not None and loop is not None and loop.is_closed():
            self.reclaim(box, shipped)

    def reclaim(self, box: Mailbox, shipped: deque[Shared | Telling]) -> None:
        """Take the claim back from an event loop, with what was not begun; what was, and has not ended, fails."""
        if box.shipped is not shipped:  # without the lock: the garbage collector may come here from anywhere
            return
        with box.lock:
            if box.shipped is not shipped:
                return
            box.shipped = box.loop = None
            begun, box.awaited = box.awaited, None
        if begun is not None:
            self.failed(box, begun.channel, RuntimeError("the event loop was closed under the callback"))
        box.give_back(tuple(shipped))
        self.awaiting.discard(box)
        self.released(box)

    async def _await_one(self, box: Mailbox, sub: Any, item: Shared | Telling) -> None:
        box.awaited = item
        collected = False
        try:
            if isinstance(item, Telling):
                await sub.on_listen(box.id, item.channel, item.gap)
            else:
                await sub.fn(box.id, item.channel, item.payload, item.pid)
                box.delivered += 1
        except GeneratorExit:  # after its loop was closed; `reclaim` reports it
            collected = True
            raise
        except asyncio.CancelledError as error:
            self.failed(box, item.channel, error)
            raise
        except Exception as error:
            self.failed(box, item.channel, error)
        except BaseException as error:
            self.fatally(box, error)
            raise
        finally:
            if box.awaited is item and not collected:
                box.awaited = None
